"""The tool servers that a request asks for, and the steps that they become."""

from typing import Any

import orjson
import pytest

from eventing.errors import BadRequest, InvalidJob, NewerRecord
from eventing.job.job import JobRequest, parse_request
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.plan import LIST_TOOLS_STEP, TOOLS_STEP, Plan, PlannedStep
from eventing.job.tools.asked import (
    AskedServer,
    ToolFilter,
    asked_servers,
    credentials_in,
    raw_without_credentials,
    recorded_servers,
    recorded_urls,
    without_credentials,
)
from eventing.job.tools.document import parse_tools
from eventing.job.tools.request import OnApproval, check_hold, on_approval_of, tool_steps

CANARY = "sk-canary-7f3a"
CONFIG = parse_tools(
    {
        "servers": {
            "files": {"url": "http://files.tools/mcp", "approval": "never"},
            "mail": {"url": "http://mail.tools/mcp", "tenants": ["acme"]},
        },
        "urls": {"tenants": ["acme"]},
    }
)
PIPELINES = parse_pipelines(
    {
        "agent": {
            "steps": [
                {"step": "list-tools", "settings": {"servers": ["files"]}},
                {"step": "tools", "settings": {"limits": {"max_calls": 5}}},
            ]
        }
    }
)


def request(*tools: object, model: str = "m", **more: object) -> JobRequest:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "x"}], **more}
    if tools:
        body["tools"] = list(tools)
    return parse_request({"url": "/v1/chat/completions", "body": body})


def mcp(label: str = "files", **more: object) -> dict[str, object]:
    return {"type": "mcp", "server_label": label, **more}


def steps(*tools: object, tenant: str = "acme", **more: Any) -> tuple[PlannedStep, ...]:
    on_approval = more.pop("on_approval", OnApproval.WAIT)
    return tool_steps(request(*tools, **more), PIPELINES, CONFIG, tenant, on_approval)


def test_links_that_the_caller_wrote_may_stand_in_answers_and_what_others_wrote_may_not() -> None:
    messages = [
        {"role": "system", "content": "Docs: https://docs.example/a."},
        {"role": "user", "content": [{"type": "text", "text": "See (www.mine.example/x), please"}]},
        {"role": "assistant", "content": "https://model.example/"},
        {"role": "tool", "tool_call_id": "c", "content": "https://evil.example/"},
        {"role": "user", "content": "javascript:alert(1) https://docs.example/a"},
    ]
    (_, after) = steps(mcp(), messages=messages)

    assert after.settings["links"] == ["https://docs.example/a", "https://www.mine.example/x"]


def test_a_caller_with_more_links_than_a_record_holds_keeps_the_first() -> None:
    many = " ".join(f"https://a.example/{n}" for n in range(1000))
    (_, after) = steps(mcp(), messages=[{"role": "user", "content": many}])

    assert after.settings["links"] == [f"https://a.example/{n}" for n in range(200)]


def test_a_request_without_servers_gets_no_steps() -> None:
    function = {"type": "function", "function": {"name": "f"}}

    assert steps() == ()
    assert steps(function) == ()


def test_servers_become_two_steps_that_have_what_was_asked() -> None:
    before, after = steps(mcp(), max_tool_calls=3, parallel_tool_calls=False)

    assert (before.name, after.name) == (LIST_TOOLS_STEP, TOOLS_STEP)
    assert not before.is_after
    assert after.is_after
    assert before.settings == {}
    limits = {"max_calls": 3, "parallel": 1}
    assert after.settings == {"on_approval": "wait", "limits": limits, "links": []}
    assert on_approval_of(Plan(steps=(before, after))) is OnApproval.WAIT


def test_an_entry_says_which_tools_the_model_is_to_know() -> None:
    approval = {"never": {"tool_names": ["read"]}}
    allowed = {"tool_names": ["read", "write"], "read_only": True}
    (server,) = asked_servers(
        [mcp(allowed_tools=allowed, require_approval=approval, server_description="of a team")]
    )

    assert server == AskedServer(
        label="files",
        description="of a team",
        allowed=ToolFilter(tool_names=("read", "write"), read_only=True),
        require_approval=approval,
    )
    assert server.allows("read", is_read_only=True)
    assert not server.allows("write", is_read_only=False)
    assert not server.allows("other", is_read_only=True)
    assert asked_servers([mcp()])[0].allows("other", is_read_only=False)
    assert not asked_servers([mcp(allowed_tools={})])[0].allows("read", is_read_only=True)


def test_a_model_name_brings_the_servers_that_the_operator_bound_to_it() -> None:
    before, after = steps(model="agent", tenant="other", max_tool_calls=9)

    assert before.settings == {"servers": ["files"]}
    assert after.settings["limits"] == {"max_calls": 5}
    assert steps(mcp("mail"), model="agent")[0] == before


@pytest.mark.parametrize(
    ("tools", "tenant", "word"),
    [
        ([mcp("mail")], "other", "no server mail"),
        ([mcp("nothere")], "acme", "there are: files, mail"),
        ([mcp("own", server_url="https://a.example/mcp")], "other", "may not name servers"),
        ([mcp("files", server_url="https://a.example/mcp")], "acme", "label of a server of the op"),
        ([mcp("own", server_url="http://a.example/mcp")], "acme", "own: server_url must start"),
        ([mcp("own", server_url="https://10.0.0.1/mcp")], "acme", "not a public address"),
        ([mcp("own", server_url="https://metadata.internal/")], "acme", "name for inside"),
        ([mcp(authorization=CANARY)], "acme", "seal it"),
        ([mcp(headers={"x-key": CANARY})], "acme", "seal it"),
    ],
)
def test_what_a_tenant_may_not_use_is_refused_by_name(
    tools: list[object], tenant: str, word: str
) -> None:
    with pytest.raises(InvalidJob, match=word) as refused:
        steps(*tools, tenant=tenant)
    assert refused.value.field.startswith("body.tools")
    assert CANARY not in refused.value.message


@pytest.mark.parametrize(
    ("tool", "field"),
    [
        (mcp("a__b"), "server_label"),
        (mcp("a_"), "server_label"),
        (mcp("torpor", server_url="https://x.example/mcp"), "server_label"),
        (mcp(""), "server_label"),
        ({"type": "mcp"}, "server_label"),
        (mcp(server_url="ftp://x"), "server_url"),
        (mcp(server_url="https://user:pw@x.example/mcp"), "server_url"),
        (mcp(server_url=7), "server_url"),
        (mcp(connector_id="connector_gmail"), "connector_id"),
        (mcp(tunnel_id="t"), "tunnel_id"),
        (mcp(defer_loading=True), "defer_loading"),
        (mcp(allowed_tools="all"), "allowed_tools"),
        (mcp(allowed_tools=[1]), "allowed_tools"),
        (mcp(allowed_tools={"names": []}), "allowed_tools.names"),
        (mcp(allowed_tools={"read_only": "yes"}), "allowed_tools.read_only"),
        (mcp(require_approval="sometimes"), "require_approval"),
        (mcp(require_approval={"often": {}}), "require_approval.often"),
        (mcp(require_approval={"never": ["x"]}), "require_approval.never"),
        (mcp(authorization=f"{CANARY}\n"), "authorization"),
        (mcp(headers={"Host": CANARY}), "headers"),
        (mcp(headers={"Mcp-Session-Id": CANARY}), "headers"),
        (mcp(headers={"x-a": "1", "X-A": CANARY}), "headers"),
        (mcp(headers={"Ce-Tenant": CANARY}), "headers"),
        (mcp(headers={"Idempotency-Key": CANARY}), "headers"),
        (mcp(headers={"Traceparent": CANARY}), "headers"),
        (mcp(headers={"x": f"{CANARY}\r\n"}), "headers"),
        (mcp(authorization=CANARY, headers={"Authorization": "y"}), "headers"),
        (mcp(colour="red"), "colour"),
    ],
)
def test_an_invalid_entry_is_refused_by_the_name_of_its_field(
    tool: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidJob) as refused:
        asked_servers([tool])
    assert refused.value.field == f"body.tools[0].{field}"
    assert CANARY not in refused.value.message


def test_a_label_that_is_there_twice_is_refused() -> None:
    with pytest.raises(InvalidJob, match="twice"):
        asked_servers([mcp("a"), mcp("a")])
    with pytest.raises(InvalidJob, match="files of its own"):
        steps(mcp("files"), model="agent")


@pytest.mark.parametrize("model", ["m", "agent"])
def test_a_function_of_the_caller_can_not_have_the_name_of_a_servers_tool(model: str) -> None:
    function = {"type": "function", "function": {"name": "files__read"}}
    other = {"type": "function", "function": {"name": "file__read"}}
    tools = [mcp()] if model == "m" else []

    with pytest.raises(InvalidJob, match="files__read"):
        steps(function, *tools, model=model)
    assert steps(other, *tools, model=model)
    built_in = {"type": "function", "function": {"name": "torpor__read"}}
    with pytest.raises(InvalidJob, match="torpor__read"):
        steps(built_in, *tools, model=model)


@pytest.mark.parametrize(
    "tool",
    [
        mcp("mail"),
        mcp("mail", require_approval="never"),
        mcp("own", server_url="https://a.example/mcp"),
        mcp("own", server_url="https://a.example/mcp", require_approval={"never": {}}),
        mcp("files", require_approval="always"),
        mcp("files"),
    ],
)
def test_where_no_person_can_be_asked_a_server_whose_calls_need_approval_is_refused(
    tool: dict[str, object],
) -> None:
    with pytest.raises(InvalidJob, match="approval"):
        steps(tool, on_approval=OnApproval.FAIL)


def test_a_server_whose_calls_need_no_approval_is_used_where_no_person_can_be_asked() -> None:
    own = mcp("own", server_url="https://a.example/mcp", require_approval="never")

    assert (
        steps(own, mcp("files", require_approval="never"), on_approval=OnApproval.FAIL)[1].settings[
            "on_approval"
        ]
        == "fail"
    )


def test_a_plan_that_holds_its_answer_back_has_no_server_tools() -> None:
    whole = PlannedStep(name="validate-output", settings={"mode": "block"})
    plan = Plan(steps=()).with_step(whole)
    for step in steps(mcp()):
        plan = plan.with_step(step)

    with pytest.raises(InvalidJob, match="hold: whole"):
        check_hold(plan)
    check_hold(Plan(steps=(whole,)))


def test_only_chats_have_tools() -> None:
    other = JobRequest(url="/v1/completions", body={"model": "agent", "prompt": "x"})

    with pytest.raises(InvalidJob, match="chat"):
        tool_steps(other, PIPELINES, CONFIG, "acme")


def test_several_answers_are_not_made_with_tools() -> None:
    with pytest.raises(InvalidJob) as refused:
        steps(mcp(), n=2)
    assert refused.value.field == "body.n"


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ({"type": "mcp", "server_label": "nope"}, "body.tool_choice.server_label"),
        ({"type": "mcp"}, "body.tool_choice.server_label"),
        ({"type": "mcp", "server_label": 7}, "body.tool_choice.server_label"),
        ({"type": "mcp", "server_label": "files", "name": 7}, "body.tool_choice.name"),
        ({"type": "allowed_tools", "tools": [mcp("nope")]}, "body.tool_choice"),
        ({"type": 7}, "body.tool_choice"),
    ],
)
def test_a_choice_that_means_no_tool_of_the_request_is_refused_by_its_field(
    choice: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidJob) as error:
        steps(mcp(), tool_choice=choice)

    assert error.value.field == field


@pytest.mark.parametrize("named", [{}, {"name": None}, {"name": "read"}])
def test_a_choice_names_a_server_or_one_of_its_tools(named: dict[str, object]) -> None:
    assert steps(mcp(), tool_choice={"type": "mcp", "server_label": "files", **named})


def test_credentials_are_taken_out_of_a_request() -> None:
    tools = [
        mcp("a", authorization=CANARY, headers={"x-key": "k"}),
        mcp("b", headers={"Authorization": "Basic zzz"}),
        mcp("c"),
        {"type": "function", "function": {"name": "headers"}},
    ]

    assert credentials_in(tools) == {
        "a": {"x-key": "k", "authorization": f"Bearer {CANARY}"},
        "b": {"Authorization": "Basic zzz"},
    }
    assert without_credentials(tools) == [mcp("a"), mcp("b"), mcp("c"), tools[3]]
    assert without_credentials("x") == "x"


def test_the_data_of_a_refused_event_is_kept_without_its_credentials() -> None:
    line = {"url": "x", "body": {"tools": [mcp(authorization=CANARY), 7]}}

    kept = raw_without_credentials(orjson.dumps(line))

    assert orjson.loads(kept) == {"url": "x", "body": {"tools": [mcp(), 7]}}
    assert raw_without_credentials(b'{"authorization": "' + CANARY.encode()) == b"null"
    assert raw_without_credentials(b"not json") == b"not json"


@pytest.mark.parametrize(
    "raw",
    [
        orjson.dumps({"body": {"tools": [mcp(authorization=CANARY)]}}).replace(
            b'"authorization"', b'"authoriz\\u0061tion"'
        ),
        orjson.dumps({"model": "m", "tools": [mcp(headers={"x": CANARY})]}),
        orjson.dumps([{"body": [{"deep": mcp(authorization=CANARY)}]}]),
        b'{"a":' * 400 + orjson.dumps(mcp(authorization=CANARY)) + b"}" * 400,
    ],
    ids=["escaped", "elsewhere", "nested", "deep"],
)
def test_a_refused_event_keeps_no_credential_wherever_it_stands(raw: bytes) -> None:
    assert CANARY.encode() in raw
    assert CANARY.encode() not in raw_without_credentials(raw)


def test_a_refused_event_without_credentials_is_kept_as_it_came() -> None:
    raw = b'{ "body": {"tools": [ {"type": "mcp", "server_label": "a\\n"} ], "headers": 1} }'
    assert raw_without_credentials(raw) == raw


def limits(model: str = "agent", **more: Any) -> Any:
    """Those of the planned step `tools`."""
    return steps(model=model, **more)[1].settings.get("limits", {})


def test_a_request_lowers_limits_of_its_loop_and_raises_none() -> None:
    assert limits(tool_limits={"max_cost": 0.5, "max_output_tokens": 900, "max_calls": 9}) == {
        "max_calls": 5,
        "max_cost": 0.5,
        "max_output_tokens": 900,
    }
    assert limits(tool_limits={"max_calls": 4}, max_tool_calls=3)["max_calls"] == 3
    assert limits(tool_limits={"max_calls": 2}, max_tool_calls=3)["max_calls"] == 2


def test_a_plan_that_allows_more_calls_than_usual_is_asked_for_fewer() -> None:
    many = parse_pipelines(
        {
            "agent": {
                "steps": [
                    {"step": "list-tools", "settings": {"servers": ["files"]}},
                    {"step": "tools", "settings": {"limits": {"max_calls": 200}}},
                ]
            }
        }
    )
    (_, step) = tool_steps(request(model="agent", max_tool_calls=150), many, CONFIG, "acme")
    assert step.settings["limits"] == {"max_calls": 150}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"result_bytes": 1}, "body.tool_limits.result_bytes"),
        ({"max_cost": 0}, "body.tool_limits.max_cost"),
        ({"max_cost": float("nan")}, "body.tool_limits.max_cost"),
        ({"max_cost": float("inf")}, "body.tool_limits.max_cost"),
        ({"tool_ms": 1.5}, "body.tool_limits.tool_ms"),
        ({"max_turns": True}, "body.tool_limits.max_turns"),
        ({"max_output_tokens": 10**400}, "body.tool_limits.max_output_tokens"),
        ([], "body.tool_limits"),
    ],
)
def test_a_wrong_limit_of_a_request_is_refused_by_name(given: Any, field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        limits(tool_limits=given)
    assert refused.value.field == field


@pytest.mark.parametrize("given", [{"max_cost": 1e308}, {"max_turns": 2**60}], ids=str)
def test_a_limit_that_is_too_high_is_told_the_highest(given: Any) -> None:
    with pytest.raises(InvalidJob, match=f"at most {2**53}"):
        limits(tool_limits=given)


def test_limits_without_tools_are_refused() -> None:
    with pytest.raises(InvalidJob, match="tool_limits needs tools"):
        steps(tool_limits={"max_cost": 1})


def test_limits_of_tenants_in_the_tools_file_are_judged() -> None:
    with pytest.raises(BadRequest, match=r"tools: limits\.acme\.max_coins"):
        parse_tools({"limits": {"acme": {"max_coins": 3}}})
    assert parse_tools({"limits": {"*": {"max_cost": 2}}}).limits_of("acme") == {"max_cost": 2}


def test_an_entry_of_another_version_waits_for_that() -> None:
    newer = [{**mcp("a"), "forbid": ["x"]}, {**mcp("b"), "server_url": "https://b.example/mcp"}]
    with pytest.raises(NewerRecord, match=r"tools\[0\]\.forbid is of another version"):
        recorded_servers(newer)
    assert recorded_urls(newer) == {"a": "", "b": "https://b.example/mcp"}


def test_a_setting_of_a_model_that_there_is_not_is_refused_at_the_submit() -> None:
    wrong = parse_pipelines({"agent": {"steps": [{"step": "tools", "settings": {"max_turns": 3}}]}})
    with pytest.raises(InvalidJob, match="no setting max_turns"):
        tool_steps(request(mcp("files"), model="agent"), wrong, CONFIG, "acme")


def test_a_function_whose_parameters_are_no_schema_is_refused_by_its_place() -> None:
    function = {"name": "f", "parameters": {"properties": {"n": {"type": "int"}}}}
    with pytest.raises(InvalidJob, match="must be one of string, number") as refused:
        request({"type": "function", "function": function})
    assert refused.value.field == "body.tools[0].function.parameters.properties.n.type"


def test_a_format_that_is_no_schema_is_refused_by_its_place() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": {"required": "n"}}}
    with pytest.raises(InvalidJob, match="a list of texts") as refused:
        request(response_format=form)
    assert refused.value.field == "body.response_format.json_schema.schema.required"

"""Tools in a whole stack, by OpenAI's unmodified client: a real MCP server, a function, turns from a script."""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai import OpenAI

from tests.integration.stack import MODEL, LocalStack, openai_client, planned_stack
from tests.integration.test_command_line import typed
from tests.integration.test_example_tools import listening

TOOLS = Path(__file__).parents[2] / "examples" / "tools"
LIMITS: dict[str, dict[str, Any]] = {
    "turns": {"max_turns": 3},
    "calls": {"max_calls": 2},
    "tokens": {"max_output_tokens": 20},
    "cost": {"max_cost": 1e-9, "max_turns": 64},
    "time": {"tool_ms": 1},
    "repeat": {},
}
"""What ends the loop of a model that calls for ever, with the limits of the model of that name."""


def agent(**limits: Any) -> dict[str, Any]:
    listed = {"step": "list-tools", "settings": {"servers": ["weather"]}}
    route = {"step": "route", "settings": {"tiers": [MODEL]}}
    tools = {"step": "tools", "settings": {"limits": limits}}
    return {"steps": [listed, route, tools]}


PIPELINES = yaml.safe_dump(
    {
        MODEL: {"cache": {"exact": {"ttl_s": 60}}},
        "agent": agent(),
        **{f"agent-{name}": agent(**limits) for name, limits in LIMITS.items()},
    }
)
WEATHER: Any = {"type": "mcp", "server_label": "weather", "require_approval": "never"}
REFUND: Any = {"type": "mcp", "server_label": "refund"}
ASK = {"name": "weather__forecast", "arguments": {"city": "Oslo"}}
PAY = {"name": "refund__refund", "arguments": {"order_id": "A7", "amount": 12.5}}


@contextmanager
def tool_stack(folder: Path) -> Iterator[LocalStack]:
    """A stack with the example tools."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with (
        listening(sys.executable, "mcp_weather.py", port) as weather,
        listening(sys.executable, "function_refund.py", str(folder / "ledger.db"), "0") as refund,
    ):
        known = yaml.safe_load((TOOLS / "tools.yaml").read_text())["servers"]
        servers = {"weather": {**known["weather"], "url": weather}}
        servers["refund"] = {**known["refund"], "url": refund}
        path = folder / "tools.yaml"
        path.write_text(yaml.safe_dump({"servers": servers}))
        env = {"TORPOR_GPU_PRICE_PER_HOUR": "3.6", "TORPOR_INGRESS_TOKEN": "the-users-own"}
        with planned_stack(folder, PIPELINES, "--tools", str(path), env=env) as made:
            yield made


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with tool_stack(tmp_path_factory.mktemp("tools")) as made:
        yield made


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[OpenAI]:
    with openai_client(stack) as made:
        yield made


def script(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"seeded": {"turns": list(turns)}}


def test_a_loop_is_streamed_as_one_response(client: OpenAI) -> None:
    turns = script({"text": "I look.", "calls": [ASK, ASK]}, {"text": "It rains."})
    with client.responses.stream(
        model=MODEL, input="Weather?", tools=[WEATHER], background=True, extra_body=turns
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    again = client.responses.retrieve(final.id, stream=True, starting_after=4)

    assert [item.type for item in final.output] == [
        *("mcp_list_tools", "message", "mcp_call", "mcp_call", "message")
    ]
    assert "4 °C" in str(final.output[2].output)  # type: ignore[union-attr]
    assert final.output_text.endswith("It rains.")
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    assert [each.type for each in again][-1] == "response.completed"
    stored = client.responses.retrieve(final.id)
    told = [item.model_dump(exclude={"content"}) for item in final.output]
    assert [item.model_dump(exclude={"content"}) for item in stored.output] == told
    assert stored.output_text == final.output_text


def test_an_approval_ends_one_response_and_is_answered_by_the_next(client: OpenAI) -> None:
    turns = script({"text": "", "calls": [ASK, PAY]}, {"text": "Paid."})
    tools = [WEATHER, REFUND]
    first = client.responses.create(model=MODEL, input="Pay", tools=tools, extra_body=turns)
    (question,) = [item for item in first.output if item.type == "mcp_approval_request"]
    answer: Any = {"type": "mcp_approval_response", "approval_request_id": question.id}
    second = client.responses.create(
        model=MODEL,
        previous_response_id=first.id,
        tools=tools,
        input=[{**answer, "approve": True}],
        extra_body=turns,
    )
    third = client.responses.create(
        model=MODEL, previous_response_id=second.id, input="Thanks", max_output_tokens=4
    )

    assert [item.type for item in first.output] == [
        *("mcp_list_tools", "mcp_list_tools", "mcp_call", "mcp_approval_request")
    ]
    call = next(item for item in second.output if item.type == "mcp_call")
    assert (call.status, call.approval_request_id) == ("completed", question.id)
    assert second.output_text == "Paid."
    assert third.usage is not None


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("background", [False, True], ids=["held", "background"])
@pytest.mark.parametrize("form", ["previous_response_id", "conversation"])
def test_an_approval_is_answered_in_every_form_of_a_call(
    client: OpenAI, *, form: str, background: bool, is_streamed: bool
) -> None:
    talk = client.conversations.create()
    within: Any = {"conversation": talk.id} if form == "conversation" else {}

    def said(turns: Any, **call: Any) -> Any:
        call |= {"model": MODEL, "tools": [REFUND], "background": background, "extra_body": turns}
        if is_streamed:
            (*_, last) = client.responses.create(**call, stream=True)
            return last.response
        response = client.responses.create(**call)
        while response.status in ("queued", "in_progress"):
            time.sleep(0.1)
            response = client.responses.retrieve(response.id)
        return response

    first = said(script({"text": "I pay.", "calls": [PAY]}), input="Refund A7", **within)
    (question,) = [item for item in first.output if item.type == "mcp_approval_request"]
    answer: Any = {"type": "mcp_approval_response", "approve": True}
    answer["approval_request_id"] = question.id
    within = within or {"previous_response_id": first.id}
    second = said(script({}, {"text": "It is paid."}), input=[answer], **within)

    assert (first.status, second.status) == ("completed", "completed")
    assert [item.type for item in second.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert "A7" in second.output[1].output
    if form == "conversation":
        items = [item.type for item in client.conversations.items.list(talk.id, order="asc")]
        assert items == [
            *("message", "message", "mcp_approval_request"),
            *("mcp_approval_response", "mcp_call", "message"),
        ]


def test_a_job_waits_for_its_approval_and_goes_on(stack: LocalStack, client: OpenAI) -> None:
    with httpx.Client(base_url=stack.addresses["api"], timeout=120) as api:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Pay"}]}
        body |= {"tools": [REFUND], **script({"text": "", "calls": [PAY]}, {"text": "Paid."})}
        job = api.post("/v1/jobs", json={"url": "/v1/chat/completions", "body": body}).json()["id"]
        asked: list[dict[str, Any]] = []
        while not asked:
            asked = api.get("/v1/approvals").json()["data"]
        path = f"/v1/jobs/{job}/approvals/{asked[0]['id']}"
        decided = api.post(path, json={"approve": True}).json()
        ended = api.get(f"/v1/jobs/{job}?wait=60").json()

    assert (asked[0]["job_id"], asked[0]["tool"]) == (job, "refund")
    assert decided["state"] == "pending"
    assert ended["state"] == "completed"
    assert ended["result"]["choices"][0]["message"]["content"] == "Paid."


def test_a_call_is_approved_in_the_terminal(stack: LocalStack) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Pay"}], "tools": [REFUND]}
    body |= script({"text": "", "calls": [PAY, PAY]}, {"text": "Paid."})
    with httpx.Client(base_url=stack.addresses["api"], timeout=120) as api:
        job = api.post("/v1/jobs", json={"url": "/v1/chat/completions", "body": body}).json()["id"]
        asked: list[dict[str, Any]] = []
        while len(asked) < 2:
            asked = api.get("/v1/approvals").json()["data"]
        listed = typed(stack, "approvals", "list").stdout
        wrong = [
            typed(stack, "approvals", "approve", asked[0]["id"], *flags, code=2).stderr
            for flags in (("--run-again",), ("--it-ran", "x"), ("--content", "{}"))
        ]
        yes = typed(stack, "approvals", "approve", asked[0]["id"])
        late = typed(stack, "approvals", "deny", asked[0]["id"], code=1)
        no = typed(stack, "approvals", "deny", asked[1]["id"], "--reason", "twice")
        ended = api.get(f"/v1/jobs/{job}?wait=60").json()

    assert '{"order_id":"A7","amount":12.5}' in listed
    assert ["may have happened" in said for said in wrong] == [True, True, False]
    assert ("is pending" in yes.stdout, "is denied" in no.stdout) == (True, True)
    assert "the first decision holds" in late.stderr
    assert ended["state"] == "completed"
    assert sorted(call["state"] for call in ended["turns"][0]["calls"]) == ["denied", "returned"]


def test_what_the_servers_offer_is_listed_in_the_terminal(
    stack: LocalStack, client: OpenAI
) -> None:
    turns = script({"text": "Fine."})
    client.responses.create(model=MODEL, input="?", tools=[WEATHER], extra_body=turns)
    listed = " ".join(typed(stack, "tools", "list").stdout.split())
    accepted = typed(stack, "tools", "accept", "weather")
    function = typed(stack, "tools", "accept", "refund", code=1)
    unknown = typed(stack, "tools", "accept", "wether", code=1)

    assert "forecast" in listed
    assert "refund" in listed
    assert accepted.stdout == "weather: accepted\n"
    assert "refund is a function" in function.stderr
    assert "no tool server wether; there are: refund, weather" in unknown.stderr


def test_a_chat_completion_has_the_tools_of_its_models_name(client: OpenAI) -> None:
    turns = script({"text": "", "calls": [ASK]}, {"text": "It rains."})
    said = client.chat.completions.create(
        model="agent", messages=[{"role": "user", "content": "Weather?"}], extra_body=turns
    )

    assert said.choices[0].message.content == "It rains."
    assert not said.choices[0].message.tool_calls


def asks_for_ever(model: str, *, is_equal: bool) -> dict[str, Any]:
    """A job whose model calls in each turn, as long as it may."""
    cities = ["Oslo" if is_equal else f"Oslo {n}" for n in range(70)]
    calls = [[{"name": "weather__forecast", "arguments": {"city": each}}] for each in cities]
    body = {"model": model, "messages": [{"role": "user", "content": "Weather?"}]}
    body |= script(*({"text": "I look.", "calls": each} for each in calls))
    return {"url": "/v1/chat/completions", "body": body}


def test_a_model_that_calls_for_ever_ends_by_each_limit_with_an_answer(stack: LocalStack) -> None:
    with httpx.Client(base_url=stack.addresses["api"], timeout=120) as api:
        jobs = {
            name: api.post(
                "/v1/jobs", json=asks_for_ever(f"agent-{name}", is_equal=name == "repeat")
            ).json()["id"]
            for name in LIMITS
        }
        ended = {name: api.get(f"/v1/jobs/{job}?wait=60").json() for name, job in jobs.items()}

    assert {name: job["stopped_by"] for name, job in ended.items()} == {n: n for n in LIMITS}
    for name, job in ended.items():
        said = job["result"]["choices"][0]
        assert (job["state"], said["finish_reason"]) == ("completed", "stop"), name
        assert said["message"]["content"].endswith("I look."), name
        for count in ("prompt_tokens", "completion_tokens"):
            spent = sum(turn["usage"][count] for turn in job["turns"])
            assert job["usage"][count] == spent, name
    assert [len(ended[name]["turns"]) for name in ("turns", "calls", "repeat")] == [3, 4, 5]


def test_the_tools_are_listed_without_addresses(stack: LocalStack) -> None:
    found = httpx.get(f"{stack.addresses['api']}/v1/tools", timeout=60).json()

    assert [each["label"] for each in found["data"]] == ["refund", "weather"]
    assert "127.0.0.1" not in str(found)

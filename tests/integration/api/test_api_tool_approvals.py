"""Calls of tools that need a person's decision, in OpenAI's form: a response ends with the question, and the next one
brings the answer.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from openai import AsyncOpenAI
from redis.asyncio import Redis

from api.settings import AnonymousAccess, ApiSettings
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, headers_of, rig_over
from tests.integration.api.fakes import FakeBroker
from tests.integration.api.tool_loop import Loop, said

TOOLS = {
    "servers": {"box": {"url": "http://box.tools/mcp", "approval": "never"}},
    "urls": {"tenants": ["*"]},
}
BOX: Any = {
    "type": "mcp",
    "server_label": "box",
    "require_approval": {"never": {"tool_names": ["read"]}},
}
OWN: Any = {"type": "function", "name": "own", "parameters": {}, "strict": False}
READ = ("c0", "box__read", '{"n": 1}')
SEND = ("c1", "box__send", '{"to": "ann"}')


@pytest.fixture
def tool_settings(api_settings: ApiSettings, tmp_path: Path) -> ApiSettings:
    path = tmp_path / "tools.yaml"
    path.write_text(yaml.safe_dump(TOOLS))
    return ApiSettings(**(api_settings.model_dump() | {"tools_file": path}))


@pytest.fixture
async def rig(
    tool_settings: ApiSettings, store: RedisStore, broker: FakeBroker, redis: Redis
) -> AsyncIterator[Rig]:
    async with rig_over(tool_settings, store, broker) as made:
        yield made


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def loop_of(rig: Rig, response: Any) -> Loop:
    return Loop(rig, JobId(response.id.replace("resp_", "job_")))


def approval(request_id: str, approve: bool, **more: Any) -> Any:
    answer = {"type": "mcp_approval_response", "approval_request_id": request_id}
    return {**answer, "approve": approve, **more}


async def asked(
    rig: Rig, client: AsyncOpenAI, *calls: Any, tools: Any = (BOX,), **more: Any
) -> Any:
    """A response that ended with a question."""
    response = await client.responses.create(
        model="m", input="send it", background=True, tools=list(tools), **more
    )
    loop = loop_of(rig, response)
    await loop.list_tools("box")
    await loop.answer("I look.", said(*(calls or (READ, SEND))))
    await loop.decide()
    for call in (await loop.job()).turns[0].calls:
        if call.tool == "read":
            await loop.run(1, call.place, "A")
    return await client.responses.retrieve(response.id)


def question_in(response: Any) -> Any:
    (found,) = [item for item in response.output if item.type == "mcp_approval_request"]
    return found


async def test_an_approved_call_runs_in_the_next_response_and_its_siblings_do_not_again(
    rig: Rig, client: AsyncOpenAI
) -> None:
    first = await asked(rig, client)
    question = question_in(first)
    follow = await client.responses.create(
        model="m",
        background=True,
        stream=True,
        previous_response_id=first.id,
        tools=[BOX],
        input=[approval(question.id, approve=True)],
    )
    created = await anext(follow)
    loop = loop_of(rig, created.response)  # type: ignore[union-attr]
    await loop.list_tools("box")
    assert (await loop.job()).step == "tools"
    await loop.decide()
    assert [call.state for call in (await loop.job()).turns[0].calls] == ["returned", "pending"]
    await loop.run(1, 1, "sent")
    prompt = (await loop.job()).to_run.body["messages"]
    await loop.answer("Done.")
    await loop.decide()
    events = [created] + [event async for event in follow]

    assert first.status == "completed"
    assert [item.type for item in first.output] == [
        *("mcp_list_tools", "message", "mcp_call", "mcp_approval_request")
    ]
    assert (question.name, question.arguments) == ("send", '{"to": "ann"}')
    assert [message["role"] for message in prompt] == ["user", "assistant", "tool", "tool"]
    assert ["A" in prompt[2]["content"], "sent" in prompt[3]["content"]] == [True, True]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    response = events[-1].response  # type: ignore[union-attr]
    assert [item.type for item in response.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert (response.output[1].output, response.output[1].approval_request_id) == (
        *("sent", question.id),
    )
    stored = await client.responses.retrieve(response.id)
    assert stored.output == response.output
    assert stored.usage is not None
    listed = await client.responses.input_items.list(response.id, order="asc")
    assert [item.type for item in listed.data] == [
        *("message", "mcp_list_tools", "message", "mcp_call", "mcp_approval_request"),
        "mcp_approval_response",
    ]


async def test_a_denied_call_is_not_run_and_the_model_is_told_why(
    rig: Rig, client: AsyncOpenAI
) -> None:
    first = await asked(rig, client, SEND)
    answer = approval(question_in(first).id, approve=False, reason="too dear")
    follow = await client.responses.create(
        model="m", background=True, previous_response_id=first.id, tools=[BOX], input=[answer]
    )
    loop = loop_of(rig, follow)
    await loop.list_tools("box")
    await loop.decide()
    assert "too dear" in (await loop.job()).to_run.body["messages"][-1]["content"]
    await loop.answer("Then not.")
    await loop.decide()

    done = await client.responses.retrieve(follow.id)
    assert [item.type for item in done.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert done.output[1].status == "failed"  # type: ignore[union-attr]


async def test_the_same_answer_again_is_the_same_response(rig: Rig, client: AsyncOpenAI) -> None:
    first = await asked(rig, client, SEND)
    question = question_in(first)

    async def answer(*, approve: bool) -> Any:
        return await client.responses.create(
            model="m",
            background=True,
            previous_response_id=first.id,
            tools=[BOX],
            input=[approval(question.id, approve=approve)],
        )

    one = await answer(approve=True)

    assert one.id == (await answer(approve=True)).id
    (call,) = (await loop_of(rig, one).job()).turns[0].calls
    assert call.state == "pending"


@pytest.mark.parametrize(("before", "word"), [(True, "approved"), (False, "denied")])
@pytest.mark.parametrize("form", ["previous_response_id", "conversation"])
async def test_another_answer_to_what_was_answered_is_a_conflict(
    rig: Rig, client: AsyncOpenAI, form: str, *, before: bool, word: str
) -> None:
    talk = await client.conversations.create()
    within: Any = {"conversation": talk.id} if form == "conversation" else {}
    first = await asked(rig, client, SEND, **within)
    question = question_in(first).id
    within = within or {"previous_response_id": first.id}

    async def answer(*answers: Any) -> Any:
        return await client.responses.create(
            model="m", background=True, tools=[BOX], input=list(answers), **within
        )

    one = await answer(approval(question, approve=before))
    with pytest.raises(openai.ConflictError, match=f"was {word} before") as refused:
        await answer(approval(question, approve=not before))
    other = approval(f"{question}_2", approve=before)
    with pytest.raises(openai.BadRequestError, match="not found"):
        await answer(approval(question, approve=before), other)

    assert refused.value.code == "approval_answered"
    assert refused.value.param == "input[0]"
    assert (await answer(approval(question, approve=before))).id == one.id


async def test_the_same_answers_at_the_same_time_are_one_response(
    rig: Rig, client: AsyncOpenAI
) -> None:
    first = await asked(rig, client, SEND)
    question = question_in(first)
    answers = [
        client.responses.create(
            model="m",
            background=True,
            previous_response_id=first.id,
            tools=[BOX],
            input=[approval(question.id, approve=True)],
        )
        for _ in range(5)
    ]

    ids = {each.id for each in await asyncio.gather(*answers)}

    taken = (await loop_of(rig, first).job()).carried_by
    assert ids == {taken.replace("job_", "resp_")}


async def ended(rig: Rig, client: AsyncOpenAI, follow: Any) -> Any:
    """The response after an approval of the call at place 1."""
    loop = loop_of(rig, follow)
    await loop.list_tools("box")
    await loop.decide()
    for call in (await loop.job()).turns[0].calls:
        if call.state == "pending":
            await loop.run(1, call.place, "sent")
    await loop.answer("Done.")
    await loop.decide()
    return await client.responses.retrieve(follow.id)


async def items_in(client: AsyncOpenAI, conversation: str) -> list[Any]:
    return [item async for item in client.conversations.items.list(conversation, order="asc")]


IN_TALK = ("message", "message", "mcp_call", "mcp_approval_request")
"""Of `asked`."""


@pytest.mark.parametrize("approve", [True, False])
async def test_what_is_approved_in_a_conversation_is_added_to_it(
    rig: Rig, client: AsyncOpenAI, *, approve: bool
) -> None:
    talk = await client.conversations.create()
    first = await asked(rig, client, conversation=talk.id)
    question = question_in(first)
    assert [item.type for item in await items_in(client, talk.id)] == [*IN_TALK]
    follow = await client.responses.create(
        model="m",
        background=True,
        conversation=talk.id,
        tools=[BOX],
        input=[question.model_dump(), approval(question.id, approve=approve)],
    )
    done = await ended(rig, client, follow)

    items = await items_in(client, talk.id)
    assert [item.type for item in items] == [
        *(*IN_TALK, "mcp_approval_response", "mcp_call", "message")
    ]
    answer, call, text = items[4:]
    assert (answer.approval_request_id, answer.approve) == (question.id, approve)
    assert (call.output, call.approval_request_id) == ("sent" if approve else None, question.id)
    assert [call.id, text.id] == [item.id for item in done.output if item.type != "mcp_list_tools"]
    assert done.conversation.id == talk.id

    later = await client.responses.create(
        model="m", background=True, conversation=talk.id, input="and now?"
    )
    messages = (await loop_of(rig, later).job()).request.body["messages"]
    assert [message["role"] for message in messages] == [
        *("user", "assistant", "tool", "assistant", "tool", "assistant", "user")
    ]
    assert ("sent" in messages[4]["content"]) is approve


async def test_what_was_said_between_question_and_answer_stands_behind_the_call(
    rig: Rig, client: AsyncOpenAI
) -> None:
    talk = await client.conversations.create()
    first = await asked(rig, client, conversation=talk.id)
    between: Any = {"type": "message", "role": "user", "content": "hurry"}
    await client.conversations.items.create(talk.id, items=[between])
    follow = await client.responses.create(
        model="m",
        background=True,
        conversation=talk.id,
        tools=[BOX],
        input=[approval(question_in(first).id, approve=True)],
    )
    loop = loop_of(rig, follow)
    await loop.list_tools("box")
    await loop.decide()
    await loop.run(1, 1, "sent")

    messages = (await loop.job()).to_run.body["messages"]
    assert [message["role"] for message in messages] == [
        *("user", "assistant", "tool", "tool", "user")
    ]
    assert messages[-1]["content"] == "hurry"


async def test_an_approval_is_answered_in_its_own_conversation_alone(
    rig: Rig, client: AsyncOpenAI
) -> None:
    talk, other = [await client.conversations.create() for _ in range(2)]
    first = await asked(rig, client, SEND, conversation=talk.id)
    apart = await asked(rig, client, SEND)
    for name, question in [
        (other.id, question_in(first).id),
        (talk.id, question_in(apart).id),
        (talk.id, "mcpr_x_1_0"),
        (talk.id, "mcpr_00_1_0"),
        (talk.id, "x"),
    ]:
        with pytest.raises(openai.BadRequestError, match="not found") as refused:
            await client.responses.create(
                model="m",
                conversation=name,
                tools=[BOX],
                input=[approval(question, approve=True)],
            )
        assert refused.value.code == "approval_not_found"
    assert not (await loop_of(rig, first).job()).carried_by


async def test_of_two_answers_in_a_conversation_at_once_one_is_taken(
    rig: Rig, client: AsyncOpenAI
) -> None:
    talk = await client.conversations.create()
    first = await asked(rig, client, SEND, conversation=talk.id)
    answers = [
        client.responses.create(
            model="m",
            background=True,
            conversation=talk.id,
            tools=[BOX],
            input=[approval(question_in(first).id, approve=n % 2 == 0)],
        )
        for n in range(6)
    ]

    found = await asyncio.gather(*answers, return_exceptions=True)

    ids = {each.id for each in found if not isinstance(each, BaseException)}
    refused = [each for each in found if isinstance(each, BaseException)]
    assert len(ids) == 1
    assert len(refused) == 3
    assert all(isinstance(each, openai.ConflictError) for each in refused)
    taken = (await loop_of(rig, first).job()).carried_by
    assert taken == ids.pop().replace("resp_", "job_")


async def test_a_function_of_the_caller_and_an_approval_are_answered_together(
    rig: Rig, client: AsyncOpenAI
) -> None:
    first = await asked(rig, client, SEND, ("c9", "own", "{}"), tools=(BOX, OWN))
    question = question_in(first)
    output: Any = {"type": "function_call_output", "call_id": "c9", "output": "42"}
    more: Any = {"role": "user", "content": "and hurry"}
    with pytest.raises(openai.BadRequestError, match="No tool output found"):
        await client.responses.create(
            model="m",
            previous_response_id=first.id,
            tools=[BOX, OWN],
            input=[approval(question.id, approve=True)],
        )
    follow = await client.responses.create(
        model="m",
        background=True,
        previous_response_id=first.id,
        tools=[BOX, OWN],
        input=[approval(question.id, approve=True), output, more],
    )
    loop = loop_of(rig, follow)
    await loop.list_tools("box")
    await loop.decide()
    await loop.run(1, 0, "sent")

    messages = (await loop.job()).to_run.body["messages"]
    assert [message["role"] for message in messages] == [
        *("user", "assistant", "tool", "tool", "user")
    ]
    assert "sent" in messages[2]["content"]
    assert [message["content"] for message in messages[3:]] == ["42", "and hurry"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"input": [approval("mcpr_x_1_0", approve=True)]}, "approval_not_found"),
        ({"input": []}, "approval_missing"),
        ({"tools": []}, "approval_changed"),
        ({"tools": [{**BOX, "server_label": "other"}]}, "approval_changed"),
        ({"previous_response_id": None}, "invalid_job"),
        ({"conversation": "conv_1"}, "mutually_exclusive_parameters"),
        ({"previous_response_id": f"resp_{'0' * 24}"}, "previous_response_not_found"),
    ],
)
async def test_an_answer_to_what_was_not_asked_is_refused_by_name(
    rig: Rig, client: AsyncOpenAI, change: dict[str, Any], code: str
) -> None:
    second = ("c2", "box__send", '{"to": "bob"}')
    first = await asked(rig, client, SEND, second)
    questions = [item.id for item in first.output if item.type == "mcp_approval_request"]
    given = [approval(each, approve=True) for each in questions]
    if "input" in change:
        given = [given[0], *change["input"]]
    call = {"model": "m", "background": True, "previous_response_id": first.id, "tools": [BOX]}
    answer = await rig.client.post("/v1/responses", json={**call, **change, "input": given})

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == code
    assert not (await loop_of(rig, first).job()).carried_by


async def test_what_is_approved_is_the_call_that_was_asked_for_and_no_edited_one(
    rig: Rig, client: AsyncOpenAI
) -> None:
    first = await asked(rig, client, SEND)
    question = question_in(first).model_dump() | {"arguments": '{"to": "eve"}'}
    answer = await rig.client.post(
        "/v1/responses",
        json={
            "model": "m",
            "previous_response_id": first.id,
            "tools": [BOX],
            "input": [question, approval(question["id"], approve=True)],
        },
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "approval_changed")


async def test_an_answer_that_comes_too_late_is_refused(
    rig: Rig, client: AsyncOpenAI, redis: Redis
) -> None:
    first = await asked(rig, client, SEND)
    loop, question = loop_of(rig, first), question_in(first)
    field = "call:1.0"
    text = await redis.hget(keys.job(loop.job_id), field)
    assert text is not None
    expires = str((await loop.job()).turns[0].calls[0].expires_ms).encode()
    await redis.hset(keys.job(loop.job_id), field, text.replace(expires, b"1"))

    with pytest.raises(openai.BadRequestError, match="has passed"):
        await client.responses.create(
            model="m",
            previous_response_id=first.id,
            tools=[BOX],
            input=[approval(question.id, approve=True)],
        )


async def test_without_an_answer_the_model_is_told_that_nothing_was_approved(
    rig: Rig, client: AsyncOpenAI
) -> None:
    first = await asked(rig, client, SEND)
    follow = await client.responses.create(
        model="m", background=True, previous_response_id=first.id, input="never mind"
    )

    messages = (await loop_of(rig, follow).job()).request.body["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
    assert "not approved" in messages[2]["content"]


async def test_who_may_approve_is_said_by_scope_and_by_policy(
    tool_settings: ApiSettings, store: RedisStore, broker: FakeBroker, redis: Redis
) -> None:
    fields = {"keys_source": "redis", "anonymous_access": AnonymousAccess.OFF}
    policy = {"approvals_by_another_key": True}
    settings = ApiSettings(**(tool_settings.model_dump() | fields | policy))
    scopes = ("jobs:read", "jobs:write", "approvals")
    asking, approving, unable, foreign = [
        (await headers_of(redis, tenant, *allowed))["authorization"].removeprefix("Bearer ")
        for tenant, allowed in [
            *(("acme", scopes), ("acme", scopes), ("acme", scopes[:2]), ("other", scopes))
        ]
    ]
    async with rig_over(settings, store, broker) as rig:
        base = f"{rig.url}/v1"
        async with AsyncOpenAI(base_url=base, api_key=asking, max_retries=0) as client:
            first = await asked(rig, client, SEND)
        call = {"model": "m", "background": True, "previous_response_id": first.id}
        call |= {"tools": [BOX], "input": [approval(question_in(first).id, approve=True)]}
        found = [
            await rig.client.post(
                "/v1/responses", json=call, headers={"authorization": f"Bearer {key}"}
            )
            for key in (asking, unable, foreign, approving)
        ]

    assert [answer.status_code for answer in found] == [403, 403, 400, 200]
    assert "another key" in found[0].text
    assert "lacks the scope approvals" in found[1].text
    assert found[2].json()["error"]["code"] == "previous_response_not_found"


async def test_parameters_that_are_no_schema_are_refused_by_their_place(
    client: AsyncOpenAI,
) -> None:
    wrong: Any = {**OWN, "parameters": {"properties": {"n": {"type": "int"}}}}
    with pytest.raises(openai.BadRequestError, match="must be one of") as refused:
        await client.responses.create(model="m", input="x", tools=[BOX, wrong])
    assert refused.value.param == "tools[1].parameters.properties.n.type"

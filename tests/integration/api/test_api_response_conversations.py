"""Responses that belong to a conversation: what they are given of it, and what they add to it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, ConflictError, NotFoundError
from redis.asyncio import Redis

from eventing.job.job import JobId, JobState
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakeEngine, FakePredictor, chat_result


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def begun(client: AsyncOpenAI, conversation: str, text: str, **fields: Any) -> Any:
    """A response that is under way."""
    return await client.responses.create(
        model="m", input=text, conversation=conversation, background=True, **fields
    )


async def answered(rig: Rig, response: Any, text: str = "yes", **message: Any) -> None:
    predictor = await FakePredictor(rig.store, job_of(response)).start()
    await predictor.finish(chat_result(text, **message))


def job_of(response: Any) -> JobId:
    return JobId(response.id.replace("resp_", "job_"))


async def items(client: AsyncOpenAI, conversation: str) -> list[Any]:
    return [i async for i in client.conversations.items.list(conversation, order="asc")]


async def said(client: AsyncOpenAI, conversation: str) -> list[str]:
    return [item.content[0].text for item in await items(client, conversation)]


async def test_what_was_asked_and_answered_is_added_and_the_next_response_is_given_it(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    made = await client.conversations.create(items=[{"role": "user", "content": "my name is Ann"}])

    first = await client.responses.create(model="m", input="one", conversation=made.id)
    second = await client.responses.create(
        model="m", input="two", conversation={"id": made.id}, instructions="be kind"
    )

    told = ["my name is Ann", "one", engine.answer, "two", engine.answer]
    assert await said(client, made.id) == told
    prompt = engine.played[1].request.body["messages"]
    assert [m["content"] for m in prompt] == ["be kind", *told[:-1]]
    assert [m["role"] for m in prompt] == ["system", "user", "user", "assistant", "user"]
    assert first.conversation is not None
    assert second.conversation is not None
    assert first.conversation.id == second.conversation.id == made.id


async def test_the_items_have_the_ids_that_the_response_shows(
    rig: Rig, client: AsyncOpenAI
) -> None:
    made = await client.conversations.create()
    response = await begun(client, made.id, "x")
    calls = [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "f", "arguments": '{"a": [1, "é/"]}'},
        },
        {"id": "", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    text = 'quote " slash / \\ line\nend \u2028 \x7f \x00 é 𝄞'
    await answered(rig, response, text, reasoning="because", tool_calls=calls)

    ended = await client.responses.retrieve(response.id)
    asked = await client.responses.input_items.list(response.id)

    found = [item.to_dict() for item in await items(client, made.id)]
    shown = [{**i.to_dict(), "status": "completed"} for i in asked.data]
    assert found == [*shown, *(o.to_dict() for o in ended.output)]
    assert len(found) == 5


@pytest.mark.parametrize("message", [{"content": None}, {"content": ""}], ids=["null", "empty"])
async def test_an_answer_without_words_adds_what_was_asked(
    rig: Rig, client: AsyncOpenAI, message: dict[str, Any]
) -> None:
    made = await client.conversations.create()
    response = await begun(client, made.id, "x")

    await answered(rig, response, "", **message)

    assert await said(client, made.id) == ["x"]


@pytest.mark.parametrize(
    "result",
    [
        {"choices": 7},
        {"choices": [7]},
        {"choices": [{"message": 7}]},
        {"choices": [{"message": {"content": {"a": 1}, "tool_calls": [7, {"function": 7}]}}]},
        {"text": "no chat at all"},
    ],
    ids=["choices", "choice", "message", "content", "other"],
)
async def test_a_result_that_is_no_chat_ends_its_job_all_the_same(
    rig: Rig, client: AsyncOpenAI, result: dict[str, Any]
) -> None:
    made = await client.conversations.create()
    response = await begun(client, made.id, "x")
    predictor = await FakePredictor(rig.store, job_of(response)).start()

    await predictor.finish(result)

    assert await rig.store.states([job_of(response)]) == [JobState.COMPLETED]
    assert (await said_by_users(client, made.id))[0] == "x"
    await begun(client, made.id, "the next is let in")


async def said_by_users(client: AsyncOpenAI, conversation: str) -> list[str]:
    found = await items(client, conversation)
    return [item.content[0].text for item in found if getattr(item, "role", "") == "user"]


async def test_two_responses_at_once_are_refused_and_no_item_is_lost(
    rig: Rig, client: AsyncOpenAI
) -> None:
    made = await client.conversations.create()
    first = await begun(client, made.id, "one")

    with pytest.raises(ConflictError) as refused:
        await begun(client, made.id, "two")
    await client.conversations.items.create(made.id, items=[{"role": "user", "content": "aside"}])
    await answered(rig, first, "1")
    await answered(rig, await begun(client, made.id, "two"), "2")

    assert refused.value.code == "conversation_locked"
    assert await said(client, made.id) == ["aside", "one", "1", "two", "2"]


async def test_a_prompt_that_was_made_of_an_older_conversation_is_refused(
    rig: Rig, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await client.conversations.create()
    conversations = rig.parts.submission.conversations
    read = type(conversations).items

    async def read_and_overtaken(self: Any, found: Any, **how: Any) -> Any:
        rows = await read(self, found, **how)
        await conversations.append(found, [{"type": "message", "id": "late", "role": "user"}])
        return rows

    monkeypatch.setattr(type(conversations), "items", read_and_overtaken)
    with pytest.raises(ConflictError) as refused:
        await begun(client, made.id, "one")

    assert refused.value.code == "conversation_moved"


@pytest.mark.parametrize("state", ["failed", "cancelled"])
async def test_a_response_without_an_answer_adds_nothing(
    rig: Rig, client: AsyncOpenAI, state: str
) -> None:
    made = await client.conversations.create()
    response = await begun(client, made.id, "one")

    if state == "failed":
        predictor = await FakePredictor(rig.store, job_of(response)).start()
        await predictor.fail("it_broke")
    else:
        await client.responses.cancel(response.id)
    await answered(rig, await begun(client, made.id, "two"), "2")

    assert await said(client, made.id) == ["two", "2"]


async def test_an_answer_that_was_cut_off_is_added_as_incomplete(
    rig: Rig, client: AsyncOpenAI
) -> None:
    made = await client.conversations.create()
    response = await begun(client, made.id, "one")
    predictor = await FakePredictor(rig.store, job_of(response)).start()
    result = chat_result("ye")
    result["choices"][0]["finish_reason"] = "length"

    await predictor.finish(result, state=JobState.INCOMPLETE)

    assert [i.status for i in await items(client, made.id)] == ["completed", "incomplete"]


async def test_a_redriven_response_takes_the_conversation_again(
    rig: Rig, client: AsyncOpenAI
) -> None:
    made = await client.conversations.create()
    dead = await begun(client, made.id, "one")
    predictor = await FakePredictor(rig.store, job_of(dead)).start()
    await predictor.fail("it_broke")
    other = await begun(client, made.id, "two")
    path = f"/v1/dead-letters/{job_of(dead)}/redrive"

    refused = await rig.client.post(path)
    await answered(rig, other, "2")
    taken = await rig.client.post(path)
    await answered(rig, dead, "1")

    assert (refused.status_code, refused.json()["code"]) == (409, "conversation_locked")
    assert taken.status_code == 202
    assert await said(client, made.id) == ["two", "2", "one", "1"]


async def test_a_deleted_conversation_is_not_brought_back_by_its_response(
    rig: Rig, client: AsyncOpenAI, redis: Redis
) -> None:
    made = await client.conversations.create()
    response = await begun(client, made.id, "one")

    await client.conversations.delete(made.id)
    await answered(rig, response)

    assert (await client.responses.retrieve(response.id)).status == "completed"
    assert await redis.keys(f"*{made.id}*") == []


async def test_a_response_that_lost_its_record_holds_no_conversation(
    rig: Rig, client: AsyncOpenAI, redis: Redis
) -> None:
    made = await client.conversations.create()
    lost = await begun(client, made.id, "one")
    await redis.delete(f"torpor:{{{job_of(lost)}}}")

    await answered(rig, await begun(client, made.id, "two"), "2")

    assert await said(client, made.id) == ["two", "2"]


async def test_the_same_call_under_one_key_is_one_response_also_after_its_end(
    rig: Rig, client: AsyncOpenAI
) -> None:
    made = await client.conversations.create()
    head = {"idempotency-key": "k"}

    first = await begun(client, made.id, "one", extra_headers=head)
    again = await begun(client, made.id, "one", extra_headers=head)
    await answered(rig, first, "1")
    later = await begun(client, made.id, "one", extra_headers=head)

    assert first.id == again.id == later.id
    assert await said(client, made.id) == ["one", "1"]
    with pytest.raises(ConflictError):
        await begun(client, made.id, "another", extra_headers=head)


async def test_a_conversation_answers_without_new_input(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    made = await client.conversations.create(items=[{"role": "user", "content": "hi"}])

    await client.responses.create(model="m", conversation=made.id)

    assert await said(client, made.id) == ["hi", engine.answer]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"previous_response_id": "resp_1"}, "mutually_exclusive_parameters", "conversation"),
        ({"store": False}, "invalid_job", "store"),
    ],
    ids=["previous response", "not stored"],
)
async def test_what_excludes_a_conversation_is_refused(
    client: AsyncOpenAI, fields: dict[str, Any], code: str, param: str
) -> None:
    made = await client.conversations.create()

    with pytest.raises(BadRequestError) as refused:
        await client.responses.create(model="m", input="x", conversation=made.id, **fields)

    assert (refused.value.code, refused.value.param) == (code, param)


async def test_an_unknown_conversation_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError):
        await client.responses.create(model="m", input="x", conversation="conv_" + "0" * 24)

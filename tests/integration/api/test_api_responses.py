"""OpenAI's Responses, asked by the official client, unmodified."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from api.settings import ApiSettings
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, rig_over
from tests.integration.api.fakes import FakeBroker, FakeEngine, FakePredictor, chat_result


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def job_of(response: Any) -> str:
    return str(response.id.replace("resp_", "job_"))


async def eventually(client: AsyncOpenAI, response_id: str) -> Any:
    async with asyncio.timeout(60):
        while (response := await client.responses.retrieve(response_id)).status in (
            "queued",
            "in_progress",
        ):
            await asyncio.sleep(0.02)
    return response


async def test_a_plain_response(client: AsyncOpenAI, engine: FakeEngine) -> None:
    response = await client.responses.create(model="m", input="hi", instructions="be kind")

    assert response.status == "completed"
    assert response.output_text == engine.answer
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 3)
    assert engine.played[0].request.body["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
    ]


async def test_a_background_response_is_queued_at_once(client: AsyncOpenAI) -> None:
    response = await client.responses.create(model="m", input="hi", background=True)

    assert (response.status, response.background, response.output) == ("queued", True, [])


async def test_a_background_response_is_polled_to_its_end(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    response = await client.responses.create(model="m", input="hi", background=True)

    assert (await eventually(client, response.id)).output_text == engine.answer


async def test_a_stream_has_openais_events_in_openais_order(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.answer = "Hello"
    stream = await client.responses.create(model="m", input="hi", stream=True)
    events = [event async for event in stream]

    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(9))


async def test_the_stream_helper_of_the_client_assembles_the_answer(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    async with client.responses.stream(model="m", input="hi") as stream:
        final = await stream.get_final_response()

    assert final.output_text == engine.answer


async def test_keep_alives_between_numbered_events_do_not_break_the_client(
    rig: Rig, client: AsyncOpenAI
) -> None:
    """Its decoder takes an empty line for an event once it has seen an id."""
    stream = await client.responses.create(model="m", input="hi", background=True, stream=True)
    created = await anext(stream)
    await asyncio.sleep(0.5)  # two keep-alives
    await (await rig.predictor(job_of(created.response))).finish(chat_result("x"))  # type: ignore[union-attr]

    assert [event.type async for event in stream][-1] == "response.completed"


async def test_a_background_stream_goes_on_after_a_break(rig: Rig, client: AsyncOpenAI) -> None:
    stream = await client.responses.create(model="m", input="hi", background=True, stream=True)
    created = await anext(stream)
    await anext(stream)
    predictor = await rig.predictor(job_of(created.response))  # type: ignore[union-attr]
    await predictor.chat("He")
    seen = [await anext(stream) for _ in range(4)]
    await stream.close()
    await predictor.chat("llo", "stop")
    await predictor.finish(chat_result("Hello"))

    rest = await client.responses.retrieve(
        created.response.id,  # type: ignore[union-attr]
        stream=True,
        starting_after=seen[-1].sequence_number,
    )
    events = [event async for event in rest]

    assert seen[-1].type == "response.output_text.delta"
    assert [event.sequence_number for event in events] == list(range(6, 11))
    assert events[-1].response.output_text == "Hello"  # type: ignore[union-attr]


async def test_a_stream_survives_a_restart_of_the_api(
    api_settings: ApiSettings, redis: Redis, broker: FakeBroker
) -> None:
    """The second api knows nothing but the store; numbers go on without a gap or a repeat."""
    async with rig_over(api_settings, RedisStore(redis), broker) as first:
        client = AsyncOpenAI(base_url=f"{first.url}/v1", api_key="none", max_retries=0)
        stream = await client.responses.create(model="m", input="hi", background=True, stream=True)
        before = [await anext(stream), await anext(stream)]
        response_id = before[0].response.id  # type: ignore[union-attr]
        predictor = await first.predictor(response_id.replace("resp_", "job_"))
        await predictor.chat("He")
        before += [await anext(stream) for _ in range(4)]
        await client.close()

    async with rig_over(api_settings, RedisStore(redis), broker) as second:
        client = AsyncOpenAI(base_url=f"{second.url}/v1", api_key="none", max_retries=0)
        rest = await client.responses.retrieve(
            response_id, stream=True, starting_after=before[-1].sequence_number
        )
        await predictor.chat("llo", "stop")
        await predictor.finish(chat_result("Hello"))
        after = [event async for event in rest]
        await client.close()

    numbers = [event.sequence_number for event in before + after]
    assert numbers == list(range(len(numbers)))
    assert after[-1].type == "response.completed"


async def test_a_reader_may_leave_and_come_back_after_any_event(
    rig: Rig, client: AsyncOpenAI
) -> None:
    """The answer begins at zero, its predictor dies, and another goes on with it."""
    stream = await client.responses.create(model="m", input="hi", background=True, stream=True)
    created = await anext(stream)
    response_id = created.response.id  # type: ignore[union-attr]
    await stream.close()  # nobody has taken the job yet
    first = await rig.predictor(job_of(created.response))  # type: ignore[union-attr]
    await first.chat("He")
    await rig.store.redis.hset(keys.job(first.job_id), "lease_until_ms", 1)
    second = await rig.predictor(first.job_id)
    await second.chat("llo", "stop")
    await second.finish(chat_result("Hello"))

    async def after(number: int) -> list[Any]:
        rest = await client.responses.retrieve(response_id, stream=True, starting_after=number)
        return [event async for event in rest]

    whole = [created, *await after(0)]

    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert "".join(e.delta for e in whole if e.type == "response.output_text.delta") == "Hello"
    for number in range(1, len(whole)):
        assert await after(number) == whole[number + 1 :]


async def test_a_foreground_response_cannot_be_streamed_later(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    response = await client.responses.create(model="m", input="hi")

    with pytest.raises(openai.BadRequestError, match="not created with background=true"):
        await client.responses.retrieve(response.id, stream=True)


async def test_cancel_is_idempotent(client: AsyncOpenAI) -> None:
    response = await client.responses.create(model="m", input="hi", background=True)

    first = await client.responses.cancel(response.id)
    second = await client.responses.cancel(response.id)

    assert first.status == second.status == "cancelled"


async def test_cancel_after_the_end_gives_the_finished_response(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    response = await client.responses.create(model="m", input="hi", background=True)
    await eventually(client, response.id)

    assert (await client.responses.cancel(response.id)).status == "completed"


async def test_a_foreground_response_cannot_be_cancelled(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    response = await client.responses.create(model="m", input="hi")

    with pytest.raises(openai.BadRequestError):
        await client.responses.cancel(response.id)


async def test_a_deleted_response_is_gone(client: AsyncOpenAI, engine: FakeEngine) -> None:
    response = await client.responses.create(model="m", input="hi")
    await client.responses.delete(response.id)

    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_a_response_that_is_not_stored_cannot_be_asked_for(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    response = await client.responses.create(model="m", input="hi", store=False)

    assert response.output_text == engine.answer
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_a_conversation_goes_on_from_an_earlier_response(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    first = await client.responses.create(model="m", input="one", instructions="first rules")
    second = await client.responses.create(
        model="m", input="two", previous_response_id=first.id, instructions="second rules"
    )

    assert second.previous_response_id == first.id
    assert engine.played[1].request.body["messages"] == [
        {"role": "system", "content": "second rules"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": engine.answer},
        {"role": "user", "content": "two"},
    ]


async def test_input_items_contain_the_whole_conversation(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    first = await client.responses.create(model="m", input="one")
    second = await client.responses.create(model="m", input="two", previous_response_id=first.id)

    items = [i async for i in client.responses.input_items.list(second.id, order="asc", limit=1)]

    assert [item.content[0].text for item in items] == ["one", engine.answer, "two"]  # type: ignore[union-attr]


async def test_metadata_comes_back(client: AsyncOpenAI) -> None:
    response = await client.responses.create(
        model="m", input="hi", background=True, metadata={"order": "17"}
    )

    assert (await client.responses.retrieve(response.id)).metadata == {"order": "17"}


async def test_reasoning_is_an_item_of_its_own(rig: Rig, client: AsyncOpenAI) -> None:
    stream = await client.responses.create(model="m", input="hi", background=True, stream=True)
    created = await anext(stream)
    predictor = await rig.predictor(job_of(created.response))  # type: ignore[union-attr]
    await predictor.say({"index": 0, "delta": {"reasoning_content": "hmm"}})
    await predictor.chat("Yes", "stop")
    await predictor.finish(chat_result("Yes", reasoning="hmm"))
    events = [event async for event in stream]
    response = await client.responses.retrieve(created.response.id)  # type: ignore[union-attr]

    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output == events[-1].response.output  # type: ignore[union-attr]
    assert "response.reasoning_text.delta" in [event.type for event in events]


async def test_a_function_call_is_asked_for_and_answered(rig: Rig, client: AsyncOpenAI) -> None:
    tool: Any = {
        "type": "function",
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    }
    stream = await client.responses.create(
        model="m", input="hi", tools=[tool], background=True, stream=True
    )
    created = await anext(stream)
    job_id = job_of(created.response)  # type: ignore[union-attr]
    call = {"id": "call_1", "type": "function", "function": {"name": "weather"}}
    predictor = await rig.predictor(job_id)
    await predictor.say(
        {"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}},
    )
    call["function"] = {"name": "weather", "arguments": "{}"}
    result = chat_result("", tool_calls=[call])
    await predictor.finish(result)
    events = [event async for event in stream]

    first = await client.responses.retrieve(created.response.id)  # type: ignore[union-attr]
    (item,) = first.output
    assert (item.type, item.name, item.arguments) == ("function_call", "weather", "{}")  # type: ignore[union-attr]
    assert first.output == events[-1].response.output  # type: ignore[union-attr]

    answer: Any = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
    await client.responses.create(
        model="m", input=[answer], previous_response_id=first.id, background=True
    )
    job = await rig.store.get(rig.broker.events[-1].subject)  # type: ignore[arg-type]
    assert job is not None
    said = job.request.body["messages"]
    assert said[1]["tool_calls"][0]["function"]["name"] == "weather"
    assert said[2] == {"role": "tool", "tool_call_id": "call_1", "content": "rain"}


async def test_an_answer_cut_by_its_limit_is_incomplete(rig: Rig, client: AsyncOpenAI) -> None:
    response = await client.responses.create(
        model="m", input="hi", max_output_tokens=16, background=True
    )
    result = chat_result("Once upon")
    result["choices"][0]["finish_reason"] = "length"
    await (await rig.predictor(job_of(response))).finish(result)

    ended = await client.responses.retrieve(response.id)

    assert ended.status == "incomplete"
    assert ended.incomplete_details is not None
    assert ended.incomplete_details.reason == "max_output_tokens"


async def test_a_failure_is_in_the_response(rig: Rig, client: AsyncOpenAI) -> None:
    response = await client.responses.create(model="m", input="hi", background=True)
    await (await rig.predictor(job_of(response))).fail("exhausted", "three tries")

    ended = await client.responses.retrieve(response.id)

    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error.message == "three tries"


async def test_text_format_becomes_the_engines_grammar(rig: Rig, client: AsyncOpenAI) -> None:
    form: Any = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    await client.responses.create(model="m", input="hi", text={"format": form}, background=True)

    job = await rig.store.get(rig.broker.events[0].subject)  # type: ignore[arg-type]
    assert job is not None
    assert job.request.body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True},
    }


async def test_an_answer_that_starts_over_says_so_and_numbers_go_on(
    rig: Rig, client: AsyncOpenAI
) -> None:
    stream = await client.responses.create(model="m", input="hi", background=True, stream=True)
    created = await anext(stream)
    job_id = job_of(created.response)  # type: ignore[union-attr]
    await (await rig.predictor(job_id)).chat("He")
    await rig.store.redis.hset(f"torpor:{{{job_id}}}", "lease_until_ms", 1)
    second = await FakePredictor(rig.store, job_id).start(can_resume=False)
    await second.chat("Good day", "stop")
    await second.finish(chat_result("Good day"))
    events = [event async for event in stream]

    items = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.status for item in items] == ["incomplete", "completed"]  # type: ignore[union-attr]
    assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))


@pytest.mark.parametrize(
    ("call", "param"),
    [
        pytest.param({"input": ""}, "input", id="empty input"),
        pytest.param({"input": [{"type": "dance"}]}, "input[0].type", id="unknown item"),
        pytest.param({"input": "x", "model": "nobody"}, "model", id="unknown model"),
        pytest.param({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", id="tool"),
        pytest.param({"input": "x", "background": "yes"}, "background", id="no boolean"),
        pytest.param({"input": "x", "background": True, "store": False}, "store", id="not stored"),
        pytest.param(
            {"input": "x", "previous_response_id": "resp_x"}, "previous_response_id", id="previous"
        ),
        pytest.param({"input": "x", "max_output_tokens": 0}, "max_output_tokens", id="no tokens"),
        pytest.param({"input": "x", "text": {"format": {"type": "y"}}}, "text.format.type", id="f"),
    ],
)
async def test_a_call_that_can_never_work_names_its_parameter(
    rig: Rig, call: dict[str, Any], param: str
) -> None:
    answer = await rig.client.post("/v1/responses", json={"model": "m"} | call)

    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


async def test_a_client_that_leaves_a_foreground_response_cancels_it(
    rig: Rig, client: AsyncOpenAI
) -> None:
    stream = await client.responses.create(model="m", input="hi", stream=True)
    created = await anext(stream)
    await stream.close()

    job = await rig.client.get(f"/v1/jobs/{job_of(created.response)}?wait=3")  # type: ignore[union-attr]
    assert job.json()["state"] == "cancelled"


async def test_respond_async_makes_it_a_background_response(rig: Rig) -> None:
    answer = await rig.client.post(
        "/v1/responses", json={"model": "m", "input": "x"}, headers={"prefer": "respond-async"}
    )

    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/responses/{answer.json()['id']}"


@pytest.mark.parametrize(
    "change",
    [{"metadata": {"a": "2"}}, {"instructions": "be kind"}, {"background": False, "stream": True}],
    ids=["metadata", "instructions", "in the foreground"],
)
async def test_the_same_key_with_another_wish_is_a_conflict(
    rig: Rig, change: dict[str, Any]
) -> None:
    key = {"idempotency-key": "k"}
    body = {"model": "m", "input": "x", "background": True, "metadata": {"a": "1"}}
    first = await rig.client.post("/v1/responses", json=body, headers=key)
    same = await rig.client.post("/v1/responses", json=body, headers=key)
    other = await rig.client.post("/v1/responses", json=body | change, headers=key)

    assert (first.status_code, same.status_code, other.status_code) == (200, 200, 409)
    assert first.json()["id"] == same.json()["id"]

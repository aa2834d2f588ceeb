"""OpenAI's endpoints, asked by the official client, unmodified."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import orjson
import pytest
from openai import AsyncOpenAI

from eventing.job.job import JobState
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakeEngine, FakePredictor, chat_result

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def the_job(rig: Rig) -> str:
    """The id of the one job, as soon as there is one."""
    async with asyncio.timeout(60):
        while not rig.broker.events:
            await asyncio.sleep(0.01)
    return rig.broker.events[0].subject


async def test_a_chat_completion_is_answered_through_the_queue(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    answer = await client.chat.completions.create(model="m", messages=MESSAGES)

    assert answer.choices[0].message.content == engine.answer
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "engine"  # the one that answered


async def test_a_streamed_chat_completion(client: AsyncOpenAI, engine: FakeEngine) -> None:
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]

    assert "".join(c.choices[0].delta.content or "" for c in chunks) == engine.answer
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_a_stream_has_usage_on_request(client: AsyncOpenAI, engine: FakeEngine) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 7
    for chunk in chunks[:-1]:
        assert chunk.to_dict()["usage"] is None  # OpenAI's sentence: null in all other chunks


async def test_options_of_a_stream_are_refused_without_one(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            model="m", messages=MESSAGES, stream_options={"include_usage": True}
        )

    assert refused.value.param == "stream_options"


async def test_the_stream_helper_of_the_client_assembles_the_answer(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    async with client.chat.completions.stream(model="m", messages=MESSAGES) as stream:
        final = await stream.get_final_completion()

    assert final.choices[0].message.content == engine.answer


async def test_a_completion_is_answered_through_the_queue(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    answer = await client.completions.create(model="m", prompt="Once")

    assert answer.choices[0].text == engine.answer


async def test_the_pieces_of_a_streamed_completion_are_the_answer(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    stream = await client.completions.create(model="m", prompt="Once", stream=True)

    assert "".join([chunk.choices[0].text async for chunk in stream]) == engine.answer


async def test_embeddings_come_one_for_each_input(client: AsyncOpenAI, engine: FakeEngine) -> None:
    answer = await client.embeddings.create(model="m", input=["a", "b"], encoding_format="float")

    assert [item.embedding for item in answer.data] == [[0.5, 0.25], [0.5, 0.25]]


async def test_models_are_listed_while_they_sleep(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["m"]


async def test_one_model_can_be_looked_at(client: AsyncOpenAI) -> None:
    assert (await client.models.retrieve("m")).id == "m"


async def test_an_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody")


async def test_a_refusal_has_openais_body_and_names_the_parameter(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="m", messages=[])

    assert caught.value.param == "messages"
    assert caught.value.code == "invalid_job"
    assert caught.value.type == "invalid_request_error"


async def test_a_request_that_the_engine_refuses_is_a_4xx(rig: Rig, client: AsyncOpenAI) -> None:
    async with asyncio.TaskGroup() as group:
        call = group.create_task(_caught(client))
        predictor = await rig.predictor(await the_job(rig))
        await predictor.fail("bad_request", "temperature must be positive", "body.temperature")

    error = call.result()
    assert isinstance(error, openai.BadRequestError)
    assert error.param == "temperature"


async def test_a_request_that_the_engine_fails_is_a_5xx(rig: Rig, client: AsyncOpenAI) -> None:
    async with asyncio.TaskGroup() as group:
        call = group.create_task(_caught(client))
        await (await rig.predictor(await the_job(rig))).fail("exhausted")

    assert isinstance(call.result(), openai.InternalServerError)


async def test_an_answer_that_was_too_large_to_keep_is_the_callers_to_change(
    rig: Rig, client: AsyncOpenAI
) -> None:
    async with asyncio.TaskGroup() as group:
        call = group.create_task(_caught(client))
        await (await rig.predictor(await the_job(rig))).fail("result_too_large")

    assert isinstance(call.result(), openai.BadRequestError)


async def _caught(client: AsyncOpenAI) -> openai.APIError:
    with pytest.raises(openai.APIError) as caught:
        await client.chat.completions.create(model="m", messages=MESSAGES)
    return caught.value


async def lost_half_way(rig: Rig) -> str:
    """The id of the only job, whose predictor said "He" and was never heard of again."""
    job_id = await the_job(rig)
    await (await rig.predictor(job_id)).chat("He")
    await rig.store.redis.hset(f"torpor:{{{job_id}}}", "lease_until_ms", 1)
    return job_id


async def test_a_failure_half_way_is_an_error_in_the_stream(rig: Rig, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    predictor = await rig.predictor(await the_job(rig))
    await predictor.chat("He")
    await predictor.fail("exhausted")

    with pytest.raises(openai.APIError, match="it broke"):
        [chunk async for chunk in stream]


async def test_an_answer_that_starts_over_never_shows_text_twice(
    rig: Rig, client: AsyncOpenAI
) -> None:
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    job_id = await lost_half_way(rig)
    await FakePredictor(rig.store, job_id).start(can_resume=False)

    with pytest.raises(openai.APIError, match="started over"):
        [chunk async for chunk in stream]


async def test_an_answer_that_goes_on_elsewhere_is_one_answer(
    rig: Rig, client: AsyncOpenAI
) -> None:
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    job_id = await lost_half_way(rig)
    second = await rig.predictor(job_id)
    await second.chat("llo", "stop")
    await second.finish(chat_result("Hello"))

    text = "".join([c.choices[0].delta.content or "" async for c in stream])

    assert text == "Hello"


async def test_a_client_that_leaves_a_stream_cancels_its_job(rig: Rig, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    job_id = await the_job(rig)
    await stream.close()

    assert await _ends(rig, job_id) == "cancelled"


async def test_a_client_that_leaves_a_plain_call_cancels_its_job(rig: Rig) -> None:
    body = {"model": "m", "messages": MESSAGES}
    with pytest.raises(httpx.ReadTimeout):
        await rig.client.post("/v1/chat/completions", json=body, timeout=0.3)

    assert await _ends(rig, await the_job(rig)) == "cancelled"


async def test_a_client_with_a_key_may_come_back_for_its_answer(rig: Rig) -> None:
    body = {"model": "m", "messages": MESSAGES}
    key = {"idempotency-key": "k"}
    with pytest.raises(httpx.ReadTimeout):
        await rig.client.post("/v1/chat/completions", json=body, headers=key, timeout=0.3)
    await (await rig.predictor(await the_job(rig))).finish(chat_result("four"))

    answer = await rig.client.post("/v1/chat/completions", json=body, headers=key)

    assert answer.json()["choices"][0]["message"]["content"] == "four"
    assert len(rig.broker.events) == 1


async def _ends(rig: Rig, job_id: str) -> str:
    job = (await rig.client.get(f"/v1/jobs/{job_id}?wait=3")).json()
    return str(job["state"])


async def test_respond_async_answers_with_the_job_at_once(rig: Rig) -> None:
    answer = await rig.client.post(
        "/v1/chat/completions",
        json={"model": "m", "messages": MESSAGES, "stream": True},
        headers={"prefer": "respond-async, wait=10"},
    )

    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    job = (await rig.client.get(answer.headers["location"])).json()
    assert job["state"] == JobState.QUEUED


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/v1/responses", {"input": "hi"}),
    ],
)
async def test_every_call_of_openais_can_be_answered_later(
    rig: Rig, path: str, body: dict[str, Any]
) -> None:
    answer = await rig.client.post(
        path, json={"model": "m", **body}, headers={"prefer": "wait=1, respond-async"}
    )

    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert (await rig.client.get(answer.headers["location"])).status_code == 200


async def test_a_waiting_stream_is_kept_open_with_lines_of_one_blank(rig: Rig) -> None:
    body = {"model": "m", "messages": MESSAGES, "stream": True}
    async with rig.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.aiter_lines()

        assert [await anext(lines) for _ in range(3)] == [" ", " ", " "]


async def test_a_reader_that_splits_a_stream_at_empty_lines_loses_nothing(rig: Rig) -> None:
    """As `vllm bench serve` and Dify read: what begins with a colon is skipped, to the empty line."""
    body = {"model": "m", "messages": MESSAGES, "stream": True}
    async with rig.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        pieces = answer.aiter_bytes()
        raw = await anext(pieces)
        await asyncio.sleep(0.5)  # two keep-alives
        predictor = await rig.predictor(answer.headers["torpor-job-id"])
        await predictor.chat("He")
        await predictor.chat("llo", "stop")
        await predictor.finish(chat_result("Hello"))
        async for piece in pieces:
            raw += piece

    messages = [message.strip() for message in raw.split(b"\n\n") if message.strip()]
    assert all(message.startswith(b"data: ") for message in messages)
    assert messages[-1] == b"data: [DONE]"
    chunks = [orjson.loads(message.removeprefix(b"data: ")) for message in messages[:-1]]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == "Hello"


async def test_a_batch_waits_behind_people(rig: Rig, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    await the_job(rig)
    await stream.close()

    assert rig.broker.events[0].extensions["priority"] == "interactive"


async def test_what_was_not_asked_of_the_prompt_is_null_as_in_vllms_answers(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    chat = await client.chat.completions.create(
        model="m", messages=MESSAGES, extra_body={"logprobs": "true"}
    )

    assert chat.to_dict()["prompt_logprobs"] is None
    assert chat.to_dict()["prompt_token_ids"] is None

"""A stream that looks whole is whole: a reader that missed something, or was shown what the store has lost since, is
told so.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from api.job import live
from eventing.job.job import JobId
from eventing.redis import keys
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import chat_result, names_of, sse_events

WORDS = [f"w{number} " for number in range(300)]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


@pytest.fixture
def late(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes by the live tail, as in a process that has just woken; records are looked at soon."""

    async def nothing_yet(*_: Any) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(rig.parts.streams, "_read", nothing_yet)
    monkeypatch.setattr(live, "_LOOK_AGAIN_S", 0.1)


async def chat_lines(rig: Rig, **headers: str) -> AsyncIterator[str]:
    """The data lines of a streamed chat call."""
    async with rig.client.stream(
        "POST", "/v1/chat/completions", json=CHAT, headers=headers
    ) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")


async def the_job(rig: Rig) -> str:
    async with asyncio.timeout(60):
        while not rig.broker.events:
            await asyncio.sleep(0.01)
    return rig.broker.events[-1].subject


def text_of(lines: list[str]) -> str:
    chunks = [orjson.loads(line) for line in lines if line != "[DONE]"]
    return "".join(
        c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices")
    )


async def shown(lines: AsyncIterator[str], word: str) -> list[str]:
    """The lines up to the one that shows `word`."""
    seen: list[str] = []
    async for line in lines:
        seen.append(line)
        if word in line:
            break
    return seen


def error_in(lines: list[str]) -> Any:
    assert "[DONE]" not in lines
    return orjson.loads(lines[-1])["error"]["code"]


async def test_a_chat_stream_that_learns_of_the_end_before_its_last_tokens_is_whole(
    rig: Rig, late: None
) -> None:
    reading = asyncio.create_task(shown(chat_lines(rig), "[DONE]"))
    predictor = await rig.predictor(await the_job(rig))
    for word in WORDS:
        await predictor.chat(word)
    await predictor.finish(chat_result("".join(WORDS)))

    assert text_of(await reading) == "".join(WORDS)


async def test_the_events_of_a_job_whose_end_is_known_before_its_last_tokens_are_whole(
    rig: Rig, late: None
) -> None:
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    async with rig.client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        events = sse_events(answer.aiter_lines())
        seen = [await anext(events), await anext(events)]
        for word in WORDS:
            await predictor.chat(word)
        await predictor.finish(chat_result("".join(WORDS)))
        seen += [event async for event in events if "event" in event]

    assert names_of(seen) == ["state", "attempt", *["tokens"] * len(WORDS), "state", "result"]


async def forget_after(rig: Rig, job_id: str, count: int) -> None:
    """The store comes back as it was when the job had `count` tokens: a failover to a replica that lagged."""
    redis, job = rig.store.redis, JobId(job_id)
    for cursor, fields in await redis.xrange(keys.tokens(job)):
        if int(fields.get(b"index", 0)) >= count:
            await redis.xdel(keys.tokens(job), cursor)
    await redis.hset(keys.job(job), mapping={"token_count": count, "lease_until_ms": 1})


async def test_a_chat_stream_whose_tail_the_store_lost_ends_in_an_error(rig: Rig) -> None:
    lines = chat_lines(rig)
    reading = asyncio.create_task(shown(lines, "three"))
    job_id = await the_job(rig)
    predictor = await rig.predictor(job_id)
    for word in ("one ", "two ", "three "):
        await predictor.chat(word)
    seen = await reading

    await forget_after(rig, job_id, 1)
    second = await rig.predictor(job_id)
    for word in ("two ", "three "):
        await second.chat(word)
    await second.finish(chat_result("one two three"))
    seen += [line async for line in lines]

    assert error_in(seen) == "stream_rewound"
    assert text_of(seen) == "one two three "


async def test_the_reader_of_a_job_whose_tail_the_store_lost_starts_over(rig: Rig) -> None:
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    async with rig.client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        events = sse_events(answer.aiter_lines())
        for word in ("one ", "two ", "three "):
            await predictor.chat(word)
        text = ""
        async for event in events:
            text = after(text, event)
            if "three" in text:
                break
        await forget_after(rig, job_id, 1)
        second = await rig.predictor(job_id)
        await second.chat("zwei")
        await second.finish(chat_result("one zwei"))
        async for event in events:
            text = after(text, event)

    assert text == "one zwei"


def after(text: str, event: dict[str, str]) -> str:
    """What a client shows after an event, as the console does it."""
    match event.get("event"):
        case "attempt" if orjson.loads(event["data"])["is_restart"]:
            return ""
        case "tokens":
            return text + orjson.loads(event["data"])["delta"][0]["delta"]["content"]
        case _:
            return text


async def test_a_cursor_that_the_store_has_lost_starts_over(rig: Rig) -> None:
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    for word in ("one ", "two "):
        await predictor.chat(word)
    cursor = (await rig.store.read_stream(JobId(job_id)))[-1].cursor
    await forget_after(rig, job_id, 1)
    second = await rig.predictor(job_id)
    await second.chat("zwei")
    await second.finish(chat_result("one zwei"))

    answer = await rig.client.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": cursor})

    text = "one two "
    async for event in sse_events(answer.aiter_lines()):
        text = after(text, event)
    assert text == "one zwei"


async def with_a_hole(rig: Rig) -> str:
    """A job that has ended, of whose three tokens the stream has the first and the last."""
    job_id = await rig.submit(headers={"idempotency-key": "k"}, priority="interactive")
    predictor = await rig.predictor(job_id)
    for word in ("one ", "two ", "three"):
        await predictor.chat(word)
    await predictor.finish(chat_result("one two three"))
    entries = await rig.store.read_stream(JobId(job_id))
    (hole,) = [entry.cursor for entry in entries if '"two ' in entry.delta]
    await rig.store.redis.xdel(keys.tokens(JobId(job_id)), hole)
    return job_id


async def chat_again(rig: Rig) -> list[str]:
    """The same job again under its key, streamed as a chat."""
    return [line async for line in chat_lines(rig, **{"idempotency-key": "k"})]


async def test_a_gap_in_a_chat_stream_ends_it_in_an_error(rig: Rig) -> None:
    await with_a_hole(rig)

    assert error_in(await chat_again(rig)) == "stream_gap"


async def test_a_gap_in_a_response_stream_ends_it_in_an_error(rig: Rig) -> None:
    call = {"model": "m", "input": "hi", "background": True, "stream": True}
    async with rig.client.stream("POST", "/v1/responses", json=call) as answer:
        events = sse_events(answer.aiter_lines())
        await anext(events)
        job_id = await the_job(rig)
        predictor = await rig.predictor(job_id)
        await predictor.chat("one ")
        predictor.index = 2
        await rig.store.redis.hset(keys.job(JobId(job_id)), "token_count", 2)
        await predictor.chat("three")
        await predictor.finish(chat_result("one two three"))
        seen = [event async for event in events if "event" in event]

    assert seen[-1]["event"] == "error"
    assert "response.completed" not in names_of(seen)


async def test_a_gap_in_a_jobs_events_is_reported_where_it_is(rig: Rig) -> None:
    job_id = await with_a_hole(rig)

    answer = await rig.client.get(f"/v1/jobs/{job_id}/events")

    names = names_of([event async for event in sse_events(answer.aiter_lines())])
    assert names == ["state", "attempt", "tokens", "gap", "tokens", "state", "result"]


async def test_missing_last_tokens_are_a_gap_before_the_end(rig: Rig) -> None:
    job_id = await with_a_hole(rig)
    entries = await rig.store.read_stream(JobId(job_id))
    for entry in entries[2:]:
        await rig.store.redis.xdel(keys.tokens(JobId(job_id)), entry.cursor)

    assert error_in(await chat_again(rig)) == "stream_gap"


async def test_an_answer_whose_tokens_are_not_kept_any_more_comes_in_one_chunk(rig: Rig) -> None:
    job_id = await rig.submit(headers={"idempotency-key": "k"}, priority="interactive")
    await (await rig.predictor(job_id)).finish(chat_result("four"))

    lines = await chat_again(rig)

    assert text_of(lines) == "four"
    assert orjson.loads(lines[-2])["choices"][0]["finish_reason"] == "stop"
    assert lines[-1] == "[DONE]"


async def test_a_socket_says_by_its_code_that_the_job_was_deleted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    websockets = pytest.importorskip("websockets")
    monkeypatch.setattr(live, "_LOOK_AGAIN_S", 0.1)
    job_id = await rig.submit()
    await rig.predictor(job_id)
    async with websockets.connect(f"{rig.url}/v1/jobs/{job_id}/ws".replace("http", "ws")) as socket:
        await socket.recv()
        await socket.recv()
        await rig.store.redis.delete(keys.job(JobId(job_id)), keys.tokens(JobId(job_id)))
        await socket.wait_closed()

    assert socket.close_code == 4404

"""A job's events over SSE: everything once, in order, from wherever a reader left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest

from api.job import live
from api.settings import ApiSettings
from eventing.errors import Unavailable
from eventing.job.job import Job, JobId
from eventing.redis import keys
from eventing.settings import ModelCard
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, rig_over
from tests.integration.api.fakes import FakeBroker, chat_result, names_of, sse_events
from torpor.client import AsyncClient


@asynccontextmanager
async def following(
    rig: Rig, job_id: str, **headers: str
) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
    path = f"/v1/jobs/{job_id}/events"
    async with rig.client.stream("GET", path, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield sse_events(answer.aiter_lines())


@asynccontextmanager
async def following_a_start(rig: Rig) -> AsyncIterator[tuple[str, AsyncIterator[dict[str, str]]]]:
    """A job that runs, and what its reader gets after having seen it start."""
    job_id = await rig.submit()
    await rig.predictor(job_id)
    async with asyncio.timeout(60), following(rig, job_id) as events:
        assert [(await anext(events))["event"] for _ in range(2)] == ["state", "attempt"]
        yield job_id, events


async def everything(rig: Rig, job_id: str, **headers: str) -> list[dict[str, str]]:
    async with following(rig, job_id, **headers) as events:
        return [event async for event in events]


async def test_a_live_reader_sees_the_whole_life(rig: Rig) -> None:
    job_id = await rig.submit()

    async with following(rig, job_id) as events:
        seen = [await anext(events)]
        predictor = await rig.predictor(job_id)
        await predictor.chat("Hello")
        await predictor.chat(" you", "stop")
        await predictor.finish(chat_result("Hello you"))
        seen += [event async for event in events]

    assert names_of(seen) == ["state", "attempt", "tokens", "tokens", "state", "result"]


async def test_a_late_reader_sees_the_same_as_a_live_one(rig: Rig) -> None:
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    await predictor.chat("Hello")
    await predictor.finish(chat_result("Hello"))

    seen = await everything(rig, job_id)

    assert names_of(seen) == ["state", "attempt", "tokens", "state", "result"]
    assert orjson.loads(seen[2]["data"])["delta"] == [{"index": 0, "delta": {"content": "Hello"}}]


async def test_a_reader_goes_on_after_the_last_event_it_saw(rig: Rig) -> None:
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    for word in ("one", "two", "three"):
        await predictor.chat(word)
    await predictor.finish(chat_result("onetwothree"))
    whole = await everything(rig, job_id)
    (cut,) = [i for i, e in enumerate(whole) if '"two"' in e["data"]]

    rest = await everything(rig, job_id, **{"Last-Event-ID": whole[cut]["id"]})

    assert rest == whole[cut + 1 :]


async def test_a_reader_that_resumes_after_the_end_gets_204(rig: Rig) -> None:
    job_id = await rig.submit()
    await (await rig.predictor(job_id)).finish(chat_result("x"))
    end = (await everything(rig, job_id))[-1]["id"]

    answer = await rig.client.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": end})

    assert answer.status_code == 204


async def test_a_silent_stream_is_kept_open_with_lines_of_one_blank(rig: Rig) -> None:
    job_id = await rig.submit()

    async with rig.client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        events = sse_events(answer.aiter_lines(), with_keep_alives=True)
        while "blank" not in await anext(events):
            continue


async def test_a_new_attempt_is_announced_with_where_it_goes_on(rig: Rig) -> None:
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    await predictor.chat("Hello")
    await rig.store.redis.hset(f"torpor:{{{job_id}}}", "lease_until_ms", 1)
    second = await rig.predictor(job_id)
    await second.finish(chat_result("Hello"))

    seen = await everything(rig, job_id)

    attempts = [orjson.loads(e["data"]) for e in seen if e.get("event") == "attempt"]
    assert [(a["attempt"], a["index"]) for a in attempts] == [(1, 0), (2, 1)]


async def test_two_readers_of_one_job_see_the_same(rig: Rig) -> None:
    job_id = await rig.submit()

    async with following(rig, job_id) as one, following(rig, job_id) as other:
        first, second = [await anext(one)], [await anext(other)]
        predictor = await rig.predictor(job_id)
        await predictor.chat("Hello")
        await predictor.finish(chat_result("Hello"))
        first += [event async for event in one]
        second += [event async for event in other]

    assert first == second


async def test_cancel_ends_the_stream(rig: Rig) -> None:
    job_id = await rig.submit()

    async with following(rig, job_id) as events:
        await anext(events)
        await rig.client.delete(f"/v1/jobs/{job_id}")
        rest = [event async for event in events if "event" in event]

    assert names_of(rest) == ["state", "result"]
    assert orjson.loads(rest[-1]["data"])["state"] == "cancelled"


async def test_readers_that_leave_are_let_go(rig: Rig) -> None:
    job_id = await rig.submit()
    async with following(rig, job_id) as events:
        await anext(events)

    async with asyncio.timeout(60):
        while rig.parts.streams.reader_count:
            await asyncio.sleep(0.02)


async def test_a_store_that_goes_away_for_a_while_only_makes_a_pause(rig: Rig) -> None:
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)

    async with following(rig, job_id) as events:
        assert (await anext(events))["event"] == "state"
        assert (await anext(events))["event"] == "attempt"
        await _drop_every_connection(rig)
        await predictor.chat("Hello")
        await predictor.finish(chat_result("Hello"))
        rest = [event async for event in events if "event" in event]

    assert names_of(rest) == ["tokens", "state", "result"]


async def test_a_reader_of_a_running_job_that_is_deleted_is_let_go(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written to a stream that is gone, so the record is looked at now and then."""
    monkeypatch.setattr(live, "_LOOK_AGAIN_S", 0.1)

    async with following_a_start(rig) as (job_id, events):
        await rig.store.redis.delete(keys.job(JobId(job_id)), keys.tokens(JobId(job_id)))
        rest = [event async for event in events]

    assert {"comment": "the job was deleted"} in rest


async def test_the_record_is_not_read_while_tokens_come(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was, every 15 s for each reader: all that had come together paused the others for 200 ms."""
    read_now, reads = live.job_now, list[str]()

    async def noted(deps: live.LiveDeps, job: Job, *, with_result: bool = True) -> Job:
        reads.append(job.id)
        return await read_now(deps, job, with_result=with_result)

    monkeypatch.setattr(live, "_LOOK_AGAIN_S", 1.0)
    monkeypatch.setattr(live, "job_now", noted)
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    async with asyncio.timeout(60), following(rig, job_id) as events:
        for _ in range(18):
            await asyncio.sleep(0.1)
            await predictor.chat("Hello")
        reads_while_tokens_came = len(reads)
        while not reads:
            await asyncio.sleep(0.01)
        await predictor.finish(chat_result("Hello" * 18))
        seen = [event async for event in events if "event" in event]

    assert names_of(seen) == ["state", "attempt", *["tokens"] * 18, "state", "result"]
    assert reads_while_tokens_came == 0


async def test_an_end_missing_from_the_stream_is_found_in_the_record(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_LOOK_AGAIN_S", 0.1)

    async with following_a_start(rig) as (job_id, events):
        await rig.store.redis.hset(keys.job(JobId(job_id)), "state", "completed")
        rest = [event async for event in events if "event" in event]

    assert names_of(rest) == ["result"]


async def test_a_cursor_without_its_second_number_is_refused(rig: Rig) -> None:
    """It reached the store, which knows no such thing, and took all live readers with it."""
    job_id = await rig.submit()

    answer = await rig.client.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": "5-"})

    assert answer.status_code == 400


async def _drop_every_connection(rig: Rig) -> None:
    """As a failover does it; the first commands afterwards fail."""
    await rig.store.redis.client_kill_filter(_type="normal", skipme=True)
    for _ in range(64):
        try:
            await rig.store.ping()
        except Unavailable:
            continue
        break


LONG = "x" * 1_000_000


async def test_no_line_of_a_stream_is_too_long_for_a_default_reader(rig: Rig) -> None:
    """aiohttp refuses lines of 128 KiB; a result that is longer stands behind a link."""
    job_id = await rig.submit()
    await (await rig.predictor(job_id)).finish(chat_result(LONG))
    async with aiohttp.ClientSession(rig.url) as session:
        async with session.get(f"/v1/jobs/{job_id}/events") as answer:
            lines = [line async for line in answer.content]
        ended = orjson.loads([line for line in lines if line.startswith(b"data: ")][-1][6:])
        async with session.get(ended["links"]["result"]) as answer:
            result = await answer.json()

    assert ended["result"] is None
    assert result["choices"][0]["message"]["content"] == LONG


async def test_our_own_client_follows_the_link_to_a_long_result(rig: Rig) -> None:
    job_id = await rig.submit()
    await (await rig.predictor(job_id)).finish(chat_result(LONG))
    async with AsyncClient(rig.url) as torpor:
        events = [event async for event in torpor.stream(job_id)]

    assert events[-1].data["result"]["choices"][0]["message"]["content"] == LONG


async def test_long_instructions_are_not_repeated_in_the_events_of_a_response(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> None:
    wide = api_settings.model_copy(
        update={"models": (ModelCard(name="m", context_tokens=1_000_000),)}
    )
    body = {"model": "m", "input": "hi", "stream": True, "instructions": "x" * 150_000}
    async with (
        rig_over(wide, store, broker) as rig,
        aiohttp.ClientSession(rig.url) as session,
        session.post("/v1/responses", json=body) as answer,
    ):
        predictor = await rig.predictor(answer.headers["torpor-job-id"])
        await predictor.chat("Hello", "stop")
        await predictor.finish(chat_result("Hello"))
        lines = [line async for line in answer.content]

    assert orjson.loads(lines[-2][6:])["type"] == "response.completed"

"""The feed of a tenant's results: `GET /v1/events`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from api.job import result_feed
from eventing.job.job import JobId
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.fakes import sse_events


@pytest.fixture
async def api(redis_url: str, store: RedisStore) -> AsyncIterator[ApiWithJobs]:
    async with api_with_jobs(settings_for(redis_url), store) as made:
        yield made


@asynccontextmanager
async def listening(
    api: ApiWithJobs, **headers: str
) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
    """The events of a reader who is there already."""
    async with (
        api.client.stream("GET", "/v1/events", headers=headers) as answer,
        asyncio.timeout(60),
    ):
        assert answer.status_code == 200

        async def events() -> AsyncIterator[dict[str, str]]:
            async for event in sse_events(answer.aiter_lines()):
                if "event" in event:
                    yield event

        yield events()


async def answered(api: ApiWithJobs, text: str = "four") -> str:
    job_id = await api.submit()
    await api.answer(job_id, text)
    return job_id


async def test_results_come_as_cloud_events(api: ApiWithJobs) -> None:
    async with listening(api) as events:
        job_id = await answered(api)
        event = await anext(events)

    assert event["event"] == "dev.torpor.inference.completed.v1"
    body = orjson.loads(event["data"])
    assert (body["subject"], body["specversion"]) == (job_id, "1.0")
    assert body["data"]["response"]["choices"][0]["message"]["content"] == "four"


async def test_a_reader_sees_only_what_comes(api: ApiWithJobs) -> None:
    await answered(api)
    async with listening(api) as events:
        later = await answered(api)

        assert orjson.loads((await anext(events))["data"])["subject"] == later


async def test_a_reader_goes_on_after_the_last_event_it_saw(api: ApiWithJobs) -> None:
    jobs = [await answered(api) for _ in range(3)]
    async with listening(api, **{"Last-Event-ID": "0-0"}) as events:
        first = await anext(events)
    async with listening(api, **{"Last-Event-ID": first["id"]}) as events:
        rest = [await anext(events) for _ in range(2)]

    assert [orjson.loads(e["data"])["subject"] for e in (first, *rest)] == jobs


async def test_a_redelivered_end_is_in_the_feed_once(api: ApiWithJobs) -> None:
    first = await answered(api)
    await api.deliver(first)
    second = await answered(api)

    async with listening(api, **{"Last-Event-ID": "0-0"}) as events:
        seen = [await anext(events) for _ in range(2)]

    assert [orjson.loads(e["data"])["subject"] for e in seen] == [first, second]


async def test_a_reader_with_a_cursor_older_than_the_feed_gets_a_gap_event(
    api: ApiWithJobs,
) -> None:
    await answered(api)

    async with listening(api, **{"Last-Event-ID": "1-0"}) as events:
        assert (await anext(events))["event"] == "gap"
        assert (await anext(events))["event"].endswith("completed.v1")


async def test_another_tenants_results_are_not_seen(api: ApiWithJobs) -> None:
    job_id = await answered(api)
    job = await api.store.get(JobId(job_id))
    assert job is not None

    assert [ended async for ended in api.parts.results.page("somebody", "0-0")] == []


async def test_a_reader_over_the_limit_gets_503_with_retry_after(
    api: ApiWithJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_feed, "READERS", 1)
    async with listening(api) as events:
        await answered(api)
        await anext(events)
        answer = await api.client.get("/v1/events")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_the_feed_is_bounded(api: ApiWithJobs) -> None:
    async with api.store.redis.pipeline(transaction=False) as pipe:
        for _ in range(10_150):  # more than one of the strides in which the store trims
            pipe.xadd("torpor:results:default", {"job": "job_x", "attempt": 1})
        await pipe.execute()
    await answered(api)

    assert await api.store.redis.xlen("torpor:results:default") < 10_110

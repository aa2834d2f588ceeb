"""Ends without a predictor (a sweep's, a cancel's) reach every listener too."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from eventing.job.job import JobId
from eventing.outbox.outbox import run_deadlines
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.fakes import sse_events


@pytest.fixture
async def api(redis_url: str, store: RedisStore) -> AsyncIterator[ApiWithJobs]:
    async with api_with_jobs(settings_for(redis_url, limit_jobs_in_flight=1), store) as made:
        yield made


async def dead_letters(api: ApiWithJobs) -> float:
    """What the alert on dead letters reads."""
    page = (await api.client.get("/metrics")).text
    (line,) = [
        line
        for line in page.splitlines()
        if line.startswith("torpor_dead_letters_total{") and 'trigger="requests-m"' in line
    ]
    return float(line.rsplit(" ", 1)[1])


async def test_an_end_made_by_the_sweep_reaches_feed_webhooks_metrics_and_limits(
    api: ApiWithJobs,
) -> None:
    # 18 of 477 ends were missing from the feed, 9 of 11 failed jobs among them, and with four dead
    # letters the counter said 0; a deadline waited for a predictor.
    before = await dead_letters(api)
    sweep = asyncio.ensure_future(run_deadlines(api.store))
    async with api.client.stream("GET", "/v1/events") as answer, asyncio.timeout(60):
        lines = sse_events(answer.aiter_lines(), with_keep_alives=True)
        await anext(lines)  # it is there
        job_id = await api.submit(expires_after=1, webhook={"url": "http://127.0.0.1:9/"})
        async for event in lines:
            if "event" in event:
                break
    sweep.cancel()
    await api.until_told()

    told = orjson.loads(event["data"])
    assert (event["event"], told["subject"]) == ("dev.torpor.inference.failed.v1", job_id)
    assert told["data"]["error"]["code"] == "expired"
    assert told["data"]["attempts"] == []  # nobody was woken for it
    assert await dead_letters(api) == before + 1
    (delivery,) = await api.parts.webhooks.store.of("default", f"{job_id}")
    assert delivery.type == "response.failed"
    await api.submit()  # its place among the tenant's jobs is free


async def test_a_deleted_response_that_waited_is_never_run(api: ApiWithJobs) -> None:
    # It said `deleted`, and its event made the record anew, prompt and all.
    created = await api.client.post(
        "/v1/responses", json={"model": "m", "input": "secret", "background": True}
    )
    response_id = created.json()["id"]
    job_id = JobId(response_id.replace("resp_", "job_"))

    deleted = await api.client.delete(f"/v1/responses/{response_id}")
    event = api.broker.events[0]
    taken = await api.store.acquire(job_id, "predictor", can_resume=True)

    assert deleted.json()["deleted"] is True
    assert event.subject == job_id
    assert taken.status == "missing"
    assert await api.store.redis.hgetall(keys.job(job_id)) == {b"deleted": b"1"}
    assert (await api.client.get(f"/v1/responses/{response_id}")).status_code == 404

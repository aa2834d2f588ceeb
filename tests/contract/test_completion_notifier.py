"""Callers that wait for a job's end are notified, whichever script ended it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from eventing.job.job import Job, JobError, JobState
from eventing.job.store import Ending, LeaseSettings, ReleaseReason
from eventing.live.completion_notifier import CompletionNotifier
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.contract.rig import finish, new_job
from tests.redis_server import RedisServer
from tests.time_limits import STORE_S

DONE = Ending(state=JobState.COMPLETED, result={"a": 1})
WRONG = JobError(code="c", message="m")


@asynccontextmanager
async def ringing(store: RedisStore) -> AsyncIterator[CompletionNotifier]:
    """A bell that listens."""
    bell = CompletionNotifier(store.redis)
    listening = asyncio.ensure_future(bell.run())
    async with asyncio.timeout(60):
        while not any("xread" in each["cmd"] for each in await store.redis.client_list()):
            await asyncio.sleep(0.005)
    try:
        yield bell
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    made = RedisStore(connect(redis_url, timeout_s=STORE_S), LeaseSettings(max_attempts=1))
    yield made
    await made.close()


async def finished(store: RedisStore, job: Job) -> None:
    taken = await store.acquire(job.id, "w", can_resume=True)
    await finish(store, taken.lease, DONE)


async def cancelled(store: RedisStore, job: Job) -> None:
    await store.cancel(job.id)


async def exhausted(store: RedisStore, job: Job) -> None:
    taken = await store.acquire(job.id, "w", can_resume=True)
    await store.release(taken.lease, ReleaseReason.FAILURE, WRONG)


@pytest.mark.parametrize("end", [finished, cancelled, exhausted])
async def test_an_end_is_heard_of(
    store: RedisStore, end: Callable[[RedisStore, Job], Awaitable[None]]
) -> None:
    job, _ = await store.submit(new_job(f"bell {end.__name__}"))

    async with ringing(store) as bell:
        with bell.expecting(job.id) as news:
            assert not news.is_set()
            await end(store, job)
            async with asyncio.timeout(60):
                await news.wait()


async def test_tokens_ring_no_bell(store: RedisStore) -> None:
    job, _ = await store.submit(new_job("bell silent"))

    async with ringing(store) as bell:
        with bell.expecting(job.id) as news:
            await store.acquire(job.id, "w", can_resume=True)
            await asyncio.sleep(0.05)

            assert not news.is_set()


async def test_a_caller_that_starts_waiting_just_after_the_end_is_notified(
    store: RedisStore,
) -> None:
    job, _ = await store.submit(new_job("bell late"))

    async with ringing(store) as bell:
        with bell.expecting(job.id) as news:
            await finished(store, job)
            await news.wait()
        with bell.expecting(job.id) as later:
            assert later.is_set()


async def test_waiting_callers_read_the_record_when_the_store_is_back(
    tmp_path: Path,
) -> None:
    server = RedisServer(tmp_path / "own", options=["--appendonly", "yes"])
    server.start()
    store = RedisStore(connect(server.url, timeout_s=STORE_S))
    job, _ = await store.submit(new_job("bell away"))

    async with ringing(store) as bell:
        with bell.expecting(job.id) as news:
            server.kill()
            server.start()
            async with asyncio.timeout(60):
                await news.wait()

    assert await store.redis.exists(keys.job(job.id))
    await store.close()
    server.kill()


async def test_no_more_ends_are_remembered_than_a_caller_may_have_missed(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventing.live.completion_notifier._REMEMBERED", 2)
    async with ringing(store) as bell:
        for number in range(5):
            last, _ = await store.submit(new_job(f"bell {number}"))
            await finished(store, last)
        async with asyncio.timeout(60):
            while last.id.encode() not in bell._ended:
                await asyncio.sleep(0.005)

        assert len(bell._ended) == 2

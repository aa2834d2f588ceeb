"""A job that is not there is gone only by the word of a server that takes writes: one that a failover left behind has
not the newest jobs, and an event that was acked for it would never run.
"""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from eventing.errors import JobDeleted, StoreUnavailable, Unavailable
from eventing.job.job import API_SOURCE, Job, JobId
from eventing.store.memory_store import MemoryStore
from eventing.store.redis_store import RedisStore
from predictor.delivery.recorded import RecordedJobs
from tests.contract.rig import Rig, new_job


async def test_a_job_is_gone_or_not(rig: Rig) -> None:
    await rig.store.submit(new_job())

    assert not await rig.store.is_gone(new_job().id)
    assert await rig.store.is_gone(new_job("other").id)


async def test_a_deleted_job_is_gone_while_its_identity_is_still_taken(rig: Rig) -> None:
    await rig.store.submit(new_job())
    await rig.store.cancel(new_job().id)
    assert await rig.store.delete(new_job().id)

    assert await rig.store.is_gone(new_job().id)


async def test_a_server_that_became_a_replica_can_not_say_that_a_job_is_gone(redis: Redis) -> None:
    store = RedisStore(redis)
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        assert await store.get(new_job().id) is None  # what it answers to a read
        with pytest.raises(StoreUnavailable):
            await store.is_gone(new_job().id)
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")


class LeftBehind(MemoryStore):
    """A store whose reads come from a server without the newest jobs."""

    async def get(self, job_id: JobId, *, with_result: bool = True) -> Job | None:
        return None


async def test_the_event_of_a_job_that_only_a_stale_server_misses_is_refused_and_comes_again() -> (
    None
):
    store = LeftBehind()
    jobs = RecordedJobs(store, is_store_shared=True)
    new = replace(new_job(), source=API_SOURCE)
    with pytest.raises(JobDeleted):
        await jobs.recorded(new)
    await store.submit(new)

    with pytest.raises(Unavailable):
        await jobs.recorded(new)

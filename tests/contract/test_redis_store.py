"""Behaviour that only a real server shows: death between two writes, keys, lost scripts."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

import eventing.redis.scripts
from eventing.job.job import JobError, JobState, event_identity
from eventing.job.store import (
    AcquireStatus,
    Ending,
    Lease,
    LeaseStatus,
    Publication,
    ReleaseReason,
    TokenBatch,
)
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.contract.rig import SETTINGS, RedisRig, append, finish, job_id, new_job

FAULT = JobError(code="engine_error", message="the engine gave up")
DEAD = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
SCRIPTS = sorted(
    path.stem for path in Path(eventing.redis.scripts.__file__).parent.glob("[a-z]*.lua")
)


@pytest.fixture
def rig(redis: Redis) -> RedisRig:
    return RedisRig(redis)


async def test_a_dead_letter_is_listed_in_the_step_that_makes_it(rig: RedisRig) -> None:
    for number, tenant in enumerate(["acme", "active", "a:b {c}"]):
        name = str(number)
        await rig.store.submit(new_job(name, tenant=tenant))
        for _ in range(SETTINGS.max_attempts):
            taken = await rig.store.acquire(job_id(name, tenant), "worker", can_resume=True)
            await rig.store.release(taken.lease, ReleaseReason.FAILURE, FAULT)

        listed = await rig.redis.zrange(keys.dead_letters_of(tenant), 0, -1)
        assert listed == [job_id(name, tenant).encode()]


async def test_an_index_entry_without_a_job_is_dropped_by_the_next_list(rig: RedisRig) -> None:
    # Its record has expired since.
    await rig.redis.zadd(keys.jobs_of("acme"), {job_id("never"): 1})

    assert (await rig.store.list_jobs("acme")).jobs == ()

    assert await rig.redis.zcard(keys.jobs_of("acme")) == 0


async def test_a_job_that_is_no_longer_kept_leaves_its_lists_unread(rig: RedisRig) -> None:
    # I9: a tenant's list grew by every job for ever, unless somebody read it to its end.
    for tenant in ("acme", "a:b {c}"):
        job, _ = await rig.store.submit(new_job(tenant, tenant=tenant))
        await rig.store.conclude(job.id, DEAD)
    await rig.store.submit(new_job("waiting"))
    await rig.pass_time(SETTINGS.dead_letter_retention_s * 1000 + 1000)

    assert await rig.store.prune(100) == 2

    assert await rig.redis.zrange(keys.jobs_of("acme"), 0, -1) == [job_id("waiting").encode()]
    gone = [of("a:b {c}") for of in (keys.jobs_of, keys.dead_letters_of, keys.results_of)]
    assert await rig.redis.exists(*gone, keys.dead_letters_of("acme"), keys.LEAVING) == 0
    assert await rig.store.prune(100) == 0


async def test_a_job_that_was_recorded_again_stays_in_its_list(rig: RedisRig) -> None:
    await rig.store.submit(new_job())
    await rig.store.conclude(job_id(), DEAD)
    await rig.pass_time(SETTINGS.dead_letter_retention_s * 1000 + 1000)
    await rig.store.submit(new_job())

    assert await rig.store.prune(100) == 1

    assert await rig.redis.zrange(keys.jobs_of("acme"), 0, -1) == [job_id().encode()]


async def test_a_list_of_an_older_version_no_longer_goes_by_itself(rig: RedisRig) -> None:
    await rig.store.submit(new_job("kept"))
    await rig.redis.expire(keys.jobs_of("acme"), SETTINGS.dead_letter_retention_s * 4)
    await rig.store.submit(new_job("gone"))
    await rig.store.conclude(job_id("gone"), DEAD)
    await rig.pass_time(SETTINGS.dead_letter_retention_s * 1000 + 1000)

    await rig.store.prune(100)

    assert await rig.redis.ttl(keys.jobs_of("acme")) == -1


async def test_scripts_are_sent_again_to_a_server_that_lost_them(rig: RedisRig) -> None:
    await rig.store.submit(new_job())
    await rig.redis.script_flush()

    taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
    await rig.redis.script_flush()
    answers = await rig.store.renew([taken.lease, Lease(job_id(), 2, "b")], extend=True)

    assert taken.status is AcquireStatus.ACQUIRED
    assert answers == [LeaseStatus.OK, LeaseStatus.FENCED]


async def test_everything_of_an_ended_job_has_a_time_to_live(rig: RedisRig) -> None:
    await rig.store.submit(new_job())
    taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
    await append(rig.store, taken.lease, TokenBatch(index=0, token_ids=(1,)))
    await finish(rig.store, taken.lease, Ending(state=JobState.COMPLETED, result={}))
    await append(rig.store, taken.lease, TokenBatch(index=1, token_ids=(1,)))
    await rig.store.release(taken.lease, ReleaseReason.HANDOVER, FAULT)

    for key in (keys.job(job_id()), keys.tokens(job_id())):
        assert 0 < await rig.redis.ttl(key) <= SETTINGS.retention_s


async def test_a_write_to_an_expired_job_does_not_bring_half_of_it_back(rig: RedisRig) -> None:
    await rig.store.submit(new_job())
    taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
    await finish(rig.store, taken.lease, Ending(state=JobState.COMPLETED))
    await rig.pass_time(SETTINGS.retention_s * 1000 + 1000)

    await append(rig.store, taken.lease, TokenBatch(index=0, token_ids=(1,)))
    await finish(rig.store, taken.lease, Ending(state=JobState.COMPLETED))
    await rig.store.release(taken.lease, ReleaseReason.FAILURE, FAULT)
    await rig.store.renew([taken.lease], extend=True)

    assert await rig.redis.exists(keys.job(job_id()), keys.tokens(job_id())) == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_states_its_keys(name: str) -> None:
    text = Path(eventing.redis.scripts.__file__).with_name(f"{name}.lua").read_text()

    assert text.startswith("-- ")
    assert "-- KEYS" in text


async def test_the_store_shares_its_client(redis: Redis) -> None:
    assert RedisStore(redis).redis is redis


async def test_the_scripts_know_the_keys_by_the_names_that_python_has(rig: RedisRig) -> None:
    new = new_job(deadline_ms=await rig.now_ms() + 60_000, tenant="a:b")
    queue = keys.queue("requests-m", "")
    await rig.store.submit(new, Publication(queues=(queue,), event=b"{}", max_unpublished=9))

    assert await rig.redis.zscore(keys.UNSTARTED, new.id) is not None
    assert await rig.redis.zscore(keys.UNPUBLISHED, new.id) is not None
    assert await rig.redis.zscore(keys.DEADLINES, new.id) == new.deadline_ms
    member = event_identity(new.source, new.event_id, new.tenant)
    assert await rig.redis.zscore(keys.queue("requests-m", "ready:default"), member) is not None
    await rig.pass_time(60_001)
    assert await rig.store.expire(1) == [new.id]
    assert await rig.redis.xlen(keys.ENDED) == 1
    assert await rig.redis.exists(keys.tokens(new.id)) == 1
    assert await rig.redis.zscore(keys.dead_letters_of("a:b"), new.id) is not None


async def test_an_empty_history_is_a_list_whatever_ended_the_job(rig: RedisRig) -> None:
    # Lua has no empty list: cjson made an object of it (`{}`), in some scripts.
    await rig.store.submit(new_job("cancelled"))
    await rig.store.cancel(job_id("cancelled"))
    await rig.store.reject(new_job("rejected"), FAULT, b"no job")
    await rig.store.submit(new_job("late", deadline_ms=await rig.now_ms() + 1))
    await rig.pass_time(2)
    await rig.store.acquire(job_id("late"), "worker", can_resume=True)

    for name in ("cancelled", "rejected", "late"):
        assert await rig.redis.hget(keys.job(job_id(name)), "history") == b"[]"

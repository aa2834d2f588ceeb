"""What only a real server can show: death between two writes, keys, and forgotten scripts."""

from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

import eventing.redis.scripts
from eventing.job.job import JobError, JobState
from eventing.job.store import AcquireStatus, Ending, Lease, LeaseStatus, Release, TokenBatch
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.contract.rig import SETTINGS, RedisRig, job_id, new_job

FAULT = JobError(code="engine_error", message="the engine gave up")
SCRIPTS = sorted(path.stem for path in Path(eventing.redis.scripts.__file__).parent.glob("*.lua"))


@pytest.fixture
def rig(redis: Redis) -> RedisRig:
    return RedisRig(redis)


async def exhausted_by_one_who_died(rig: RedisRig) -> None:
    """A job that a script has failed, and whose caller died before it could note so elsewhere."""
    await rig.store.create(new_job())
    for _ in range(SETTINGS.max_attempts):
        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        await rig.store.release(taken.lease, Release.FAILURE, FAULT)
    await rig.redis.delete(keys.UNANNOUNCED)
    await rig.redis.delete(keys.dead_letters_of("acme"))


async def test_a_dead_letter_that_was_not_noted_is_noted_at_its_next_delivery(
    rig: RedisRig,
) -> None:
    await exhausted_by_one_who_died(rig)

    taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)

    assert taken.status is AcquireStatus.TERMINAL
    assert [job.id for job in (await rig.store.list_dead_letters("acme")).jobs] == [job_id()]
    await rig.pass_time(10_001)
    assert await rig.store.take_unannounced(10) == [job_id()]


async def test_a_dead_letter_that_was_announced_is_not_announced_again(rig: RedisRig) -> None:
    await exhausted_by_one_who_died(rig)
    await rig.store.mark_announced(job_id())

    await rig.store.acquire(job_id(), "worker-2", can_resume=True)
    await rig.pass_time(10_001)

    assert await rig.store.take_unannounced(10) == []


async def test_an_index_entry_without_a_job_is_dropped_by_whoever_lists(rig: RedisRig) -> None:
    # `create` writes the indexes first; its caller died before the record.
    await rig.redis.zadd(keys.jobs_of("acme"), {job_id("never"): 1})

    assert (await rig.store.list_jobs("acme")).jobs == ()

    assert await rig.redis.zcard(keys.jobs_of("acme")) == 0


async def test_lists_are_pruned_of_what_is_long_gone_without_being_read(rig: RedisRig) -> None:
    # I9: a tenant's list grew by every job for ever, unless somebody read it to its end.
    for number in range(10):
        await rig.store.create(new_job(str(number)))
    await rig.pass_time(SETTINGS.dead_letter_retention_s * 2000 + 1000)

    await rig.store.create(new_job("new"))

    assert await rig.redis.zrange(keys.jobs_of("acme"), 0, -1) == [job_id("new").encode()]
    assert await rig.redis.ttl(keys.jobs_of("acme")) > 0


async def test_a_server_that_forgot_the_scripts_is_told_them_again(rig: RedisRig) -> None:
    await rig.store.create(new_job())
    await rig.redis.script_flush()

    taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
    await rig.redis.script_flush()
    answers = await rig.store.renew([taken.lease, Lease(job_id(), 2, "b")], extend=True)

    assert taken.status is AcquireStatus.ACQUIRED
    assert answers == [LeaseStatus.OK, LeaseStatus.FENCED]


async def test_all_keys_of_a_job_share_a_hash_tag(rig: RedisRig) -> None:
    await rig.store.create(new_job())
    await rig.store.acquire(job_id(), "worker", can_resume=True)

    of_the_job = [key async for key in rig.redis.scan_iter(match=f"*{job_id()}*")]

    assert len(of_the_job) == 2
    assert all(f"{{{job_id()}}}".encode() in key for key in of_the_job)


async def test_the_server_of_these_tests_refuses_keys_of_two_slots(rig: RedisRig) -> None:
    # What makes every other test in here a test of our keys: it must not go blind.
    one, other = keys.job(job_id("1")), keys.job(job_id("2"))

    with pytest.raises(ResponseError):
        await rig.redis.mget(one, other)
    with pytest.raises(ResponseError):
        await rig.redis.eval(
            "#!lua\nredis.call('EXISTS', KEYS[1]) return redis.call('EXISTS', ARGV[1])",
            1,
            one,
            other,
        )


async def test_everything_of_an_ended_job_has_a_time_to_live(rig: RedisRig) -> None:
    await rig.store.create(new_job())
    taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
    await rig.store.append(taken.lease, TokenBatch(index=0, token_ids=(1,)))
    await rig.store.finish(taken.lease, Ending(state=JobState.COMPLETED, result={}))
    await rig.store.append(taken.lease, TokenBatch(index=1, token_ids=(1,)))
    await rig.store.release(taken.lease, Release.HANDOVER, FAULT)
    await rig.store.mark_announced(job_id())

    for key in (keys.job(job_id()), keys.tokens(job_id())):
        assert 0 < await rig.redis.ttl(key) <= SETTINGS.retention_s


async def test_a_write_to_an_expired_job_does_not_bring_half_of_it_back(rig: RedisRig) -> None:
    await rig.store.create(new_job())
    taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
    await rig.store.finish(taken.lease, Ending(state=JobState.COMPLETED))
    await rig.pass_time(SETTINGS.retention_s * 1000 + 1000)

    await rig.store.append(taken.lease, TokenBatch(index=0, token_ids=(1,)))
    await rig.store.finish(taken.lease, Ending(state=JobState.COMPLETED))
    await rig.store.release(taken.lease, Release.FAILURE, FAULT)
    await rig.store.renew([taken.lease], extend=True)
    await rig.store.mark_announced(job_id())

    assert await rig.redis.exists(keys.job(job_id()), keys.tokens(job_id())) == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_states_its_keys(name: str) -> None:
    text = Path(eventing.redis.scripts.__file__).with_name(f"{name}.lua").read_text()

    assert text.startswith("-- ")
    assert "-- KEYS" in text


async def test_the_store_shares_its_client(redis: Redis) -> None:
    assert RedisStore(redis).redis is redis

"""The exact cache and followers, against every implementation of the store."""

from dataclasses import replace
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from eventing.errors import NotCached
from eventing.job.cache.cache import CacheAsk, CacheStatus
from eventing.job.cache.followers import Answers, FollowerStatus
from eventing.job.job import Job, JobState, Lane
from eventing.job.store import ARRIVED, Ending, NewJob, TokenBatch
from eventing.job.stream import EntryKind
from eventing.redis import keys
from tests.contract.rig import ANSWER, RedisRig, Rig, append, finish, ids_of, job_id, new_job

ASK: Final = CacheAsk(key="cache_1", ttl_s=600)
USAGE: Final = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
WHOLE: Final = Ending(
    state=JobState.COMPLETED,
    result={"id": "chatcmpl-7", "created": 5, "text": "because", "usage": USAGE},
    usage=USAGE,
)
NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def answers(rig: Rig) -> Answers:
    found: Answers = rig.store.answers  # type: ignore[attr-defined]
    return found


def cached(event_id: str = "1", ask: CacheAsk = ASK, **more: Any) -> NewJob:
    fields = {name: more.pop(name) for name in ("lane",) if name in more}
    return replace(new_job(event_id, **more), cache=ask, **fields)


async def submit(rig: Rig, event_id: str = "1", ask: CacheAsk = ASK, **more: Any) -> Job:
    job, is_new = await rig.store.submit(cached(event_id, ask, **more))
    assert is_new
    return job


async def start(rig: Rig, event_id: str = "1") -> Any:
    """Take the job's lease, and write its first tokens."""
    lease = (await rig.store.acquire(job_id(event_id), "worker-1", can_resume=True)).lease
    batch = TokenBatch(index=0, token_ids=(7, 8), delta='[{"index":0}]')
    await append(rig.store, lease, batch)
    return lease


async def end(rig: Rig, event_id: str = "1", ending: Ending = WHOLE) -> None:
    last = TokenBatch(index=2, token_ids=(9,), delta='[{"index":0}]')
    await finish(rig.store, await start(rig, event_id), replace(ending, final_batch=last))


async def get(rig: Rig, event_id: str) -> Job:
    job = await rig.store.get(job_id(event_id))
    assert job is not None
    return job


async def settle(rig: Rig, event_id: str = "1", limit: int = 100) -> FollowerStatus:
    return (await answers(rig).settle_followers(job_id(event_id), limit)).status


async def test_a_kept_answer_ends_the_next_job_of_the_same_request_at_once(rig: Rig) -> None:
    first = await submit(rig)
    assert first.cache is not None
    assert (first.cache.status, first.cache.fwd) == (CacheStatus.MISS, "uri-miss")
    await end(rig)
    await rig.pass_time(5_000)
    hit = await submit(rig, "2")
    assert hit == await get(rig, "2")
    assert (hit.state, hit.usage, hit.attempt, hit.token_count) == ("completed", NO_USAGE, 0, 3)
    assert hit.cache is not None
    assert (hit.cache.status, hit.cache.kind, hit.cache.source_job) == ("hit", "exact", first.id)
    assert (hit.cache.age_s, hit.cache.left_s, hit.cache.saved_usage) == (5, 595, USAGE)
    assert hit.result is not None
    assert hit.result["text"] == "because"
    assert hit.result["usage"] == NO_USAGE
    assert hit.result["id"] == "chatcmpl-" + hit.id.removeprefix("job_")
    assert hit.result["created"] == hit.created_ms // 1000
    assert await ids_of(rig.store, hit.id, 99) == [7, 8, 9]


async def test_a_hit_is_listed_and_waits_in_no_index(rig: Rig) -> None:
    await submit(rig)
    await end(rig)
    deadline_ms = await rig.now_ms() + 60_000
    await submit(rig, "2", deadline_ms=deadline_ms)
    listed = {job.id: job for job in (await rig.store.list_jobs("acme")).jobs}
    assert listed.keys() == {job_id("1"), job_id("2")}
    assert listed[job_id("2")].cache is not None
    await rig.pass_time(3_000_000)
    assert await rig.store.expire(10) == []
    assert await rig.store.claim_unstarted(10) == []


async def test_an_answer_is_served_for_its_lifetime_and_at_most_as_old_as_accepted(
    rig: Rig,
) -> None:
    await submit(rig)
    await end(rig)
    await rig.pass_time(30_000)
    fresh = await submit(rig, "2", replace(ASK, max_age_s=29))
    assert fresh.state == "queued"
    await end(rig, "2")
    assert (await submit(rig, "3", replace(ASK, max_age_s=29))).state == "completed"
    await rig.pass_time(600_000)
    assert (await submit(rig, "4")).state == "queued"


async def test_no_cache_reads_nothing_and_keeps_its_own(rig: Rig) -> None:
    await submit(rig)
    await end(rig)
    again = await submit(rig, "2", replace(ASK, reads=False))
    assert again.state == "queued"
    assert again.cache is not None
    assert again.cache.fwd == "request"
    await end(rig, "2")
    hit = await submit(rig, "3")
    assert hit.cache is not None
    assert hit.cache.source_job == job_id("2")


async def test_only_if_cached_records_nothing_without_an_answer(rig: Rig) -> None:
    only = replace(ASK, only_if_cached=True)
    for ask in (only, CacheAsk(reason="no-store", only_if_cached=True)):
        with pytest.raises(NotCached):
            await rig.store.submit(cached("1", ask))
    assert await rig.store.get(job_id("1")) is None
    await submit(rig, "2")
    with pytest.raises(NotCached):
        await rig.store.submit(cached("1", only))
    await end(rig, "2")
    assert (await submit(rig, "3", only)).state == "completed"


async def test_no_store_leaves_nothing(rig: Rig) -> None:
    none = CacheAsk(reason="no-store")
    first = await submit(rig, "1", none)
    assert first.cache is not None
    assert (first.cache.status, first.cache.reason) == ("bypass", "no-store")
    await end(rig)
    assert (await submit(rig, "2")).state == "queued"
    if isinstance(rig, RedisRig):
        await end(rig, "2")
        assert await rig.redis.exists(keys.cache_entry("acme", "")) == 0


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.INCOMPLETE])
async def test_no_other_end_than_completed_is_served_again(rig: Rig, state: JobState) -> None:
    await submit(rig)
    await end(rig, "1", replace(WHOLE, state=state))
    assert (await submit(rig, "2")).state == "queued"


async def test_another_key_or_tenant_is_not_served(rig: Rig) -> None:
    await submit(rig)
    await end(rig)
    assert (await submit(rig, "2", replace(ASK, key="cache_2"))).state == "queued"
    assert (await submit(rig, "3", tenant="other")).state == "queued"


async def test_a_deleted_jobs_answer_is_served_no_more(rig: Rig) -> None:
    await submit(rig)
    await end(rig)
    hit = await submit(rig, "2")
    await rig.store.delete(job_id("1"))
    assert (await submit(rig, "3")).state == "queued"
    assert (await get(rig, "2")).result == hit.result


async def test_an_expired_jobs_answer_is_served_no_more(rig: Rig) -> None:
    await submit(rig, "1", replace(ASK, ttl_s=80_000))
    await end(rig)
    await rig.pass_time(3_700_000)
    assert (await submit(rig, "2", replace(ASK, ttl_s=80_000))).state == "queued"


async def test_a_repeat_under_the_same_identity_is_the_same_job(rig: Rig) -> None:
    await submit(rig)
    await end(rig)
    hit = await submit(rig, "2")
    assert await rig.store.submit(cached("2")) == (hit, False)


async def test_an_answer_that_was_started_over_is_served_as_a_whole(rig: Rig) -> None:
    await submit(rig)
    await start(rig)
    await rig.pass_time(31_000)
    taken = await rig.store.acquire(job_id("1"), "worker-2", can_resume=False)
    await finish(rig.store, taken.lease, WHOLE)
    hit = await submit(rig, "2")
    kinds = [entry.kind for entry in await rig.store.read_stream(hit.id)]
    assert (hit.token_count, kinds) == (0, [EntryKind.STATE])
    assert hit.result is not None
    assert hit.result["text"] == "because"


async def test_one_entry_is_forgotten(rig: Rig) -> None:
    await submit(rig)
    await end(rig)
    assert not await answers(rig).forget_answer("other", ASK.key)
    assert await answers(rig).forget_answer("acme", ASK.key)
    assert not await answers(rig).forget_answer("acme", ASK.key)
    assert (await submit(rig, "2")).state == "queued"


async def test_all_answers_of_a_tenant_are_voided_after_a_dry_run(rig: Rig) -> None:
    await submit(rig)
    await end(rig)
    await submit(rig, "2", replace(ASK, key="cache_2"))  # runs still
    await submit(rig, "3", tenant="other")
    void = answers(rig).invalidate_answers
    assert await void("acme", ["m"], is_all=True, is_dry_run=True) == 1
    assert (await submit(rig, "4")).state == "completed"
    assert await void("acme", ["m"], is_all=True, is_dry_run=False) == 1
    assert await void("acme", ["m"], is_all=True, is_dry_run=True) == 0
    assert (await submit(rig, "5")).state == "queued"
    await end(rig, "2")
    assert (await submit(rig, "6", replace(ASK, key="cache_2"))).state == "queued"
    assert (await submit(rig, "7", tenant="other")).follows


async def test_an_answer_that_is_being_made_anew_is_not_counted_as_kept(rig: Rig) -> None:
    await submit(rig)
    await end(rig)
    await submit(rig, "2", replace(ASK, reads=False))
    void = answers(rig).invalidate_answers
    assert await void("acme", ["m"], is_all=True, is_dry_run=True) == 0
    await end(rig, "2")
    assert await void("acme", ["m"], is_all=True, is_dry_run=True) == 1
    await rig.store.delete(job_id("2"))
    assert await void("acme", ["m"], is_all=True, is_dry_run=True) == 0


async def test_answers_of_one_model_are_voided(rig: Rig) -> None:
    await submit(rig)
    await end(rig)
    void = answers(rig).invalidate_answers
    assert await void("acme", ["other"], is_all=False, is_dry_run=False) == 0
    assert (await submit(rig, "2")).state == "completed"
    assert await void("acme", ["m"], is_all=False, is_dry_run=False) == 1
    assert (await submit(rig, "3")).state == "queued"


async def test_the_same_request_follows_the_job_that_runs(rig: Rig) -> None:
    leader = await submit(rig)
    follower = await submit(rig, "2")
    assert (follower.state, follower.follows, follower.stream_id) == (
        "queued",
        leader.id,
        leader.id,
    )
    assert follower == await get(rig, "2")
    assert await settle(rig) is FollowerStatus.RUNNING
    await end(rig)
    assert await settle(rig) is FollowerStatus.DONE
    ended = await get(rig, "2")
    assert (ended.state, ended.usage, ended.attempt) == ("completed", NO_USAGE, 0)
    assert ended.cache is not None
    assert (ended.cache.kind, ended.cache.saved_usage) == ("coalesced", USAGE)
    assert ended.stream_id == ended.id
    streams = [await rig.store.read_stream(job_id(each)) for each in ("1", "2")]
    assert streams[0] == streams[1]
    assert ended.token_count == 3
    assert await settle(rig) is FollowerStatus.DONE


async def test_followers_are_ended_some_at_a_time(rig: Rig) -> None:
    await submit(rig)
    for n in range(5):
        await submit(rig, f"f{n}")
    await end(rig)
    assert await settle(rig, limit=2) is FollowerStatus.MORE
    assert [(await get(rig, f"f{n}")).state for n in range(5)].count(JobState.COMPLETED) == 2
    assert await settle(rig, limit=2) is FollowerStatus.MORE
    assert await settle(rig, limit=2) is FollowerStatus.DONE
    assert [(await get(rig, f"f{n}")).state for n in range(5)].count(JobState.COMPLETED) == 5


async def test_an_answer_that_a_limit_cut_off_is_its_followers_too(rig: Rig) -> None:
    await submit(rig)
    await submit(rig, "2")
    await end(rig, "1", replace(WHOLE, state=JobState.INCOMPLETE))
    await settle(rig)
    assert (await get(rig, "2")).state == "incomplete"


async def test_a_follower_is_cancelled_and_expires_alone(rig: Rig) -> None:
    await submit(rig)
    deadline_ms = await rig.now_ms() + 1_000
    await submit(rig, "2")
    await submit(rig, "3", deadline_ms=deadline_ms)
    await rig.store.cancel(job_id("2"))
    await rig.pass_time(2_000)
    assert await rig.store.expire(10) == [job_id("3")]
    await end(rig)
    assert await settle(rig) is FollowerStatus.DONE
    states = [(await get(rig, each)).state for each in ("1", "2", "3")]
    assert states == ["completed", "cancelled", "failed"]


@pytest.mark.parametrize("how", ["failed", "cancelled", "deleted"])
async def test_without_an_answer_the_oldest_follower_runs_and_the_others_follow_it(
    rig: Rig, how: str
) -> None:
    await submit(rig)
    for each in ("2", "3", "4"):
        await submit(rig, each)
        await rig.pass_time(10)
    lease = await start(rig)
    if how == "failed":
        await finish(rig.store, lease, Ending(state=JobState.FAILED))
    else:
        await rig.store.cancel(job_id("1"))
    if how == "deleted":
        await rig.store.delete(job_id("1"))
    step = await answers(rig).settle_followers(job_id("1"), 100)
    assert (step.status, step.job_id) == (FollowerStatus.ORPHANED, job_id("2"))
    heir = await get(rig, "2")
    assert await answers(rig).promote(heir, ARRIVED)
    assert not await answers(rig).promote(heir, ARRIVED)
    step = await answers(rig).settle_followers(job_id("1"), 100)
    assert (step.status, step.job_id) == (FollowerStatus.MOVED, job_id("2"))
    assert [(await get(rig, each)).follows for each in ("2", "3", "4")] == ["", heir.id, heir.id]
    # It goes on from the tokens that were written, while they are there; a new call follows it, too.
    taken = await rig.store.acquire(job_id("2"), "worker-2", can_resume=True)
    kept = 0 if how == "deleted" else 2
    assert taken.token_count == kept
    assert (await submit(rig, "5")).follows == heir.id
    last = TokenBatch(index=kept, token_ids=(9,))
    await finish(rig.store, taken.lease, replace(WHOLE, final_batch=last))
    assert await settle(rig, "2") is FollowerStatus.DONE
    for each in ("2", "3", "4", "5"):
        assert (await get(rig, each)).state == "completed"
        assert await ids_of(rig.store, job_id(each), 99) == [7, 8, 9][-1 - kept :]
    assert (await submit(rig, "6")).state == "completed"


async def test_a_leader_that_was_redriven_keeps_its_followers(rig: Rig) -> None:
    await submit(rig)
    await submit(rig, "2")
    await finish(rig.store, await start(rig), Ending(state=JobState.FAILED, is_dead_letter=True))
    step = await answers(rig).settle_followers(job_id("1"), 100)
    assert step.status is FollowerStatus.ORPHANED
    assert await rig.store.redrive(await get(rig, "1"), None)
    assert not await answers(rig).promote(await get(rig, "2"), ARRIVED)
    taken = await rig.store.acquire(job_id("1"), "worker-1", can_resume=True)
    await finish(rig.store, taken.lease, ANSWER)
    assert await settle(rig) is FollowerStatus.DONE
    assert (await get(rig, "2")).state == "completed"


async def test_a_more_urgent_call_does_not_wait_for_a_queued_one(rig: Rig) -> None:
    await submit(rig, lane=Lane.BATCH)
    urgent = await submit(rig, "2", lane=Lane.INTERACTIVE)
    assert (urgent.follows, urgent.state) == ("", "queued")
    assert (await submit(rig, "3", lane=Lane.BATCH)).follows == urgent.id
    await submit(rig, "4", replace(ASK, key="cache_2"), lane=Lane.BATCH)
    await start(rig, "4")
    running = await submit(rig, "5", replace(ASK, key="cache_2"), lane=Lane.INTERACTIVE)
    assert running.follows == job_id("4")


async def test_a_follower_that_an_older_process_queued_runs_for_itself(rig: Rig) -> None:
    await submit(rig)
    await submit(rig, "2")
    await end(rig, "2")
    await end(rig)
    assert await settle(rig) is FollowerStatus.DONE
    second = await get(rig, "2")
    assert (second.state, second.follows, second.usage) == ("completed", "", USAGE)


async def test_no_cache_runs_beside_the_job_that_runs(rig: Rig) -> None:
    await submit(rig)
    assert (await submit(rig, "2", replace(ASK, reads=False))).follows == ""


async def test_a_cache_that_can_not_be_read_has_no_answer(redis: Redis) -> None:
    rig = RedisRig(redis)
    await submit(rig)
    await end(rig)
    await redis.set(keys.cache_entry("acme", ASK.key), "not a hash")
    await redis.set(keys.REVISIONS, "not a hash")
    plain = await submit(rig, "2")
    assert plain.state == "queued"
    await end(rig, "2")
    await redis.set(keys.cache_entry("acme", ASK.key), "not a hash")
    assert await rig.store.delete(job_id("2"))
    await redis.set(keys.cache_epochs("acme"), "not a hash")
    assert (await submit(rig, "3")).state == "queued"


async def test_other_weights_have_other_answers(redis: Redis) -> None:
    rig = RedisRig(redis)
    await redis.hset(keys.REVISIONS, "m", "1")
    await submit(rig)
    await end(rig)
    assert (await submit(rig, "2")).state == "completed"
    await redis.hset(keys.REVISIONS, "m", "2")
    assert (await submit(rig, "3")).state == "queued"
    await start(rig, "3")
    await redis.hset(keys.REVISIONS, "m", "3")
    await rig.store.cancel(job_id("3"))
    await submit(rig, "4")
    await redis.hset(keys.REVISIONS, "m", "4")
    await end(rig, "4")  # it is not known which weights answered
    assert (await submit(rig, "5")).state == "queued"


async def test_calls_before_and_after_a_models_first_start_are_one(redis: Redis) -> None:
    rig = RedisRig(redis)
    leader = await submit(rig)
    await redis.hset(keys.REVISIONS, "m", "1")
    assert (await submit(rig, "2")).follows == leader.id
    await end(rig)
    assert (await submit(rig, "3")).state == "completed"

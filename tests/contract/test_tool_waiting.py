"""Many calls that wait for a person at once: what each holds; a restart or a failover of the store loses none."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from eventing.broker.router import DirectPublisher
from eventing.broker.tool_calls import ToolCalls, sweep_approvals
from eventing.broker.trigger import parse_trigger
from eventing.cloudevent.job_event import PREPARED
from eventing.cloudevent.tool_event import CALLED
from eventing.job.job import JobId, JobState
from eventing.job.step import AdvanceStatus, StepRun
from eventing.job.tools.call import CallState, Turn
from eventing.job.tools.store import Decision, ReturnStatus
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.store.redis_store import job_keys
from eventing.store.steps.redis_tools import RedisToolStore
from tests.contract.rig import new_job
from tests.contract.test_sentinel import again
from tests.contract.tool_process import trigger
from tests.contract.tool_rig import AFTER, ASK_MS, PLAN, ToolRig, answer, call
from tests.redis_server import VALKEY, RedisServer
from tests.sentinels import watched_store

pytestmark = pytest.mark.timeout(180)
MANY = 30
APPROVE = Decision(state=CallState.PENDING, approver="ann")


async def waiting(store: RedisToolStore, names: Sequence[str], ask_ms: int = ASK_MS) -> list[JobId]:
    """Jobs that wait for the approval of their only call."""
    return [await _waiting(store, name, ask_ms) for name in names]


async def _waiting(store: RedisToolStore, name: str, ask_ms: int) -> JobId:
    new = replace(new_job(name), plan=PLAN)
    await store.submit(new)
    taken = await store.acquire(new.id, "worker", can_resume=True)
    await store.finish(taken.lease, answer())
    begun = await store.begin_step(new.id, "tools")
    assert begun.job is not None
    turn = Turn(
        number=1,
        attempt=1,
        begin=0,
        end=2,
        message={"role": "assistant", "content": "let me look"},
        ask_ms=ask_ms,
        calls=(call(0, CallState.AWAITING_APPROVAL),),
    )
    run = StepRun.of(begun.job, "tools")
    assert await store.commit_turn(run, turn, {}, AFTER) is AdvanceStatus.OK
    return new.id


def calls_of(store: RedisToolStore, redis: Redis) -> ToolCalls:
    """With queues for calls and for the model."""
    triggers = [trigger("models", type=PREPARED), trigger("tool-wiki", type=CALLED)]
    return ToolCalls(store, DirectPublisher(redis, list(map(parse_trigger, triggers))))


async def each_is_answered_once(store: RedisToolStore, redis: Redis, jobs: Sequence[JobId]) -> None:
    """Each approval is there, is taken once, and queues its call."""
    page = await store.approvals("acme", limit=1000)
    assert sorted(each.job_id for each in page.calls) == sorted(jobs)
    tool_calls = calls_of(store, redis)
    for each in page.calls:
        job = await store.get(each.job_id)
        assert job is not None
        taken = await asyncio.gather(
            *(tool_calls.decide(job, each.call, APPROVE) for _ in range(2))
        )
        assert sorted(status for status, _ in taken) == [ReturnStatus.DONE, ReturnStatus.OK]
    assert await redis.hlen(f"{keys.queue('tool-wiki', '')}events") == len(jobs)
    assert not (await store.approvals("acme")).calls


async def test_a_restart_of_the_store_loses_no_approval(tmp_path: Path) -> None:
    options = ["--appendonly", "yes", "--appendfsync", "always"]
    server = RedisServer(tmp_path, binary=VALKEY, options=options)
    server.start()
    redis = connect(server.url)
    store = RedisToolStore(redis)
    try:
        jobs = await waiting(store, [f"job-{n}" for n in range(MANY)])
        server.kill()
        server.start()
        await again(redis.ping)
        await each_is_answered_once(store, redis, jobs)
    finally:
        await store.close()
        server.kill()


async def test_a_failover_of_the_store_loses_no_approval_that_a_replica_has(tmp_path: Path) -> None:
    async with watched_store(tmp_path, servers=2) as watched:
        redis = connect(watched.url)
        store = RedisToolStore(redis)
        jobs = await waiting(store, [f"job-{n}" for n in range(MANY)])
        await watched.in_step()
        old = watched.primary()
        await redis.wait(1, 5_000)
        old.server.kill()
        await watched.moved(old)
        await again(redis.ping)

        await each_is_answered_once(store, redis, jobs)
        await store.close()


async def test_each_wait_that_no_one_answered_is_ended_once_by_any_number_of_sweepers(
    redis: Redis,
) -> None:
    store = RedisToolStore(redis)
    late = await waiting(store, [f"late-{n}" for n in range(MANY)], ask_ms=1)
    long = await waiting(store, ["long"])
    await asyncio.sleep(0.002)
    tool_calls = calls_of(store, redis)

    ended = await asyncio.gather(*(sweep_approvals(tool_calls) for _ in range(3)))

    assert sum(ended) == MANY
    assert [each.job_id for each in (await store.approvals("acme")).calls] == long
    for job_id in late:
        job = await store.get(job_id)
        assert job is not None
        assert (job.state, job.turns[0].calls[0].state) == (JobState.QUEUED, CallState.DENIED)
    assert await redis.hlen(f"{keys.queue('models', '')}events") == MANY


async def test_a_job_that_waits_holds_no_lease_no_queue_and_no_room_that_it_does_not_use(
    redis: Redis,
) -> None:
    rig = ToolRig(redis)
    (job_id,) = await waiting(rig.tools, ["job"])

    record, stream = job_keys(job_id)
    assert int(await redis.memory_usage(stream) or 0) < 2048
    assert await redis.zscore(keys.UNSTARTED, job_id) is None
    assert await redis.zscore(keys.DEADLINES, job_id) is None
    assert await redis.hget(record, "lease_owner") in (None, b"")
    held = [key async for key in redis.scan_iter(match="torpor:{*}:events")]
    assert held == []


async def test_a_reader_who_waits_at_the_stream_is_told_what_comes_after(redis: Redis) -> None:
    rig = ToolRig(redis)
    await rig.submit()
    await rig.generate()
    stream = keys.tokens(new_job().id)
    (seen, _), *_ = await redis.xrevrange(stream, count=1)
    reader = connect(f"redis://127.0.0.1:{redis.connection_pool.connection_kwargs['port']}/0")

    async def until(kind: bytes) -> None:
        nonlocal seen
        while True:
            answer = await reader.xread({stream: seen}, block=60_000)
            assert answer, f"no entry of kind {kind!r} has come"
            ((_, entries),) = answer
            seen = entries[-1][0]
            if kind in {fields[b"kind"] for _, fields in entries}:
                return

    async def waits() -> None:
        while not (await redis.info("clients"))["blocked_clients"]:
            await asyncio.sleep(0.01)

    try:
        for kind, change in (
            (b"turn", lambda: rig.commit(call(0, CallState.AWAITING_APPROVAL))),
            (b"call", lambda: rig.decide(CallState.DENIED)),
        ):
            reading = asyncio.ensure_future(until(kind))
            await waits()
            await change()
            await reading
    finally:
        await reader.aclose()

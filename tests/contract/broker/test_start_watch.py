"""A model that does not start, and the one that stands in for it: decided by several processes on one store."""

import asyncio
import itertools
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest
from redis.asyncio import Redis

from eventing.broker.advance import Advance
from eventing.broker.delivery.dead_letter import DeadLetterHandler
from eventing.broker.delivery.decision import SubscriberResponse
from eventing.broker.intake import Intake
from eventing.broker.queue.queue import Queue
from eventing.broker.queue.view import QueueView
from eventing.broker.router import DirectPublisher
from eventing.cloudevent.job_event import request_event
from eventing.job.job import Job, JobId, JobState, Lane
from eventing.job.plan import Plan, PlannedStep, StepStatus
from eventing.job.step import StepRun
from eventing.job.store import Lease
from eventing.outbox.start_watch import StartWatch
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.store.steps.redis_steps import RedisStepStore
from tests.contract.broker.start_watch_program import FALLBACKS, LEASE, TRIGGERS
from tests.contract.rig import ANSWER, RedisRig, new_job
from tests.redis_server import RedisServer
from tests.unit.predictor.harness import UnreliableStore, open_harness

COLD_S = 60
TRIP_S = 2 * COLD_S
PROCESSES = 4
STEP_S = 5
PAUSE_MS = 3000
"""Longer than what trips a model that starts in a second."""


class Rig:
    """A store with the queues of three models, and processes that watch."""

    def __init__(self, redis: Redis, watches: list[StartWatch]) -> None:
        self.redis = redis
        self.store = RedisStepStore(redis, LEASE)
        self.route = DirectPublisher(redis, TRIGGERS)
        self.intake = Intake(self.store, self.route, fallbacks=FALLBACKS)
        self.clock = RedisRig(redis)
        self.watches = watches

    async def submit(self, name: str, model: str = "own", **given: object) -> JobId:
        new = new_job(name)
        body = {**new.request.body, "model": model}
        new = replace(new, request=replace(new.request, body=body), **given)  # type: ignore[arg-type]
        return (await self.intake.submit(new))[0].id

    async def job(self, job_id: JobId) -> Job:
        job = await self.store.get(job_id)
        assert job is not None
        return job

    async def begin(self, job_id: JobId) -> Lease:
        return (await self.store.acquire(job_id, "predictor", can_resume=True)).lease

    async def check(self) -> None:
        """Every process decides at the same moment."""
        await asyncio.gather(*(watch.check("own") for watch in self.watches))

    async def pass_s(self, seconds: int) -> None:
        for _ in range(0, seconds, STEP_S):
            await self.clock.pass_time(STEP_S * 1000)
            await self.check()

    async def waiting(self, model: str) -> int:
        return (await QueueView(self.redis).depth(model)).total_waiting

    async def is_tripped(self) -> bool:
        return (await self.redis.hget(keys.starting("own"), "tripped_ms") or b"0") != b"0"

    async def probe(self) -> str:
        return str((await self.redis.hget(keys.starting("own"), "probe") or b"").decode())


@pytest.fixture
async def rig(redis: Redis, redis_url: str) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as exits:
        watches = []
        for _ in range(PROCESSES):
            own = connect(redis_url, timeout_s=5)
            exits.push_async_callback(own.aclose)
            watches.append(
                StartWatch(
                    own,
                    RedisStepStore(own, LEASE),
                    DirectPublisher(own, TRIGGERS),
                    FALLBACKS,
                    lease=LEASE,
                    cold_start_s=COLD_S,
                )
            )
        for each in TRIGGERS:
            await Queue(redis, each.name, "c").ensure()
        yield Rig(redis, watches)


async def test_jobs_of_a_model_that_does_not_start_go_to_its_fallback(rig: Rig) -> None:
    jobs = [await rig.submit(str(n)) for n in range(20)]
    await rig.pass_s(TRIP_S - 5)
    before = await rig.waiting("own")
    await rig.pass_s(5)

    moved = [await rig.job(job_id) for job_id in jobs]
    assert before == 20
    assert (await rig.waiting("own"), await rig.waiting("other")) == (0, 20)
    assert {job.to_run.model for job in moved} == {"other"}
    assert {job.request.model for job in moved} == {"own"}
    assert moved[0].routing == {"asked": "own", "answered": "other", "reason": "not_starting"}
    lease = await rig.begin(jobs[0])
    await rig.store.finish(lease, ANSWER)
    assert (await rig.job(jobs[0])).state is JobState.COMPLETED


async def test_a_model_whose_attempts_begin_or_run_keeps_its_jobs(rig: Rig) -> None:
    """One slow job runs for long, and those behind it wait."""
    running = await rig.begin(await rig.submit("slow"))
    for n in range(5):
        await rig.submit(str(n))
    for _ in range(3 * TRIP_S // 10):
        await rig.pass_s(10)
        await rig.store.renew([running], extend=True)

    assert not await rig.is_tripped()
    assert await rig.waiting("other") == 0


async def test_a_job_that_comes_to_a_model_asleep_for_days_is_given_its_time(rig: Rig) -> None:
    await rig.store.finish(await rig.begin(await rig.submit("old")), ANSWER)
    await rig.pass_s(TRIP_S * 3)
    await rig.submit("new")
    await rig.pass_s(TRIP_S - 10)

    assert not await rig.is_tripped()


async def test_one_job_after_a_pause_is_a_probe_and_goes_on_when_the_model_stays_away(
    rig: Rig,
) -> None:
    await rig.submit("first")
    await rig.pass_s(TRIP_S)
    person = await rig.submit("person", lane=Lane.INTERACTIVE)
    await rig.pass_s(5)
    in_the_pause = (await rig.job(person)).to_run.model
    await rig.pass_s(COLD_S)
    soon = await rig.clock.now_ms() + 30_000
    late = await rig.submit("late", lane=Lane.BATCH, deadline_ms=soon)
    person = await rig.submit("another person", lane=Lane.INTERACTIVE)
    night = await rig.submit("night", lane=Lane.BATCH)
    await rig.pass_s(5)

    assert in_the_pause == "other"
    assert await rig.probe() == night
    models = {name: (await rig.job(name)).to_run.model for name in (late, person, night)}
    assert models == {late: "other", person: "other", night: "own"}
    await rig.pass_s(COLD_S)
    assert (await rig.job(night)).to_run.model == "other"
    assert await rig.is_tripped()


async def test_the_model_is_used_again_when_an_attempt_begins(rig: Rig) -> None:
    await rig.submit("first")
    await rig.pass_s(TRIP_S + COLD_S)
    probe = await rig.submit("probe")
    await rig.pass_s(5)
    lease = await rig.begin(probe)
    after = [await rig.submit(f"after {n}") for n in range(3)]
    await rig.pass_s(60)

    assert lease.attempt == 1
    assert not await rig.is_tripped()
    assert {(await rig.job(job_id)).to_run.model for job_id in after} == {"own"}


async def test_a_job_that_takes_no_other_model_shows_as_well_that_the_model_starts(
    rig: Rig,
) -> None:
    await rig.submit("1")
    await rig.pass_s(TRIP_S)
    await rig.begin(await rig.submit("patient", fallback="none"))

    assert not await rig.is_tripped()


async def test_a_job_whose_caller_or_tenant_takes_no_other_model_waits(rig: Rig) -> None:
    patient = await rig.submit("patient", fallback="none")
    strange = await rig.submit("strange", model="close")
    await rig.submit("1")
    await rig.pass_s(2 * TRIP_S)
    for watch in rig.watches:
        await watch.check("close")

    assert (await rig.job(patient)).to_run.model == "own"
    assert (await rig.job(strange)).to_run.model == "close"
    assert await rig.waiting("own") == 1
    assert await rig.redis.zcard(keys.starting_jobs("close")) == 0


async def test_a_model_without_a_fallback_keeps_nothing_of_its_starts(rig: Rig) -> None:
    await rig.store.finish(await rig.begin(await rig.submit("1", model="other")), ANSWER)

    assert await rig.redis.keys("torpor:starting:*") == []


async def test_a_job_that_lost_its_only_attempt_starts_over_at_the_other_model(rig: Rig) -> None:
    """The process died with its GPU, and no other starts."""
    job_id = await rig.submit("1")
    old = await rig.begin(job_id)
    await rig.pass_s(TRIP_S + 10)
    moved = await rig.job(job_id)
    await rig.store.finish(old, ANSWER)

    assert (moved.to_run.model, moved.state) == ("other", JobState.QUEUED)
    assert [run.outcome for run in moved.history] == ["lost"]
    assert (await rig.job(job_id)).state is JobState.QUEUED


async def test_an_answer_that_waits_for_a_step_is_no_job_that_waits_for_a_start(rig: Rig) -> None:
    plan = Plan(steps=(PlannedStep(name="no-op", after=True),))
    job_id = await rig.submit("1", plan=plan)
    await rig.store.finish(await rig.begin(job_id), ANSWER)
    await rig.pass_s(2 * TRIP_S)

    assert (await rig.job(job_id)).is_validating
    assert not await rig.is_tripped()


async def test_a_job_waits_for_the_start_of_its_model_from_its_last_step_on(rig: Rig) -> None:
    plan = Plan(steps=(PlannedStep(name="no-op"),))
    job_id = await rig.submit("1", plan=plan)
    await rig.pass_s(2 * TRIP_S)
    before = (await rig.job(job_id)).to_run.model
    await rig.store.begin_step(job_id, "no-op")
    job = await rig.job(job_id)
    advance = Advance(rig.store, rig.route, FALLBACKS)
    await advance.go_on(job, StepRun.of(job, "no-op"), StepStatus.COMPLETED, {})
    await rig.pass_s(TRIP_S)

    assert before == "own"
    assert (await rig.job(job_id)).to_run.model == "other"


async def test_what_is_left_of_it_in_its_own_queue_ends_nothing(rig: Rig) -> None:
    """Its event was delivered and held when it was moved; then its deliveries are used up."""
    job_id = await rig.submit("1")
    own = Queue(rig.redis, "own", "pump")
    (claimed,) = await own.claim(1)
    await rig.pass_s(TRIP_S)
    handler = DeadLetterHandler(rig.redis, rig.store, rig.route)
    gone = SubscriberResponse(status=0, is_unreached=True)
    is_settled = await handler.record(TRIGGERS[0], claimed, "no answer", gone)
    await own.settle(claimed.ticket)

    assert is_settled
    assert (await rig.job(job_id)).state is JobState.QUEUED
    assert await rig.waiting("other") == 1


async def test_an_answer_of_the_other_model_is_not_kept_as_the_models_own(rig: Rig) -> None:
    job_id = await rig.submit("1", cache_control="max-age=600")
    entries = await rig.redis.keys("torpor:cache:entry:*")
    await rig.pass_s(TRIP_S)
    await rig.store.finish(await rig.begin(job_id), ANSWER)

    assert len(entries) == 1
    assert await rig.redis.keys("torpor:cache:entry:*") == []


async def pass_starts(redis: Redis, milliseconds: int) -> None:
    """Let time pass for what is known of the model's starts."""
    jobs, start = keys.starting_jobs("own"), keys.starting("own")
    held = await redis.hgetall(start)
    async with redis.pipeline(transaction=False) as pipe:
        for name, value in held.items():
            if name != b"probe" and value != b"0":
                pipe.hincrby(start, name.decode(), -milliseconds)
        for job_id, at_ms in await redis.zrange(jobs, 0, -1, withscores=True):
            pipe.zadd(jobs, {job_id: at_ms - milliseconds})
        await pipe.execute()


async def test_it_does_not_flap_over_a_thousand_steps(rig: Rig) -> None:
    """A model that begins an attempt now and then: between trips lies at least the time that trips it."""
    luck, now_s, trips, probes = random.Random(18), 0, [], 0
    was_tripped = False
    for step in range(1000):
        now_s += STEP_S
        await pass_starts(rig.redis, STEP_S * 1000)
        if luck.random() < 0.2:
            await rig.submit(str(step))
        await luck.choice(rig.watches).check("own")
        is_tripped = await rig.is_tripped()
        if is_tripped and not was_tripped:
            trips.append(now_s)
        was_tripped = is_tripped
        left = await rig.redis.zrange(keys.starting_jobs("own"), 0, -1)
        if is_tripped:
            assert len(left) <= 1
            probes += bool(await rig.probe())
        if left and luck.random() < 0.02:
            job_id = JobId(left[0].decode())
            await rig.store.finish(await rig.begin(job_id), ANSWER)

    assert len(trips) > 3
    assert probes
    assert all(later - earlier >= TRIP_S for earlier, later in itertools.pairwise(trips))


@asynccontextmanager
async def watching(url: str, cold_start_s: float) -> AsyncIterator[None]:
    """Four processes that watch."""
    argv = ("-m", "tests.contract.broker.start_watch_program", url, str(cold_start_s))
    async with AsyncExitStack() as exits:
        started = []
        for _ in range(PROCESSES):
            process = await asyncio.create_subprocess_exec(
                sys.executable, *argv, stdout=asyncio.subprocess.PIPE
            )
            exits.push_async_callback(process.wait)
            exits.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            await process.stdout.readline()
        yield


async def test_time_in_which_no_process_could_look_does_not_count(rig: Rig) -> None:
    await rig.submit("1")
    await rig.pass_s(TRIP_S // 2)
    await rig.clock.pass_time(10 * TRIP_S * 1000)
    await rig.pass_s(TRIP_S // 2 - STEP_S)
    before = await rig.is_tripped()
    await rig.pass_s(2 * STEP_S)

    assert not before
    assert await rig.is_tripped()


async def test_four_processes_over_a_store_that_stood_still_move_each_job_once(
    redis_server: Callable[..., RedisServer],
) -> None:
    server = redis_server(options=["--appendonly", "no"])
    server.start()
    redis = connect(server.url, timeout_s=20)
    rig = Rig(redis, [])
    try:
        for each in TRIGGERS:
            await Queue(redis, each.name, "c").ensure()
        async with watching(server.url, cold_start_s=1):
            jobs = [await rig.submit(str(n)) for n in range(50)]
            (_, since_ms), *_ = await redis.zrange(keys.starting_jobs("own"), 0, 0, withscores=True)
            await until_checked(redis)
            server.signal(signal.SIGSTOP)
            await asyncio.sleep(PAUSE_MS / 1000)
            server.signal(signal.SIGCONT)
            async with asyncio.timeout(60):
                while await rig.waiting("other") < len(jobs):
                    await asyncio.sleep(0.05)
            models = {(await rig.job(job_id)).to_run.model for job_id in jobs}
            tickets = await redis.xlen(keys.queue("other", "tickets"))
            left = await rig.waiting("own")
            tripped_ms = int(await redis.hget(keys.starting("own"), "tripped_ms") or 0)
    finally:
        await redis.aclose()

    assert models == {"other"}
    assert (tickets, left) == (len(jobs), 0)
    assert tripped_ms - since_ms >= 2000 + PAUSE_MS


async def until_checked(redis: Redis) -> None:
    """Return once a process has decided anew."""
    seen = await redis.hget(keys.starting("own"), "checked_ms")
    async with asyncio.timeout(60):
        while await redis.hget(keys.starting("own"), "checked_ms") == seen:
            await asyncio.sleep(0.01)


async def test_a_predictor_leaves_a_job_alone_that_another_model_is_asked_for_now(
    rig: Rig,
) -> None:
    """The event was on its way to it, or held, when the job was moved."""
    job_id = await rig.submit("1", model="own")
    event = request_event(await rig.job(job_id))
    await rig.pass_s(TRIP_S)
    async with open_harness(store=cast(UnreliableStore, rig.store)) as harness:
        answer = await harness.deliver(event)

    job = await rig.job(job_id)
    assert answer.status == 202
    assert (job.state, job.attempt, job.error) == (JobState.QUEUED, 0, None)

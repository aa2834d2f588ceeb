"""F07, F08, F22: a worker that sleeps, is cut off or has a wrong clock; another takes over."""

import asyncio
import signal
from pathlib import Path

import pytest

from eventing.job import JobId
from tests.faults.checker import Rules
from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.dump import dump
from tests.faults.history import Kind
from tests.faults.processes import QUEUE, TENANT, System, Tuning, Zygote, running

pytestmark = pytest.mark.timeout(600)
LEASE_S = 0.6
SLOW = Tuning(lease_s=LEASE_S, tokens_per_s=40, delivery_timeout="PT2S", max_attempts=10)


async def half_way(system: System, jobs: list[JobId]) -> None:
    """Return when every job has tokens and none has ended."""
    async with asyncio.timeout(10):
        while True:
            found = (await dump(system.redis, QUEUE, TENANT)).jobs
            if all(len(found[j].entries) >= 3 for j in jobs if j in found) and len(found) >= len(
                jobs
            ):
                return
            await asyncio.sleep(0.02)


async def submitted(system: System, count: int, tokens: int) -> list[JobId]:
    lines = [(body(n, tokens=tokens), f"job-{n}") for n in range(count)]
    return list(await asyncio.gather(*(system.client.submit(line, key) for line, key in lines)))


async def test_f07_a_stopped_worker_wakes_after_another_has_finished_its_jobs(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path, SLOW) as system:
        heir = system.new_predictor("heir")
        heir.start()
        await heir.ready()
        jobs = await submitted(system, trials, tokens=60)
        await half_way(system, jobs)
        system.predictor.signal(signal.SIGSTOP)
        for job_id in jobs:
            system.history.add(Kind.FAULT, "stopped", job_id=job_id)
        system.deliver_to(heir)
        await asyncio.sleep(LEASE_S * 2)
        await system.ended(jobs, within_s=20)

        system.predictor.signal(signal.SIGCONT)
        await asyncio.sleep(2)

        await judge(system, trials, Rules(max_attempts=10), of="zombies")


async def test_f08_a_worker_that_cannot_renew_stops_and_leaves_its_jobs(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path, SLOW) as system:
        heir = system.new_predictor("heir")
        heir.env["TORPOR_REDIS_URL"] = system.server.url
        heir.start()
        await heir.ready()
        jobs = await submitted(system, trials, tokens=200)
        await half_way(system, jobs)

        system.predictor_redis.black_hole()
        system.history.add(Kind.FAULT, "black hole", what="predictor-redis")
        system.deliver_to(heir)
        await asyncio.sleep(LEASE_S * 2)
        system.delivery.cut()  # kept-alive connections still lead to the cut-off worker
        await system.ended(jobs, within_s=30)
        system.predictor_redis.heal()
        await asyncio.sleep(1)

        await judge(system, trials, Rules(max_attempts=10), of="cut-off jobs")


@pytest.mark.parametrize(
    "skew",
    [[(0.0, 300.0)], [(0.0, -300.0)], [(3.0, 300.0)], [(3.0, -300.0)]],
    ids=["ahead", "behind", "jumps ahead", "jumps back"],
)
async def test_f22_a_wrong_clock_changes_nothing(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge, skew: list[tuple[float, float]]
) -> None:
    # Half of the deliveries go to a worker whose clock is right, and both hold leases at once.
    tuning = Tuning(lease_s=3, tokens_per_s=40)
    async with running(zygote, tmp_path, tuning) as system:
        wrong = system.new_predictor("wrong-clock", skew=skew)
        wrong.start()
        await wrong.ready()
        first = await submitted(system, trials, tokens=100)
        await half_way(system, first)
        system.deliver_to(wrong)
        lines = [(body(n, tokens=100), f"late-{n}") for n in range(trials)]
        late = await asyncio.gather(*(system.client.submit(line, key) for line, key in lines))
        await system.ended([*first, *late], within_s=30)

        found = (await system.dumped()).jobs
        runs = [len(found[job_id].attempts) for job_id in (*first, *late)]
        assert runs == [1] * len(runs), "a clock took a lease away"
        await judge(system, trials, of="jobs under a wrong clock")

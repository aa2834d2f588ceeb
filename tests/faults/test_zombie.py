"""F07, F08, F22: a worker is suspended, cut off or has a wrong clock, and another takes over."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from eventing.job.job import JobId
from tests.faults.checker import Rules
from tests.faults.client import body
from tests.faults.conftest import Judge, rounds
from tests.faults.history import Kind
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote

pytestmark = pytest.mark.timeout(600)
LEASE_S = 0.6
SLOW = Tuning(lease_s=LEASE_S, tokens_per_s=40, delivery_timeout="PT2S", max_attempts=10)


async def half_way(system: System, jobs: Sequence[str]) -> None:
    """Return when every job has tokens and none has ended."""
    async with asyncio.timeout(20):
        while not all(count > 1 for count in await system.token_counts(jobs)):
            await asyncio.sleep(0.02)


async def submitted(system: System, name: str, numbers: range, tokens: int) -> list[str]:
    lines = [(body(n, tokens=tokens), f"{name}-{n}") for n in numbers]
    return list(await asyncio.gather(*(system.client.submit(line, key) for line, key in lines)))


async def test_f07_a_stopped_worker_wakes_after_another_has_finished_its_jobs(
    zygote: Zygote, tmp_path: Path, many: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path, SLOW) as system:
        heir = system.new_predictor("heir")
        heir.start()
        await heir.ready()
        for numbers in rounds(many, 20):
            system.deliver_to(system.predictor)
            system.delivery.cut()
            jobs = await submitted(system, "job", numbers, tokens=60)
            await half_way(system, jobs)
            system.predictor.signal(signal.SIGSTOP)
            for job_id in jobs:
                system.history.add(Kind.FAULT, "stopped", job_id=job_id)
            system.deliver_to(heir)
            await asyncio.sleep(LEASE_S * 2)
            system.delivery.cut()  # kept-alive connections still lead to the stopped worker
            await system.ended(jobs, within_s=60)

            system.predictor.signal(signal.SIGCONT)
            await asyncio.sleep(1)

        await judge(system, many, Rules(max_attempts=10), of="zombies")


async def test_f08_a_worker_that_cannot_renew_stops_and_leaves_its_jobs(
    zygote: Zygote, tmp_path: Path, many: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path, SLOW) as system:
        heir = system.new_predictor("heir")
        heir.env["TORPOR_REDIS_URL"] = system.server.url
        heir.start()
        await heir.ready()
        for numbers in rounds(many, 20):
            system.deliver_to(system.predictor)
            system.delivery.cut()
            jobs = await submitted(system, "job", numbers, tokens=100)
            await half_way(system, jobs)

            system.predictor_redis.black_hole()
            system.history.add(Kind.FAULT, "black hole", what="predictor-redis")
            system.deliver_to(heir)
            await asyncio.sleep(LEASE_S * 2)
            system.delivery.cut()  # kept-alive connections still lead to the cut-off worker
            await system.ended(jobs, within_s=60)
            system.predictor_redis.heal()
            await asyncio.sleep(1)

        await judge(system, many, Rules(max_attempts=10), of="cut-off jobs")


CLOCKS = {
    "ahead": [(0.0, 300.0)],
    "behind": [(0.0, -300.0)],
    "jumps ahead": [(3.0, 300.0)],
    "jumps back": [(3.0, -300.0)],
}


async def test_f22_a_wrong_clock_changes_nothing(
    zygote: Zygote, tmp_path: Path, many: int, judge: Judge
) -> None:
    # Workers with every wrong clock, and one whose clock is right, hold leases at once.
    each = max(many // 4, 1)
    async with running(zygote, tmp_path, Tuning(lease_s=4, tokens_per_s=40)) as system:
        jobs: list[str] = []
        for numbers in rounds(each, 5):
            workers = [
                system.new_predictor(f"{name}-{numbers.start}", skew=skew)
                for name, skew in CLOCKS.items()
            ]
            for worker in workers:
                worker.start()
            await asyncio.gather(*(worker.ready() for worker in workers))
            system.delivery.cut()
            taken: list[str] = []
            for worker in (*workers, system.predictor):
                system.deliver_to(worker)
                taken += await submitted(system, worker.name, numbers, tokens=160)
                await half_way(system, taken)
            await system.ended(taken, within_s=60)
            jobs += taken
            await asyncio.gather(*(worker.kill() for worker in workers))

        found = (await system.dumped()).jobs
        runs = [len(found[JobId(job_id)].attempts) for job_id in jobs]
        assert runs == [1] * len(runs), "a clock took a lease away"
        await judge(system, 4 * each, of="jobs under a wrong clock")

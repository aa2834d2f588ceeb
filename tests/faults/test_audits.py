"""Audits in eight processes that are killed while they sample, ask, judge and tell: each answer is judged once."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import orjson
import pytest
from redis.asyncio import Redis

from api.audit.critic import Verdict
from api.audit.estimate import AuditedCounts
from eventing.job.job import Job
from tests.contract.audit_rig import CRITIC, FLAW, AuditRig
from tests.faults.audit_process import TOLD

pytestmark = pytest.mark.timeout(300)
PROCESSES = 8
JOBS = 160
KILLS = 6
DAY_MS = 86_400_000


def started(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.faults.audit_process", url])


@contextmanager
def auditing(url: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes; they are gone with the block."""
    alive = [started(url) for _ in range(PROCESSES)]
    try:
        yield alive
    finally:
        for each in alive:
            each.kill()
        for each in alive:
            each.wait()


async def kill_at_work(
    rig: AuditRig, alive: list[subprocess.Popen[bytes]], url: str, draw: Random
) -> None:
    """Kill one process after another with SIGKILL, each when some more verdicts were told, and start it again."""
    for number in range(1, KILLS + 1):
        while await rig.redis.llen(TOLD) < number * JOBS // (KILLS + 2):
            await asyncio.sleep(0.002)
        victim = alive.pop(draw.randrange(len(alive)))
        victim.kill()
        await asyncio.to_thread(victim.wait)
        alive.append(started(url))


async def until_judged(rig: AuditRig, jobs: list[Job]) -> None:
    """Return once every job has a verdict. What was taken is made a minute old again and again, as for a process that
    died with it: those that live must not ask twice for all that.
    """
    waited = f"torpor:audits:asked:{CRITIC}"
    while True:
        found = await rig.audits.read([job.id for job in jobs])
        if all(each is not None and each.verdict is not None for each in found):
            return
        for name, score in await rig.redis.zrange(waited, 0, -1, withscores=True):
            await rig.redis.zadd(waited, {name: score - 61_000}, xx=True)
        await asyncio.sleep(0.5)


async def until_told(rig: AuditRig, count: int) -> set[str]:
    while True:
        told = [line.decode().partition(" ") for line in await rig.redis.lrange(TOLD, 0, -1)]
        data = {name: orjson.loads(text)["verdict"] for name, _, text in told}
        if len(data) == count:
            return {f"{name} {verdict}" for name, verdict in data.items()}
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("seed", [1])
async def test_processes_that_die_anywhere_record_count_and_tell_each_verdict_once(
    redis: Redis, redis_url: str, seed: int
) -> None:
    rig = AuditRig(redis)
    await rig.know_critic()

    jobs = [await rig.answered(i, FLAW if i % 4 == 0 else "good") for i in range(JOBS)]

    with auditing(redis_url) as alive:
        await kill_at_work(rig, alive, redis_url, Random(seed))
        await until_judged(rig, jobs)
        told = await until_told(rig, JOBS)

    found = [each for each in await rig.audits.read([job.id for job in jobs]) if each]
    flagged = {each.job_id for each in found if each.verdict is Verdict.UNSUPPORTED}
    assert flagged == {job.id for number, job in enumerate(jobs) if number % 4 == 0}
    assert told == {f"{each.id} {each.verdict}" for each in found}
    version = await rig.round.version(CRITIC)
    days = sorted({job.finished_ms // DAY_MS for job in jobs})
    sums = await rig.audits.counts(days)
    assert sums[version, "m"] == AuditedCounts(
        jobs=JOBS, weights=JOBS, squares=JOBS, flagged=JOBS / 4
    )
    spent = (await rig.audits.spent([*days, days[-1] + 1]))[CRITIC]
    assert (spent.jobs, spent.gpu_ms) == (JOBS, 10 * JOBS)
    assert await rig.audits.waiting(CRITIC) == 0

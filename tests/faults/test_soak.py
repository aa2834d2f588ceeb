"""F32: two api, two broker and three predictor processes under everything that callers do, hurt at random, and what
was promised is kept. `make soak MINUTES=30` is the long form; SEED=n draws the same faults and calls again, at the
pace of the machine.
"""

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Final

import pytest

from eventing.redis import keys
from tests.faults.batches import BatchLoad, all_ended, check_batch
from tests.faults.checker import Rules
from tests.faults.conftest import Judge
from tests.faults.fleet import fleet_of
from tests.faults.history import Kind
from tests.faults.hooks import hooks_of
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote
from tests.faults.soak_faults import faults_of
from tests.faults.soak_load import SoakLoad, callers_of

MINUTES: Final = float(os.environ.get("TORPOR_SOAK_MINUTES", "0.5"))
SEED: Final = int(os.environ.get("TORPOR_SOAK_SEED", "1"))
DRAINED_WITHIN_S: Final = 120.0
ATTEMPTS: Final = 12
pytestmark = pytest.mark.timeout(MINUTES * 60 * 2 + 600)


def tuning(server_binary: Path) -> Tuning:
    return Tuning(
        binary=server_binary,
        puts_itself=True,
        lease_s=2,
        max_attempts=ATTEMPTS,
        tokens_per_s=100,
        api_env=(
            ("TORPOR_LIMIT_JOBS_IN_FLIGHT", "200"),
            ("TORPOR_LIMIT_TOKENS_PER_MINUTE", "10000000"),
            ("TORPOR_WEBHOOK_ALLOW", '["127.0.0.1"]'),
            ("TORPOR_WEBHOOK_SCHEDULE_S", "[" + ", ".join(["0.5"] * 200) + "]"),
            ("TORPOR_WEBHOOK_TIMEOUT_S", "2"),
        ),
    )


async def test_f32_random_faults_over_a_whole_fleet_break_no_promise(
    zygote: Zygote, tmp_path: Path, judge: Judge, server_binary: Path
) -> None:
    print(f"make soak MINUTES={MINUTES:g} SEED={SEED}")
    draw = random.Random(SEED)
    async with (
        running(zygote, tmp_path, tuning(server_binary)) as system,
        fleet_of(system, api=2, broker=2, predictor=3) as fleet,
        hooks_of(system.history) as hooks,
        callers_of(system, fleet.members["broker"], hooks, random.Random(SEED + 1)) as load,
        faults_of(fleet, draw, (5, 20) if MINUTES > 2 else (3, 8)) as faults,
    ):
        faults.on_failover = load.ask_again
        load.is_store_trusted = lambda: not faults.failing_over
        batches = BatchLoad(fleet.members["api"], random.Random(SEED + 2))
        until_s = time.monotonic() + MINUTES * 60
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(load.run())
            batching = group.create_task(make_batches(batches, until_s))
            hurting = [group.create_task(faults.run(until_s)) for _ in range(2)]
            await asyncio.wait([batching, *hurting])
            load.stop()
            await calling
        await drained(system, load, batches)
        async with asyncio.timeout(60):
            for batch_id in batches.batches:
                await check_batch(batches, batch_id)
        await check_feed(system, load)

        rules = Rules(max_attempts=ATTEMPTS, may_lose_tail=True, lost_s=tuple(faults.lost_s))
        found = f"faults {faults.done} under calls {load.done}, seed {SEED}"
        await judge(system, sum(faults.done.values()), rules, of=found)


async def make_batches(batches: BatchLoad, until_s: float) -> None:
    number = 0
    while time.monotonic() < until_s:
        number += 1
        await batches.start(number)
        await asyncio.sleep(batches.draw.uniform(2, 8))


async def drained(system: System, load: SoakLoad, batches: BatchLoad) -> None:
    """Everything ends by itself, now that nothing is hurt; what a failover took back is asked again."""
    async with asyncio.timeout(DRAINED_WITHIN_S):
        for number in list(batches.batches.values()):
            await batches.start(number)
        await all_ended(batches)
        jobs = {str(it.job_id) for it in load.asked}
        await system.ended(list(jobs), within_s=DRAINED_WITHIN_S)
        while left := load.mended.keys() & await dead_letters(load):
            for job_id in left:
                await load.redrive(job_id)
            await system.ended(list(jobs), within_s=DRAINED_WITHIN_S)
        told = {it.job_id for it in load.asked if it.noted.get("webhook")}
        while not told <= load.hooks.told:
            await asyncio.sleep(0.2)
        while await active(system):
            await asyncio.sleep(0.2)


async def active(system: System) -> int:
    """Jobs and batches that have not ended, of whoever asked."""
    indexes = keys.UNSTARTED, keys.ACTIVE_BATCHES
    return sum([int(await system.redis.zcard(index)) for index in indexes])


async def dead_letters(load: SoakLoad) -> set[str]:
    found: set[str] = set()
    after = ""
    while True:
        _, page = await load.call("GET", f"/v1/dead-letters?limit=100{after}")
        found |= {job["id"] for job in page["data"]}
        if not page.get("next_cursor"):
            return found
        after = f"&cursor={page['next_cursor']}"


async def check_feed(system: System, load: SoakLoad) -> None:
    """A reader of `/v1/events` from the start is told of every end that is kept."""
    dumped = await system.dumped()
    missing = {str(job_id) for job_id in dumped.jobs}
    base = system.client.bases[0]
    async with (
        asyncio.timeout(60),
        load.session.get(f"{base}/v1/events", params={"after": "0-0"}) as answer,
    ):
        async for raw in answer.content:
            if raw.startswith(b"data: "):
                missing = {job_id for job_id in missing if job_id.encode() not in raw}
            if not missing:
                return
    system.history.add(Kind.SEEN, "not told", jobs=sorted(missing))
    raise AssertionError(f"{len(missing)} ends are not in /v1/events")

"""Batches of a tenant with limits while everything around them dies: two api processes that run
batches and take calls, a predictor, and the line to the store, hurt at random.

Every line of every batch stands in one of its two files, once, and the counts say so; what a batch
was given of the limit it gives back. A claim is made to lapse at once after each fault, so that
runners meet: a frozen one wakes up to find that it was overtaken.
"""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from eventing.redis import keys
from tests.faults.batches import BatchLoad, all_ended, check_batch
from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.history import Kind
from tests.faults.processes import System, running
from tests.faults.programs import Program, Tuning, Zygote
from tests.faults.proxy import Way

pytestmark = pytest.mark.timeout(1800)

_IN_FLIGHT: Final = 12
_CALLS: Final = 5
"""Calls that must be accepted after a batch was created and before the next one is."""
TUNING: Final = Tuning(
    puts_itself=True,
    tokens_per_s=200.0,
    max_attempts=10,
    api_env=(
        ("TORPOR_LIMIT_JOBS_IN_FLIGHT", str(_IN_FLIGHT)),
        ("TORPOR_LIMIT_TOKENS_PER_MINUTE", "1000000"),
        ("TORPOR_BODY_TIMEOUT_S", "5"),
    ),
)


@dataclass(eq=False)
class Load(BatchLoad):
    """Batches, and calls beside them."""

    system: System = field(kw_only=True)
    calls: list[str] = field(default_factory=list)


async def test_batches_under_a_limit_report_each_line_once_whatever_process_dies(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    draw = random.Random(13)
    async with (
        running(zygote, tmp_path, TUNING) as system,
        second_api(system) as other,
        asyncio.timeout(120 + 10 * trials),
    ):
        load = Load([system.api, other], draw, system=system)
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(call_all_the_time(load))
            for number in range(max(trials // 4, 3)):
                batch_id = await load.start(number)
                if draw.random() < 0.3:
                    group.create_task(cancel_soon(load, batch_id))
                for _ in range(4):
                    await hurt(load)
            await all_ended(load)
            calling.cancel()
        await system.ended(load.calls, within_s=60)
        for batch_id in load.batches:
            await check_batch(load, batch_id)
        await check_limit(load)
        await judge(system, len(load.batches) * 4)


@asynccontextmanager
async def second_api(system: System) -> AsyncIterator[Program]:
    other = system.new_api("api-2")
    other.start()
    try:
        await other.ready()
        yield other
    finally:
        other.signal(signal.SIGKILL)


async def call_all_the_time(load: Load) -> None:
    """Calls of people beside the batches: each is accepted in the end."""
    number = 0
    while True:
        number += 1
        line, key = body(900_000 + number, tokens=4), {"idempotency-key": f"call-{number}"}
        answer = await load.ask("POST", "/v1/jobs", json=line, headers=key)
        assert answer.status_code in (200, 202), answer.text
        load.calls.append(answer.json()["id"])
        await asyncio.sleep(0.2)


async def cancel_soon(load: Load, batch_id: str) -> None:
    await asyncio.sleep(load.draw.uniform(0.1, 2))
    await load.ask("POST", f"/v1/batches/{batch_id}/cancel")


async def hurt(load: Load) -> None:
    """One fault, drawn; then a moment, and the claims of the dead lapse."""
    system, draw = load.system, load.draw
    api = draw.choice(load.apis)
    fault = draw.choice(["kill", "freeze", "predictor", "store", "none"])
    system.history.add(Kind.FAULT, fault, what=api.name)
    match fault:
        case "kill":
            await asyncio.sleep(draw.uniform(0, 0.5))
            await api.restart()
        case "freeze":
            api.signal(signal.SIGSTOP)
            await lapse(system)
            await asyncio.sleep(draw.uniform(0.2, 2))
            api.signal(signal.SIGCONT)
        case "predictor":
            await system.predictor.restart()
        case "store":
            system.api_redis.black_hole(*Way)
            await asyncio.sleep(draw.uniform(0.1, 1))
            system.api_redis.heal()
        case _:
            await asyncio.sleep(draw.uniform(0.1, 1))
    await lapse(system)


async def lapse(system: System) -> None:
    """Every claim is due, also of those that live."""
    for member in await system.redis.zrange(keys.ACTIVE_BATCHES, 0, -1):
        await system.redis.zadd(keys.ACTIVE_BATCHES, {member: 1}, xx=True)


async def check_limit(load: Load) -> None:
    """Nothing is held any more: as many calls as the limit allows are let in, within seconds.

    Returns when they have ended too.
    """
    last: list[str] = []
    async with asyncio.timeout(20):
        for n in range(_IN_FLIGHT):
            key = {"idempotency-key": f"last-{n}"}
            answer = await load.ask("POST", "/v1/jobs", json=body(n, tokens=4), headers=key)
            last.append(answer.json()["id"])
    await load.system.ended(last, within_s=60)

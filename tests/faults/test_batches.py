"""Batches of a tenant with limits while everything around them dies: two api processes that run
batches and take calls, a predictor, and the line to the store, hurt at random.

Every line of every batch stands in one of its two files, once, and the counts say so; what a batch
was given of the limit it gives back. A claim is made to lapse at once after each fault, so that
runners meet: a frozen one wakes up to find that it was overtaken.
"""

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from eventing.redis import keys
from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.history import Kind
from tests.faults.processes import System, running
from tests.faults.programs import Program, Tuning, Zygote
from tests.faults.proxy import Way

pytestmark = pytest.mark.timeout(1800)

_IN_FLIGHT: Final = 12
_LINES: Final = 25
_CALLS: Final = 5
"""Calls that must be accepted after a batch was created and before the next one is."""
_FINAL: Final = ("completed", "failed", "cancelled", "expired")
_AWAY: Final = (httpx.TransportError, json.JSONDecodeError)
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
class Load:
    """What is asked of the system, and of which api: of any that answers."""

    system: System
    apis: Sequence[Program]
    draw: random.Random
    batches: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """The first answer that is no 5xx and no 429; every call here is safe to make again."""
        async with httpx.AsyncClient(timeout=5) as client:
            while True:
                base = self.draw.choice(self.apis).health.removesuffix("/healthz")
                with suppress(*_AWAY):
                    answer = await client.request(method, base + path, **more)
                    if answer.status_code < 500 and answer.status_code != 429:
                        return answer
                await asyncio.sleep(0.1)

    async def start(self, number: int) -> str:
        """A batch, created under a key, however often that takes."""
        made = [
            json.dumps(body(number * 1000 + n, tokens=8) | {"custom_id": f"c{n}"})
            for n in range(_LINES)
        ]
        made[7] = "{no line"
        form = {"file": ("in.jsonl", "\n".join(made)), "purpose": (None, "batch")}
        key = {"idempotency-key": f"batch-{number}"}
        file_id = (await self.ask("POST", "/v1/files", files=form, headers=key)).json()["id"]
        call = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        batch_id = str((await self.ask("POST", "/v1/batches", json=call, headers=key)).json()["id"])
        self.batches[batch_id] = number
        return batch_id

    async def look(self, batch_id: str) -> dict[str, Any]:
        seen: dict[str, Any] = (await self.ask("GET", f"/v1/batches/{batch_id}")).json()
        return seen

    async def entries(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        text = (await self.ask("GET", f"/v1/files/{file_id}/content")).text
        return [json.loads(line) for line in text.splitlines()]


async def test_batches_under_a_limit_report_each_line_once_whatever_process_dies(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    draw = random.Random(13)
    async with (
        running(zygote, tmp_path, TUNING) as system,
        second_api(system) as other,
        asyncio.timeout(120 + 10 * trials),
    ):
        load = Load(system, [system.api, other], draw)
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


async def all_ended(load: Load) -> None:
    for batch_id in load.batches:
        while (await load.look(batch_id))["status"] not in _FINAL:
            await asyncio.sleep(0.2)


async def check_batch(load: Load, batch_id: str) -> None:
    batch = await load.look(batch_id)
    output = await load.entries(batch["output_file_id"])
    errors = await load.entries(batch["error_file_id"])
    told = Counter(entry["id"] for entry in (*output, *errors))
    wanted = Counter(f"batch_req_{batch_id.removeprefix('batch_')}_{n + 1}" for n in range(_LINES))
    counts = batch["request_counts"]
    assert told == wanted
    assert counts == {"total": _LINES, "completed": len(output), "failed": len(errors)}
    if batch["status"] == "completed":
        assert [entry["error"]["line"] for entry in errors] == [8]


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

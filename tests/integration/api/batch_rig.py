"""Batches over the api: started, run by a runner that can die, and looked at."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
from redis.asyncio import Redis

from api.batch import runner as batch_runner
from api.batch.batch import Batch
from eventing.clock import Clock, SystemClock
from eventing.redis import keys
from eventing.store.file_store import new_file_id
from tests.integration.api.conftest import Rig, chat_line

URL = "/v1/chat/completions"
FINAL = ("completed", "failed", "cancelled", "expired")


def lines(count: int) -> bytes:
    made = (orjson.dumps(chat_line(f"q{n}", custom_id=f"c{n}")) for n in range(1, count + 1))
    return b"\n".join(made)


async def start(rig: Rig, body: bytes, **call: Any) -> str:
    form = {"file": ("in.jsonl", body), "purpose": (None, "batch")}
    uploaded = await rig.client.post("/v1/files", files=form)
    assert uploaded.status_code == 200, uploaded.text
    wanted = {"endpoint": URL, "completion_window": "24h", "input_file_id": uploaded.json()["id"]}
    made = await rig.client.post("/v1/batches", json=wanted | call)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


@asynccontextmanager
async def running(rig: Rig, clock: Clock | None = None) -> AsyncIterator[None]:
    """One runner, until the block ends; ended as a crash would end it."""
    deps = replace(rig.parts.batches, clock=clock or rig.parts.clock)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(batch_runner.run(deps, turn_s=0.02))
        yield
        task.cancel()


async def look(rig: Rig, batch_id: str) -> dict[str, Any]:
    seen: dict[str, Any] = (await rig.client.get(f"/v1/batches/{batch_id}")).json()
    return seen


async def ended(rig: Rig, batch_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (seen := await look(rig, batch_id))["status"] not in FINAL:
            await asyncio.sleep(0.05)
    return seen


async def entries(rig: Rig, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    text = (await rig.client.get(f"/v1/files/{file_id}/content")).text
    return [orjson.loads(line) for line in text.splitlines()]


async def told(rig: Rig, batch: dict[str, Any]) -> Counter[str]:
    """How often each line stands in the result files."""
    both = await entries(rig, batch["output_file_id"]) + await entries(rig, batch["error_file_id"])
    return Counter(entry["custom_id"] for entry in both)


def adds_up(batch: dict[str, Any], output: Sequence[Any], errors: Sequence[Any]) -> bool:
    counts = batch["request_counts"]
    return (counts["completed"], counts["failed"]) == (len(output), len(errors))


async def time_passes(rig: Rig) -> None:
    """Until the claims of the dead have lapsed."""
    for member in await rig.store.redis.zrange(keys.ACTIVE_BATCHES, 0, -1):
        await rig.store.redis.zadd(keys.ACTIVE_BATCHES, {member: 1})


async def put_back(redis: Redis, name: str, record: dict[bytes, bytes]) -> None:
    """The record as it was: what a store that lost its last second has."""
    async with redis.pipeline(transaction=True) as pipe:
        await pipe.delete(name).hset(name, mapping=record).execute()


class LateClock(SystemClock):
    """A day and an hour later than everybody else's."""

    def wall_ms(self) -> int:
        return super().wall_ms() + 25 * 3600 * 1000


def new_batch(tenant: str, input_file_id: str) -> Batch:
    return Batch(
        id=f"batch_{random.randbytes(12).hex()}",
        tenant=tenant,
        endpoint=URL,
        input_file_id=input_file_id,
        output_file_id=new_file_id(),
        error_file_id=new_file_id(),
        created_at=SystemClock().wall_ms() // 1000,
    )

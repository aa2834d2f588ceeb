"""A thousand calls that wait for a person at once: what they hold, what survives, how fast answers go on.

    python -m bench.approvals [--jobs 1000]

`torpor up` on a store of its own, with the test engine and one tool whose calls need approval. All jobs come to wait,
predictor and steps go to zero; then: processes and connections against those before, bytes of every key
of the waiting jobs, kill -9 of the store, the time of each answer (which queues the call in the same script), and how
late a wait that no one answered is ended.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.report import machine, publish, quantile
from bench.torpor_up import Stack, torpor_up
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.contract.tool_process import listening
from tests.redis_server import RedisServer

LATE_MS: Final = 20_000
"""How long a person is waited for in the last part."""
_SUBMITS: Final = 16
_ANSWERS: Final = (1, 16)
_ZERO_WITHIN_S: Final = 120.0


@dataclass(slots=True)
class Rig:
    """What is measured."""

    stack: Stack
    server: RedisServer
    redis: Redis
    http: aiohttp.ClientSession

    async def held(self) -> dict[str, int]:
        """Processes below the stack, their connections, and the store's clients."""
        below = psutil.Process(self.stack.pid).children(recursive=True)
        open_now = [c for each in below for c in each.connections("tcp") if c.raddr]
        clients = (await self.redis.info("clients"))["connected_clients"]
        return {"processes": len(below), "connections": len(open_now), "store_clients": clients}

    async def at_zero(self) -> None:
        """Return once no predictor runs and the steps are asleep."""
        async with asyncio.timeout(_ZERO_WITHIN_S):
            while await self._replicas():
                await asyncio.sleep(0.2)

    async def _replicas(self) -> int:
        async with self.http.get(f"{self.stack.at.activator}/status") as answer:
            status = await answer.json()
        lists = [each["replicas"]["list"] for each in status["models"]]
        steps = status.get("steps") or {}
        return sum(map(len, lists)) + len((steps.get("replicas") or {}).get("list", ()))

    async def waiting(self) -> int:
        return int(await self.redis.zcard(keys.APPROVALS_DUE))


def no_op() -> Starlette:
    async def take(_: Request) -> Response:
        return Response(b'{"content":"done"}', media_type="application/json")

    return Starlette(routes=[Route("/", take, methods=["POST"])])


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Rig]:
    """Store and stack, with models `long` and `late`, which differ in how long a person is waited for."""
    server = RedisServer(folder / "store", options=["--appendonly", "yes"])
    server.start()
    async with listening(no_op()) as tool:
        pay = {"kind": "function", "url": tool, "trusted": True, "parameters": {"type": "object"}}
        (folder / "tools.yaml").write_text(json.dumps({"servers": {"pay": pay}}))
        listed = {"step": "list-tools", "settings": {"servers": ["pay"]}}
        late = {"step": "tools", "settings": {"limits": {"approval_ttl_ms": LATE_MS}}}
        plans = {"long": {"steps": [listed, "tools"]}, "late": {"steps": [listed, late]}}
        (folder / "pipelines.yaml").write_text(json.dumps(plans))
        flags = ["--redis-url", server.url, "--model", "long=seeded", "--model", "late=seeded"]
        flags += ["--tools", str(folder / "tools.yaml"), "--time-scale", "10"]
        flags += ["--pipelines", str(folder / "pipelines.yaml")]
        speed = {"TORPOR_SEEDED_TOKENS_PER_S": "5000", "TORPOR_SEEDED_PREFILL_TOKENS_PER_S": "0"}
        entered = torpor_up(folder / "data", *flags, env=speed)
        stack = await asyncio.to_thread(entered.__enter__)
        redis = connect(server.url)
        try:
            connector = aiohttp.TCPConnector(limit=64, force_close=True)
            async with aiohttp.ClientSession(stack.at.api, connector=connector) as http:
                yield Rig(stack, server, redis, http)
        finally:
            await redis.aclose()
            await asyncio.to_thread(entered.__exit__, None, None, None)
            server.kill()


async def each_of(jobs: Iterable[Any], workers: int, run: Any) -> list[Any]:
    """What `run` gives for each, so many at once."""
    left, found = iter(jobs), []

    async def work() -> None:
        for job in left:
            found.append(await run(job))

    await asyncio.gather(*(work() for _ in range(workers)))
    return found


async def submitted(rig: Rig, model: str, jobs: int) -> list[JobId]:
    """So many jobs, all of which wait."""
    before = await rig.waiting()
    call = {"name": "pay__pay", "arguments": {"order": "A7", "amount": 12.5}}
    turns = [{"text": "I pay it back.", "calls": [call]}, {"text": "Done."}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Pay order A7 back."}],
        "seeded": {"turns": turns},
    }

    async def one(_: int) -> JobId:
        line = {"url": "/v1/chat/completions", "body": body}
        async with rig.http.post("/v1/jobs", json=line) as answer:
            return JobId((await answer.json())["id"])

    made = await each_of(range(jobs), _SUBMITS, one)
    while model == "long" and await rig.waiting() < before + jobs:
        await asyncio.sleep(0.1)
    return made


async def bytes_each(rig: Rig, jobs: list[JobId]) -> dict[str, float]:
    """Bytes of every key of a job, and its share of the indexes in which waiting jobs stand."""
    sizes = []
    for job_id in jobs:
        own = [key async for key in rig.redis.scan_iter(match=f"*{job_id}*", count=10_000)]
        sizes.append(sum([int(await rig.redis.memory_usage(key, samples=0) or 0) for key in own]))
    shared = 0
    async for key in rig.redis.scan_iter(count=10_000):
        if b"job_" not in key:
            shared += int(await rig.redis.memory_usage(key, samples=0) or 0)
    share = shared / await rig.waiting()
    return {"keys_mean": sum(sizes) / len(sizes), "keys_most": max(sizes), "share_of_others": share}


async def answered_ms(rig: Rig, jobs: list[JobId], workers: int) -> list[float]:
    async def one(job_id: JobId) -> float:
        place = f"/v1/jobs/{job_id}/approvals/mcpr_{job_id.removeprefix('job_')}_1_0"
        began_s = time.perf_counter()
        async with rig.http.post(place, json={"approve": True}) as answer:
            if answer.status != 200:
                raise RuntimeError(await answer.text())
        return 1000 * (time.perf_counter() - began_s)

    return await each_of(jobs, workers, one)


async def ended(rig: Rig, jobs: list[JobId]) -> int:
    """How many have completed, once all have ended."""
    store = RedisStore(rig.redis)
    while True:
        found = [await store.get(job_id) for job_id in jobs]
        if all(job is None or job.state.is_terminal for job in found):
            return sum(job is not None and job.state == "completed" for job in found)
        await asyncio.sleep(0.5)


async def late_ms(rig: Rig, jobs: int) -> list[float]:
    """How late each wait that no one answered was ended."""
    made, found = await submitted(rig, "late", jobs), []
    await ended(rig, made)
    for job_id in made:
        job = await RedisStore(rig.redis).get(job_id)
        assert job is not None
        turn = job.turns[0]
        found.append(turn.calls[0].ended_ms - turn.committed_ms - LATE_MS)
    return found


async def measured(jobs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder)) as rig:
            warm = await submitted(rig, "long", _SUBMITS)
            await answered_ms(rig, warm, _SUBMITS)
            await ended(rig, warm)
            await rig.at_zero()
            report: dict[str, Any] = {"jobs": jobs, "before": await rig.held()}
            made = await submitted(rig, "long", jobs)
            await rig.at_zero()
            report["waiting"] = await rig.held()
            report["bytes"] = await bytes_each(rig, made[:100])
            await asyncio.sleep(1.5)  # the log is written every second
            await asyncio.to_thread(rig.server.kill)
            await asyncio.to_thread(rig.server.start)
            report["after_restart"] = await rig.waiting()
            parts = made[: jobs // 5], made[jobs // 5 :]
            for workers, part in zip(_ANSWERS, parts, strict=True):
                times = await answered_ms(rig, part, workers)
                shown = [round(quantile(times, share), 1) for share in (0.5, 0.99)]
                report[f"answer_ms_{workers}_at_once"] = shown
            report["completed"] = await ended(rig, made)
            late = await late_ms(rig, jobs)
            report["late_ms"] = [round(quantile(late, share)) for share in (0.5, 0.99, 1)]
            return report


def main() -> None:
    """Print what waiting holds, p50 and p99 of an answer, and how late the last wait was ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    publish(asyncio.run(measured(args.jobs)) | {"machine": machine()}, args.json)


if __name__ == "__main__":
    main()

"""One api process on one core: submits a second, polls a second, and the delay of live tokens.

`python -m bench.api.load all --json api_load.json` (or `submits`, `polls`, `readers`, `burst`). The
api is pinned to core 0; Valkey (AOF as in production, fsync each second), a broker that confirms at
once, the token writer and the clients share the other cores, so on a 2-core machine all of those
share one. Clients speak HTTP over bare sockets: a client library would be what is measured. A delay
is from the moment a token is handed to Valkey until its SSE event is in a client's hands.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psutil
import uvloop

from bench.api.load_stack import Ports, stack
from bench.api.load_wire import Spent, Wire, delete, get, post, wires
from bench.peers.peers import put_ahead
from bench.report import publish, quantile
from bench.torpor_up import ROOT
from eventing.job.job import JobId, new_job_id, parse_request
from eventing.job.store import NewJob
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore

BODY: Final = json.dumps(
    {
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "Why do birds sleep?"}]},
    }
).encode()
CONNECTIONS: Final = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["all", "submits", "polls", "readers", "burst"])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--slow", type=float, default=0.0, help="share that reads once in 2 s")
    parser.add_argument("--deaf", type=float, default=0.0, help="share that reads nothing")
    parser.add_argument("--ahead", action="store_true", help="the cores before other work")
    parser.add_argument("--tokens-per-second", type=float, default=20.0)
    parser.add_argument("--real-broker", action="store_true", help="our own broker, not a stand-in")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "broker": "ours" if args.real_broker else "stand-in that confirms at once",
    }
    if args.ahead:
        os.setsid()  # Linux weighs sessions
        put_ahead([os.getpid()])
    with stack(args.real_broker) as ports:
        wanted = ("submits", "polls", "readers", "burst") if args.what == "all" else (args.what,)
        for name in wanted:
            report[name] = uvloop.run(MEASURES[name](ports, args))
            print(name, "is done", file=sys.stderr, flush=True)
    publish(report, args.json)


async def hammer(ports: Ports, request: bytes, seconds: float, connections: int) -> dict[str, Any]:
    """The same request over and over; rate, delays and the api's CPU."""
    delays: list[float] = []
    statuses: dict[int, int] = {}
    end_s = time.perf_counter() + seconds

    async def one(wire: Wire) -> None:
        while (started_s := time.perf_counter()) < end_s:
            status, _ = await wire.ask(request)
            delays.append(time.perf_counter() - started_s)
            statuses[status] = statuses.get(status, 0) + 1

    spent = Spent(ports.api_pid)
    started_s = time.perf_counter()
    await asyncio.gather(*(one(wire) for wire in await wires(ports.api, connections)))
    took_s = time.perf_counter() - started_s
    cpu_s = spent.cpu_s()
    return {
        "per_second": round(len(delays) / took_s),
        "statuses": statuses,
        "p50_ms": round(quantile(delays, 0.5) * 1000, 2),
        "p99_ms": round(quantile(delays, 0.99) * 1000, 2),
        "api_cpu_share": round(cpu_s / took_s, 2),
        "api_cpu_us_each": round(cpu_s / len(delays) * 1e6),
        "connections": connections,
    }


async def submits(ports: Ports, args: argparse.Namespace) -> dict[str, Any]:
    await hammer(ports, post("/v1/jobs", BODY), 1.0, CONNECTIONS)
    return await hammer(ports, post("/v1/jobs", BODY), args.seconds, CONNECTIONS)


async def polls(ports: Ports, args: argparse.Namespace) -> dict[str, Any]:
    """Of one ended job: nothing but the record is looked up."""
    wire = (await wires(ports.api, 1))[0]
    _, body = await wire.ask(post("/v1/jobs", BODY))
    job_id = json.loads(body)["id"]
    await wire.ask(delete(f"/v1/jobs/{job_id}"))
    request = get(f"/v1/jobs/{job_id}")
    await hammer(ports, request, 1.0, CONNECTIONS)
    return await hammer(ports, request, args.seconds, CONNECTIONS)


async def burst(ports: Ports, args: argparse.Namespace) -> dict[str, Any]:
    """10,000 submits within 5 s, offered on a clock whether the api keeps up or not, over 1,000
    connections; a delay is from the request on the wire to its answer.
    """
    count, span_s = 10_000, 5.0
    pool: asyncio.Queue[Wire] = asyncio.Queue()
    for wire in await wires(ports.api, 1000):
        pool.put_nowait(wire)
    statuses: dict[int, int] = {}
    accepted: list[str] = []
    delays: list[float] = []

    async def one() -> None:
        wire = await pool.get()
        started_s = time.perf_counter()
        status, body = await wire.ask(post("/v1/jobs", BODY))
        pool.put_nowait(wire)
        delays.append(time.perf_counter() - started_s)
        statuses[status] = statuses.get(status, 0) + 1
        if status == 202:
            accepted.append(json.loads(body)["id"])

    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            wait_s = started_s + number * span_s / count - time.perf_counter()
            if wait_s > 0.001:
                await asyncio.sleep(wait_s)
            elif number % 20 == 0:
                await asyncio.sleep(0)
            group.create_task(one())
    took_s = time.perf_counter() - started_s
    return {
        "offered": count,
        "statuses": statuses,
        "accepted_and_on_record": await on_record(ports, accepted),
        "took_s": round(took_s, 2),
        "p50_ms": round(quantile(delays, 0.5) * 1000, 1),
        "p99_ms": round(quantile(delays, 0.99) * 1000, 1),
    }


async def on_record(ports: Ports, job_ids: Sequence[str]) -> int:
    """How many of these jobs the store knows."""
    redis = connect(ports.redis_url, timeout_s=10)
    async with redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hget(f"torpor:{{{job_id}}}", "state")
        states = await pipe.execute()
    await redis.aclose()
    return sum(state is not None for state in states)


async def readers(ports: Ports, args: argparse.Namespace) -> dict[str, Any]:
    """Each reader follows a job of its own."""
    redis = connect(ports.redis_url, timeout_s=10)
    store = RedisStore(redis)
    job_ids = [await running_job(store) for _ in range(args.readers)]
    api = psutil.Process(ports.api_pid)
    rss_before = api.memory_info().rss
    health = Health(ports.api)
    asked = {"port": ports.api, "job_ids": job_ids, "slow": args.slow, "deaf": args.deaf}
    clients = start_part(ports, "clients", "bench.api.load_readers", asked)
    opened = json.loads(await heard(clients))
    opening = await health.seen()
    rss_open = api.memory_info().rss
    at_store = await redis.client_list()
    numbers = [ports.redis, args.tokens_per_second, args.seconds + 4]
    writer = start_part(ports, "writer", "bench.api.load_parts", job_ids, "writer", *numbers)
    await asyncio.sleep(2.0)
    say(clients, "begin")
    await health.seen()
    spent = {name: Spent(pid) for name, pid in ports.pids.items()}
    await asyncio.sleep(args.seconds)
    say(clients, "end")
    shares = {name: one.share() for name, one in spent.items()}
    seen = json.loads(await heard(clients))
    live = await health.end()
    rss_live = api.memory_info().rss
    written = json.loads(await heard(writer))
    for process in (clients, writer):
        process.wait(timeout=60)
    await redis.aclose()
    return {
        "readers": args.readers,
        "shares": {"slow": args.slow, "deaf": args.deaf},
        "tokens_per_second_each": args.tokens_per_second,
        **opened,
        "healthz_while_opening": opening,
        "healthz_while_live": live,
        **seen,
        "cores": shares,
        "api_cpu_us_a_token": round(shares["api"] / args.readers / args.tokens_per_second * 1e6, 1),
        "writer": written,
        "kib_per_reader_idle": round((rss_open - rss_before) / args.readers / 1024, 1),
        "kib_per_reader_live": round((rss_live - rss_before) / args.readers / 1024, 1),
        "store_connections_in_blocking_read": sum(c["cmd"] == "xread" for c in at_store),
    }


def start_part(
    ports: Ports, name: str, module: str, asked: Any, *words: object
) -> subprocess.Popen[str]:
    """A process of this bench beside the clients' health check; `asked` is its first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    ports.pids[name] = process.pid
    say(process, json.dumps(asked))
    return process


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


async def heard(process: subprocess.Popen[str]) -> str:
    """The next line that the process says."""
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)


class Health:
    """Asks `/healthz` ten times a second, over a connection of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._took_ms: list[float] = []
        self._task = asyncio.ensure_future(self._ask())

    async def _ask(self) -> None:
        (wire,) = await wires(self._port, 1)
        while True:
            began_s = time.perf_counter()
            status, _ = await wire.ask(get("/healthz"))
            self._took_ms.append(1000 * (time.perf_counter() - began_s))
            assert status == 200
            await asyncio.sleep(0.1)

    async def seen(self) -> dict[str, float]:
        """What was seen since the last call, one more answer included."""
        before = len(self._took_ms)
        while len(self._took_ms) == before:
            await asyncio.sleep(0.01)
            if self._task.done():
                self._task.result()
        took, self._took_ms = self._took_ms, []
        return {
            "asked": len(took),
            "p99_ms": round(quantile(took, 0.99), 1),
            "max_ms": round(max(took), 1),
        }

    async def end(self) -> dict[str, float]:
        seen = await self.seen()
        self._task.cancel()
        return seen


async def running_job(store: RedisStore) -> JobId:
    job_id = new_job_id()
    request = parse_request(BODY)
    await store.submit(NewJob(id=job_id, request=request, source="/torpor/api", event_id=job_id))
    await store.acquire(job_id, "bench", can_resume=True)
    return job_id


MEASURES: Final = {"submits": submits, "polls": polls, "readers": readers, "burst": burst}


if __name__ == "__main__":
    main()

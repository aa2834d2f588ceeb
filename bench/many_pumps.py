"""What 200 pumps ask of one store: idle, woken by single jobs, and with 1,000 and 10,000 jobs in flight and waiting.

    python -m bench.many_pumps [--pumps 200] [--seconds 10] [--sizes 1000,10000] [--json many_pumps.json]

Each pump is the real `eventing.broker.delivery.pump.Pump` with connections of its own to one Valkey (AOF everysec), in
two processes. In place of the POST to an engine it takes the job's lease, holds it, appends tokens (all jobs of a pump
in one round trip, as a predictor does) and ends the job. Submits are those of the api. Commands inside scripts count.
`claims_a_job` is how many pumps a single job wakes, in vain but for one.
"""

import argparse
import asyncio
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import psutil

from bench.queue_growth import submit
from bench.report import machine, publish, quantile
from eventing.broker.delivery.dead_letter import DeadLetterHandler
from eventing.broker.delivery.decision import DeliverySpec, SubscriberResponse
from eventing.broker.delivery.pump import Pump
from eventing.broker.queue.claim import Claimed
from eventing.broker.queue.queue import Queue
from eventing.broker.queue.view import QueueView
from eventing.broker.router import Router
from eventing.broker.trigger import Trigger
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import job_id_of
from eventing.job.job import API_SOURCE, JobRequest, JobState, Lane, new_job_id
from eventing.job.store import Ending, Lease, LeaseSettings, NewJob, TokenBatch
from eventing.redis.connection import connect
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.store.redis_store import RedisStore
from eventing.store.steps.redis_steps import RedisStepStore
from tests.redis_server import RedisServer

_NAME: Final = "requests-bench"
_PROCESSES: Final = 2
_APPEND_EVERY_S: Final = 1.0
_RESULT: Final = {"choices": [{"text": "x" * 400}]}


class Engine:
    """A pump's engine: holds each job for as long as it asks, and appends tokens for all of them at once."""

    def __init__(self, store: RedisStore, owner: str) -> None:
        self._store = store
        self._owner = owner
        self._written: dict[Lease, int] = {}

    async def take(self, event: Event) -> None:
        """One job, from lease to end."""
        hold_s = orjson.loads(event.data)["body"]["hold_s"]
        lease = (await self._store.acquire(job_id_of(event), self._owner, can_resume=True)).lease
        if lease is None:
            return
        self._written[lease] = 0
        await asyncio.sleep(hold_s * random.uniform(0.8, 1.2))
        last = self._written.pop(lease)
        batch = TokenBatch(index=last, token_ids=(1,), delta='["end"]')
        await self._store.finish(
            lease, Ending(state=JobState.COMPLETED, result=_RESULT, final_batch=batch)
        )

    async def append(self) -> None:
        """Append for ever."""
        while True:
            await asyncio.sleep(_APPEND_EVERY_S * random.uniform(0.9, 1.1))
            batches = []
            for lease, count in self._written.items():
                ids = tuple(range(20))
                batches.append((lease, TokenBatch(index=count, token_ids=ids, delta='["words"]')))
                self._written[lease] = count + len(ids)
            if batches:
                await self._store.append_all(batches)


class PumpOfEngine(Pump):
    """The pump, with `Engine` in place of a subscriber over HTTP; notes how long each event waited."""

    def __init__(self, *args: Any, engine: Engine, waited_ms: list[float], **options: Any) -> None:
        super().__init__(*args, **options)
        self._engine, self._waited_ms = engine, waited_ms
        self._readiness.is_ready = True

    async def _claim(self, want: int) -> tuple[list[Claimed], bool]:
        claimed, is_all = await super()._claim(want)
        now_ms = time.time() * 1000
        self._waited_ms += [now_ms - each.enqueued_ms for each in claimed]
        return claimed, is_all

    async def _deliver(self, event: Event) -> tuple[SubscriberResponse, Event | None]:
        await self._engine.take(event)
        return SubscriberResponse(status=200), None


async def run_pumps(url: str, first: int, count: int, parallelism: int) -> None:
    """Run pumps until stdin closes; for each line on it, write the waits since the last."""
    waited_ms: list[float] = []
    clients: list[SharedRedis] = []
    trigger = Trigger(
        name=_NAME,
        subscriber="http://127.0.0.1:9/",
        delivery=DeliverySpec(retry=3, backoff_delay_s=1, timeout_s=3600),
        parallelism=parallelism,
    )
    async with asyncio.TaskGroup() as group:
        for number in range(first, first + count):
            redis = connect(url, timeout_s=30)
            clients.append(redis)
            queue = Queue(redis, _NAME, f"pump-{number}")
            await queue.ensure()
            engine = Engine(RedisStore(redis), f"engine-{number}")
            router = Router([(trigger, queue)])
            store = RedisStepStore(redis, LeaseSettings())
            dead_letters = DeadLetterHandler(redis, store, router)
            pump = PumpOfEngine(
                trigger, queue, router, dead_letters, engine=engine, waited_ms=waited_ms
            )
            group.create_task(pump.run())
            group.create_task(engine.append())
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(orjson.dumps(waited_ms).decode(), flush=True)
            waited_ms.clear()
        raise SystemExit


class Pumps:
    """All pumps, in child processes."""

    def __init__(self, url: str, count: int, parallelism: int) -> None:
        each = count // _PROCESSES
        self._children = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.many_pumps", "--run-pumps", url]
                + [str(word) for word in (number * each, each, parallelism)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(_PROCESSES)
        ]
        for child in self._children:
            assert child.stdout is not None
            child.stdout.readline()

    def waits_ms(self) -> list[float]:
        """How long each event waited that was claimed since the last call."""
        waits: list[float] = []
        for child in self._children:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            waits += orjson.loads(child.stdout.readline())
        return waits

    def end(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()


@dataclass(frozen=True, slots=True)
class Usage:
    """What the store counted up to a moment."""

    at_s: float
    cpu_s: float
    net_bytes: int
    aof_bytes: int
    calls: dict[str, int]  #: by command, those inside scripts too
    spent_us: dict[str, int]

    @staticmethod
    async def read(redis: SharedRedis, pid: int) -> "Usage":
        stats = await redis.info("everything")
        commands = await redis.info("commandstats")
        times = psutil.Process(pid).cpu_times()
        return Usage(
            time.monotonic(),
            times.user + times.system,
            stats["total_net_input_bytes"] + stats["total_net_output_bytes"],
            stats.get("aof_current_size", 0),
            {name[8:]: each["calls"] for name, each in commands.items()},
            {name[8:]: each["usec"] for name, each in commands.items()},
        )

    def since(self, before: "Usage") -> dict[str, float]:
        """Rates a second since `before`; the last is the share of a core for the search after silent consumers."""
        seconds = self.at_s - before.at_s

        def rate(now: float, then: float, digits: int | None = None) -> float:
            return round((now - then) / seconds, digits)

        def spent_us(usage: Usage) -> int:
            return sum(usage.spent_us.get(name, 0) for name in ("xpending", "zmscore"))

        return {
            "store_cpu_percent": rate(100 * self.cpu_s, 100 * before.cpu_s, 1),
            "commands_per_s": rate(sum(self.calls.values()), sum(before.calls.values())),
            "scripts_per_s": rate(self.scripts, before.scripts),
            "net_bytes_per_s": rate(self.net_bytes, before.net_bytes),
            "aof_bytes_per_s": rate(self.aof_bytes, before.aof_bytes),
            "search_percent": rate(spent_us(self) / 1e4, spent_us(before) / 1e4, 2),
        }

    @property
    def scripts(self) -> int:
        return self.calls.get("evalsha", 0)


class Bench:
    """The store and who submits to its pumps."""

    def __init__(self, server: RedisServer, redis: SharedRedis) -> None:
        self._server, self._redis = server, redis
        self._store = RedisStore(redis)
        self._queue = Queue(redis, _NAME, "submitter")

    async def submit(self, hold_s: float) -> None:
        number = random.randrange(50)
        job_id = new_job_id()
        body = {"model": "bench", "prompt": "question", "hold_s": hold_s}
        new = NewJob(
            id=job_id,
            request=JobRequest(url="/v1/completions", body=body),
            source=API_SOURCE,
            event_id=job_id,
            tenant=f"tenant-{number}",
            lane=list(Lane)[number % 3],
        )
        await submit(self._store, self._queue, new)

    async def usage(self) -> Usage:
        return await Usage.read(self._redis, self._server.pid)

    async def memory(self) -> int:
        return int((await self._redis.info("memory"))["used_memory"])

    async def idle(self, seconds: float) -> dict[str, float]:
        """Nothing is queued and nothing runs."""
        before = await self.usage()
        await asyncio.sleep(seconds)
        return (await self.usage()).since(before)

    async def singles(self, pumps: Pumps, count: int) -> dict[str, float]:
        """Jobs one by one, each into an idle cell, half a second apart."""
        empty = await self.usage()
        await asyncio.sleep(count / 2)
        pumps.waits_ms()
        before = await self.usage()
        for _ in range(count):
            await self.submit(0.0)
            await asyncio.sleep(0.5)
        usage = await self.usage()
        waits = pumps.waits_ms()
        idle_per_s = (before.scripts - empty.scripts) / (before.at_s - empty.at_s)
        scripts = usage.scripts - before.scripts - idle_per_s * (usage.at_s - before.at_s)
        return {
            "jobs": len(waits),
            # submit, acquire, finish and settle are four
            "claims_a_job": round(scripts / count - 4, 1),
            "wait_p50_ms": round(quantile(waits, 0.5), 1),
            "wait_p99_ms": round(quantile(waits, 0.99), 1),
            **usage.since(before),
        }

    async def in_flight(self, pumps: Pumps, size: int, seconds: float) -> dict[str, float]:
        """A steady `size` jobs in flight, which arrive and end at an even pace."""
        before_bytes = await self.memory()
        hold_s = max(20.0, size / 100)  # at most 100 jobs a second arrive
        await self._fill(size, hold_s)
        pumps.waits_ms()
        filled = await self.memory()
        before, end_s = await self.usage(), time.monotonic() + seconds
        every_s, due_s = hold_s / size, time.monotonic()
        while time.monotonic() < end_s:
            await self.submit(hold_s)
            due_s += every_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        usage, waits = await self.usage(), pumps.waits_ms()
        depth = await QueueView(self._redis).depth(_NAME)
        return {
            "in_flight": depth.pending,
            "jobs_per_s": round(len(waits) / seconds, 1),
            "wait_p50_ms": round(quantile(waits, 0.5), 1),
            "wait_p99_ms": round(quantile(waits, 0.99), 1),
            "kib_a_job": round((filled - before_bytes) / size / 1024, 2),
            **usage.since(before),
        }

    async def _fill(self, size: int, hold_s: float) -> None:
        """Put `size` jobs in flight that end spread over `hold_s`."""
        for first in range(0, size, 100):
            waits = [hold_s * (0.2 + random.random()) for _ in range(min(100, size - first))]
            await asyncio.gather(*map(self.submit, waits))
        while (await QueueView(self._redis).depth(_NAME)).total_waiting:
            await asyncio.sleep(0.1)

    async def waiting(self, size: int) -> dict[str, float]:
        """The memory of `size` jobs that wait, before there are pumps."""
        await self._queue.ensure()
        before = await self.memory()
        for first in range(0, size, 100):
            await asyncio.gather(*(self.submit(1.0) for _ in range(min(100, size - first))))
        kib = (await self.memory() - before) / size / 1024
        await self._redis.flushall()
        return {"waiting": size, "kib_a_job": round(kib, 2)}


async def measure(args: argparse.Namespace, server: RedisServer) -> dict[str, Any]:
    redis = connect(server.url, timeout_s=30)
    bench = Bench(server, redis)
    report: dict[str, Any] = {"pumps": args.pumps}
    report["waiting"] = [await bench.waiting(size) for size in args.sizes]
    pumps = Pumps(server.url, args.pumps, max(args.sizes) * 2 // args.pumps)
    try:
        await asyncio.sleep(2)
        report["idle"] = await bench.idle(args.seconds)
        report["single"] = await bench.singles(pumps, 20)
        sizes = args.sizes
        report["in_flight"] = [await bench.in_flight(pumps, size, args.seconds) for size in sizes]
    finally:
        pumps.end()
        await redis.aclose()
    return report | {"machine": machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pumps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument(
        "--sizes", type=lambda t: [int(n) for n in t.split(",")], default=[1000, 10_000]
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="torpor-bench-"))
    options = ["--appendonly", "yes", "--appendfsync", "everysec", "--maxclients", "4000"]
    server = RedisServer(folder, options=options)
    server.start()
    try:
        publish(asyncio.run(measure(args, server)), args.json)
    finally:
        server.kill()
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run-pumps"]:
        url, *numbers = sys.argv[2:]
        asyncio.run(run_pumps(url, *map(int, numbers)))
    else:
        main()

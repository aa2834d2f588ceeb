"""The cost of observability by adding up: each log line, count and span of a live stack is timed where it happens.

python -m bench.observability.in_place [--rounds 12] [--jobs 100]

Steadier than `bench.observability.cost`, which takes the difference of two large numbers, and it says which part costs
what. It leaves out what a call pushes out of the processor's cache, and counts the two clock readings of each call. A
call that took longer than `CAP_NS` was interrupted by other work and counts as that long. The interval is a bootstrap
over the rounds.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.observability.cost import Round, Watched, awake, one_round, running
from bench.peers.peers import put_ahead
from bench.report import machine, publish

_TIMED: Final = """
import json, os, signal, time
FOLDER, CAP_NS = %r, 300_000
spent, is_wrapped = {}, []
def timed(place, name, label):
    call, clock, each = getattr(place, name), time.perf_counter_ns, spent.setdefault(label, [0, 0])
    def timed_call(*given, **named):
        began = clock()
        try:
            return call(*given, **named)
        finally:
            each[0] += 1
            each[1] += min(CAP_NS, clock() - began)
    setattr(place, name, timed_call)
def tell(number, frame):
    if not is_wrapped:
        is_wrapped.append(True)
        import structlog
        from prometheus_client import metrics
        for kind in (metrics.Counter, metrics.Gauge, metrics.Histogram):
            for name in ("inc", "dec", "set", "observe"):
                if hasattr(kind, name):
                    timed(kind, name, "metrics")
        timed(structlog.get_config()["wrapper_class"], "info", "logs")
        try:
            from eventing.telemetry import trace_export
        except ImportError:
            pass
        else:
            timed(trace_export.OtelTracer, "open", "spans")
            timed(trace_export._Open, "set", "spans")
            timed(trace_export._Open, "__exit__", "spans")
    path = f"{FOLDER}/{os.getpid()}"
    with open(path + ".part", "w") as file:
        json.dump(spent, file)
    os.replace(path + ".part", path + ".json")
signal.signal(signal.SIGRTMIN + 1, tell)
"""
"""Put before a stack's own code as `sitecustomize`: the first signal begins, each writes what was spent so far."""


async def told(watched: Watched, folder: Path) -> Counter[str]:
    """Nanoseconds spent so far, and calls, by part."""
    for old in folder.glob("*.json"):
        old.unlink()
    watched.switch(0)
    services = [pid for pid, part in watched.parts.items() if part != "store"]
    found: Counter[str] = Counter()
    for pid in services:
        path = folder / f"{pid}.json"
        while not path.exists():
            await asyncio.sleep(0.02)
        for part, (calls, spent_ns) in json.loads(path.read_text()).items():
            found[part] += spent_ns
            found[f"{part} calls"] += calls
    return found


async def measure(
    stack: Any, folder: Path, rounds: int, jobs: int
) -> list[tuple[Round, Counter[str]]]:
    """Each round, with what was spent on each part in it."""
    found = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 20) as session:
        await awake(session, stack)
        watched = Watched(stack)
        await one_round(watched, session, stack.at.api, 2 * jobs, 0)  # connections, caches
        before = await told(watched, folder)
        for number in range(rounds):
            done = await one_round(watched, session, stack.at.api, jobs, number + 1)
            now = await told(watched, folder)
            found.append((done, now - before))
            before = now
    return found


def percent(rounds: list[tuple[Round, Counter[str]]]) -> float:
    spent_ns = sum(part[name] for _, part in rounds for name in ("logs", "metrics", "spans"))
    return 100 * spent_ns / 1e6 / sum(sum(done.cpu_ms.values()) for done, _ in rounds)


def main(rounds: int, jobs: int) -> dict[str, Any]:
    before = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running(folder, share="", code=_TIMED % name) as stack:
            found = asyncio.run(measure(stack, folder, rounds, jobs))
    rng = random.Random(0)
    again = sorted(percent(rng.choices(found, k=len(found))) for _ in range(1000))
    count = rounds * jobs
    total: Counter[str] = sum((part for _, part in found), Counter())
    return {
        "jobs": count,
        "machine": before | {"load_after": round(os.getloadavg()[0], 1)},
        "cpu_ms_per_job": round(statistics.median(done.cpu_ms_per_job for done, _ in found), 3),
        "percent": {
            "percent": round(percent(found), 2),
            "from": round(again[25], 2),
            "to": round(again[974], 2),
        },
        "us_per_job": {
            part: round(total[part] / count / 1000, 1) for part in ("logs", "metrics", "spans")
        },
        "calls_per_job": {
            part: round(total[f"{part} calls"] / count, 2) for part in ("logs", "metrics", "spans")
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--ahead", action="store_true", help="before other work")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.ahead:
        os.setsid()  # Linux weighs sessions
        put_ahead([os.getpid()])
    publish(main(given.rounds, given.jobs), given.json)

"""The cost of observability for a whole stack: CPU per job and latency, with it on and off.

python -m bench.observability.cost [--seen sampled|all|logs|metrics|traces] [--blocks N]

One local stack with the test engine is switched on and off while it runs, by a signal to each of its processes
(`_SWITCH`), because two stacks differ by their memory layout. Rounds of the same jobs come in blocks of eight
(`_ORDER`), so that drift of the machine affects both sides alike. Compared are CPU seconds per job of every process
of the stack, the store included, by the kernel's process clocks, which other programs hardly affect. Each block
gives one ratio; reported are the median and a 95 % interval from a bootstrap over the blocks. Latencies of all
rounds are pooled, and p50 and p99 compared likewise.

*Off* means that INFO is not logged, nothing is traced, and counters and histograms do nothing. *On* logs at INFO,
counts, and samples the default share of traces; with `--seen all` every trace. Scrapes are measured separately,
since they cost by the second and not by the job: the time of all pages, and the share of these jobs' CPU at one
scrape every 15 seconds.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.report import machine, publish, quantile
from bench.torpor_up import Stack, torpor_up
from torpor.load.client import Clients
from torpor.load.run import Run
from torpor.load.sample import SampleOutcome
from torpor.load.schedule import ClientKind, Shape, Shot, endless
from torpor.simulator.workload import Lengths

MODEL: Final = "smollm2-135m-instruct"
USERS: Final = 8
LENGTHS: Final = Lengths(prompt_median=20, output_median=20)
SCRAPE_EVERY_S: Final = 15.0
_SCRAPES: Final = 60
_ORDER: Final = (0, 1, 1, 0, 1, 0, 0, 1)
"""Off and on within a block, so that early and late rounds affect both alike. With ABBA and BAAB in turns the
median fell on one kind of block.
"""
_LET_GO_S: Final = 0.05
"""Pause after a round, in which its last events are settled."""

_SWITCH: Final = """
import signal
LOGS, METRICS, TRACES = 1, 2, 4
kept = {}
def switch(number, frame):
    seen = number - signal.SIGRTMIN - 1
    from prometheus_client import metrics
    from structlog import _native
    from eventing.telemetry import trace
    places = [(kind, name) for kind in (metrics.Counter, metrics.Gauge, metrics.Histogram)
              for name in ("inc", "dec", "set", "observe") if hasattr(kind, name)]
    if not kept:
        kept.update({place: getattr(*place) for place in places})
        kept["info"], kept["tracer"] = _native.BoundLoggerFilteringAtInfo.info, trace._tracer
    nothing = lambda self, *given, **named: None
    for place in places:
        setattr(*place, kept[place] if seen & METRICS else nothing)
    _native.BoundLoggerFilteringAtInfo.info = kept["info"] if seen & LOGS else nothing
    trace.use(kept["tracer"] if seen & TRACES else None)
for each in range(8):
    signal.signal(signal.SIGRTMIN + 1 + each, switch)
"""
"""Put before a stack's own code as `sitecustomize`."""

LOGS, METRICS, TRACES = 1, 2, 4
SEEN: Final = {
    "logs": LOGS,
    "metrics": METRICS,
    "traces": TRACES,
    "sampled": LOGS | METRICS | TRACES,
    "all": LOGS | METRICS | TRACES,
    "nothing": 0,
}
"""What is switched on; `nothing` checks the method itself."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round took."""

    cpu_ms: dict[str, float]
    seconds: float
    totals_s: list[float] = field(repr=False)

    @property
    def cpu_ms_per_job(self) -> float:
        return sum(self.cpu_ms.values()) / len(self.totals_s)


Block = Sequence[Sequence[Round]]
"""The rounds with observability off, and those with it on."""


class Watched:
    """A stack that can be switched and whose CPU time can be read."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.parts = {pid: part_of(pid) for pid in family(stack.pid)}

    def switch(self, seen: int) -> None:
        for pid, part in self.parts.items():
            if part != "store":
                os.kill(pid, signal.SIGRTMIN + 1 + seen)

    def cpu_ms(self) -> dict[str, float]:
        """Spent so far, by part, exact to the kernel's clock."""
        spent: dict[str, float] = {}
        for pid, part in self.parts.items():
            clock = (~pid << 3) | 2  # CPU of all threads of that process: clock_getcpuclockid(3)
            spent[part] = spent.get(part, 0.0) + 1000 * time.clock_gettime(clock)
        return spent


def running(folder: Path, *, share: str, code: str = _SWITCH) -> AbstractContextManager[Stack]:
    """A stack on `folder` with one predictor that stays awake; `code` runs before its own."""
    (folder / "sitecustomize.py").write_text(code)
    env = {
        "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        "TORPOR_SEEDED_TOKENS_PER_S": "0",
        "TORPOR_SUBMIT_TIMEOUT_S": "20",  # a full machine makes a job late, and loses none
        "TORPOR_TRACES": f"file:{folder}/spans.jsonl",
    }
    if share:
        env["TORPOR_TRACES_SHARE"] = share
    flags = ["--engine", "seeded", "--container-concurrency", str(USERS), "--min-replicas", "1"]
    return torpor_up(folder / "data", *flags, "--log-level", "INFO", env=env)


def family(root: int) -> set[int]:
    """`root` and all processes below it."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # ended meanwhile
    ours = {root}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return ours


def part_of(pid: int) -> str:
    """Which part of a stack a process is, by its command line."""
    said = Path(f"/proc/{pid}/cmdline").read_text()
    words = {"-m\0api": "api", "eventing.broker": "broker", "valkey": "store", "\0up\0": "stack"}
    return next((part for word, part in words.items() if word in said), "predictor")


async def one_round(
    watched: Watched, session: aiohttp.ClientSession, address: str, jobs: int, seed: int
) -> Round:
    """So many jobs by `USERS` users, each of whom waits for its answer before it asks again. The
    same seed is the same jobs.
    """
    loop = asyncio.get_running_loop()
    zero = loop.time()
    clients = Clients(session, address, MODEL, now=lambda: loop.time() - zero, patience_s=60)
    left = iter(range(jobs))
    run = Run(clients, lambda: loop.time() - zero)

    async def user(shots: Iterator[Shot]) -> None:
        for _ in left:
            await run.shoot(next(shots))

    before = watched.cpu_ms()
    async with asyncio.TaskGroup() as group:
        for number in range(USERS):
            mix = dict.fromkeys(ClientKind, 1)
            shape = Shape(mix=mix, output_cap=32, seed=seed * USERS + number)
            group.create_task(user(endless(shape, LENGTHS, 0)))
    spent_s = loop.time() - zero
    await asyncio.sleep(_LET_GO_S)
    after = watched.cpu_ms()
    ended = {(s.outcome, s.status) for s in run.samples if s.outcome is not SampleOutcome.COMPLETED}
    assert not ended, ended
    cpu_ms = {part: spent - before[part] for part, spent in after.items()}
    return Round(cpu_ms, spent_s, [sample.total_s for sample in run.samples])


async def awake(session: aiohttp.ClientSession, stack: Stack) -> str:
    """The address of a predictor, once it can serve."""
    while True:
        async with session.get(f"{stack.at.activator}/status") as answer:
            replicas = (await answer.json())["models"][0]["replicas"]
        if replicas["ready"]:
            return f"http://127.0.0.1:{replicas['list'][0]['id'].rsplit('-', 1)[1]}"
        await asyncio.sleep(0.1)


async def scrape_ms(
    watched: Watched, session: aiohttp.ClientSession, pages: Sequence[str]
) -> float:
    """CPU that the stack takes to have every page fetched once, above what it takes to stand by.
    Every scrape is one second after the last: what is asked of the store is not asked twice in one.
    """

    async def spend(turns: int, pages: Sequence[str]) -> float:
        before = sum(watched.cpu_ms().values())
        for _ in range(turns):
            for page in pages:
                async with session.get(page) as answer:
                    await answer.read()
            await asyncio.sleep(1)
        return (sum(watched.cpu_ms().values()) - before) / turns

    turns = _SCRAPES // 4
    found = [await spend(turns, given) for given in ((), pages, pages, ())]
    return (found[1] + found[2] - found[0] - found[3]) / 2


async def measure(
    stack: Stack, seen: int, blocks: int, jobs: int
) -> tuple[list[list[list[Round]]], float]:
    """The rounds of every block, off and on; and milliseconds of CPU a scrape."""
    found: list[list[list[Round]]] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 20) as session:
        predictor = await awake(session, stack)
        watched = Watched(stack)
        for side in (0, seen):
            watched.switch(side)
            await one_round(watched, session, stack.at.api, 4 * jobs, blocks)  # connections, caches
        for number in range(blocks):
            rounds: list[list[Round]] = [[], []]
            for which in _ORDER:
                watched.switch((0, seen)[which])
                await asyncio.sleep(_LET_GO_S)
                rounds[which].append(await one_round(watched, session, stack.at.api, jobs, number))
            found.append(rounds)
            sys.stderr.write(f"\rblock {number + 1} of {blocks}: {ratio_of(found, cpu) - 1:+.1%} ")
        addresses = (stack.at.api, stack.at.broker, stack.at.activator, predictor)
        scrape = await scrape_ms(watched, session, [f"{each}/metrics" for each in addresses])
    return found, scrape


def cpu(rounds: Sequence[Round]) -> float:
    return statistics.mean(each.cpu_ms_per_job for each in rounds)


def latency(share: float) -> Callable[[Sequence[Round]], float]:
    """The percentile of the rounds' latencies taken together."""

    def of(rounds: Sequence[Round]) -> float:
        return quantile((value for each in rounds for value in each.totals_s), share)

    return of


def ratio_of(blocks: Sequence[Block], figure: Callable[[Sequence[Round]], float]) -> float:
    """On over off: the median over blocks."""
    return statistics.median(figure(seen) / figure(unseen) for unseen, seen in blocks)


def pooled(blocks: Sequence[Block], figure: Callable[[Sequence[Round]], float]) -> float:
    """On over off, of all rounds together: a p99 needs more jobs than a block has."""
    unseen = [each for block in blocks for each in block[0]]
    return figure([each for block in blocks for each in block[1]]) / figure(unseen)


def interval(
    blocks: Sequence[Block],
    figure: Callable[[Sequence[Round]], float],
    over: Callable[[Sequence[Block], Callable[[Sequence[Round]], float]], float],
) -> dict[str, float]:
    """The added per cent, with the middle 95 % of resampled blocks."""
    rng = random.Random(0)
    times = 1000 if over is ratio_of else 200
    resampled = sorted(over(rng.choices(blocks, k=len(blocks)), figure) for _ in range(times))
    shown = (over(blocks, figure), resampled[times // 40], resampled[-1 - times // 40])
    names = ("percent", "from", "to")
    return {name: round(100 * (ratio - 1), 2) for name, ratio in zip(names, shown, strict=True)}


def summary(name: str, side: Sequence[Round]) -> dict[str, Any]:
    return {
        "side": name,
        "cpu_ms_per_job": round(statistics.median(each.cpu_ms_per_job for each in side), 3),
        "by_part": {
            part: round(statistics.median(r.cpu_ms[part] / len(r.totals_s) for r in side), 3)
            for part in sorted(side[0].cpu_ms)
        },
        "jobs_per_s": round(statistics.median(len(r.totals_s) / r.seconds for r in side), 1),
        "p50_s": round(latency(0.5)(side), 4),
        "p99_s": round(latency(0.99)(side), 4),
    }


def main(seen: str, blocks: int, jobs: int) -> dict[str, Any]:
    before = machine()
    began = time.monotonic()
    share = "1" if seen == "all" else ""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), share=share) as stack:
        found, scrape = asyncio.run(measure(stack, SEEN[seen], blocks, jobs))
    sides = [
        summary(name, [each for block in found for each in block[side]])
        for side, name in enumerate(("unseen", "seen"))
    ]
    busy_ms = SCRAPE_EVERY_S * sides[0]["jobs_per_s"] * sides[0]["cpu_ms_per_job"]
    return {
        "seen": seen,
        "blocks": blocks,
        "jobs_a_round": jobs,
        "users": USERS,
        "machine": before | {"load_after": round(os.getloadavg()[0], 1)},
        "took_s": round(time.monotonic() - began, 1),
        "added": {
            "cpu": interval(found, cpu, ratio_of),
            "p50": interval(found, latency(0.5), pooled),
            "p99": interval(found, latency(0.99), pooled),
        },
        "scrape": {"cpu_ms": round(scrape, 2), "percent": round(100 * scrape / busy_ms, 3)},
        "medians": sides,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seen", choices=sorted(SEEN), default="sampled")
    parser.add_argument("--blocks", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    publish(main(given.seen, given.blocks, given.jobs), given.json)

"""What being seen costs a whole stack: CPU per job and latency, seen against unseen.

    .venv/bin/python -m bench.observability_cost [--seen sampled|all|logs] [--blocks N] [--jobs N]

Two embedded stacks with the test engine stand side by side, one that nobody sees and one that is
seen. Rounds of a fixed number of jobs go to one of them at a time, in blocks of unseen, seen, seen,
unseen (ABBA), so that whatever else the machine does, and however it drifts, falls on both alike.
What is compared is CPU seconds (user and system, of every process of the
stack, the store included, from /proc) per job: another program that takes the cores away stretches
the clock, but not that. A block gives one ratio; reported are the median of the ratios and a 95 %
interval from a bootstrap over the blocks. The latencies of all rounds are pooled, and p50 and p99
compared likewise.

*Unseen* is more than off: it logs errors only, traces nothing, nobody scrapes it, and its counters
and histograms are made to do nothing (`_BLIND`). *Seen* logs at INFO, is scraped once in a block
(some four seconds; Prometheus does every 15), and keeps the default share of its traces, with
`--seen all` every one, with `--seen logs` none.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.report import publish, quantile
from bench.torpor_up import Stack, torpor_up
from knative.load.client import Clients
from knative.load.run import Run
from knative.load.sample import Outcome
from knative.load.schedule import ClientKind, Shape, Shot, endless
from knative.simulator.workload import Lengths

MODEL: Final = "smollm2-135m-instruct"
USERS: Final = 8
LENGTHS: Final = Lengths(prompt_median=20, output_median=20)
TICKS: Final = os.sysconf("SC_CLK_TCK")
_BLIND: Final = """
from prometheus_client import metrics
for kind in (metrics.Counter, metrics.Gauge, metrics.Histogram):
    for name in ("inc", "dec", "set", "observe"):
        if hasattr(kind, name):
            setattr(kind, name, lambda self, *given, **named: None)
metrics.MetricWrapperBase.labels = lambda self, *given, **named: self
"""
"""Put before a stack's own code as `sitecustomize`: nothing is counted, not even looked up."""

UNSEEN: Final = {"TORPOR_LOG_LEVEL": "ERROR"}
_TRACED: Final = {"TORPOR_LOG_LEVEL": "INFO", "TORPOR_TRACES": "file:{folder}/spans.jsonl"}
SEEN: Final = {
    "logs": {"TORPOR_LOG_LEVEL": "INFO"},
    "sampled": _TRACED,
    "all": _TRACED | {"TORPOR_TRACES_SHARE": "1"},
}


@dataclass(frozen=True, slots=True)
class Round:
    """What one round took."""

    cpu_ms: dict[str, float]
    seconds: float
    totals_s: list[float] = field(repr=False)

    @property
    def cpu_ms_per_job(self) -> float:
        return sum(self.cpu_ms.values()) / len(self.totals_s)


def running(
    folder: Path, variant: dict[str, str], *, is_blind: bool
) -> AbstractContextManager[Stack]:
    """A stack on `folder` with one predictor that stays awake."""
    env = {name: value.format(folder=folder) for name, value in variant.items()}
    env["TORPOR_SEEDED_TOKENS_PER_S"] = "0"
    if is_blind:
        (folder / "sitecustomize.py").write_text(_BLIND)
        env["PYTHONPATH"] = f"{folder}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    flags = ["--engine", "seeded", "--container-concurrency", str(USERS), "--min-replicas", "1"]
    flags += ["--log-level", variant["TORPOR_LOG_LEVEL"]]
    return torpor_up(folder / "data", *flags, env=env)


def cpu_s(root: int) -> dict[int, float]:
    """CPU seconds so far of `root` and all below it, by process; of a child that has ended (the
    store forks one to rewrite its log) its parent has them.
    """
    spent: dict[int, float] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # ended meanwhile
        pid = int(path.parent.name)
        parents[pid] = int(words[1])
        spent[pid] = sum(map(int, words[11:15])) / TICKS
    ours = {root}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {pid: spent[pid] for pid in ours}


async def one_round(stack: Stack, jobs: int, seeds: Iterator[int], *, is_scraped: bool) -> Round:
    """So many jobs by `USERS` users, each of whom waits for its answer before it asks again."""
    loop = asyncio.get_running_loop()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 20) as session:
        zero = loop.time()
        clients = Clients(
            session,
            stack.at.api,
            MODEL,
            now=lambda: loop.time() - zero,
            patience_s=60,
        )
        left = iter(range(jobs))
        run = Run(clients, lambda: loop.time() - zero)

        async def user(shots: Iterator[Shot]) -> None:
            for _ in left:
                await run.shoot(next(shots))

        before = cpu_s(stack.pid)
        async with asyncio.TaskGroup() as group:
            for _ in range(USERS):
                shape = Shape(mix=dict.fromkeys(ClientKind, 1), output_cap=32, seed=next(seeds))
                group.create_task(user(endless(shape, LENGTHS, 0)))
            if is_scraped:
                group.create_task(scrape(session, stack))
        spent_s = loop.time() - zero
        after = cpu_s(stack.pid)
    ended = {(s.outcome, s.status) for s in run.samples if s.outcome is not Outcome.COMPLETED}
    assert not ended, ended
    cpu_ms: dict[str, float] = {}
    for pid, spent in after.items():
        part = part_of(pid)
        cpu_ms[part] = cpu_ms.get(part, 0.0) + 1000 * (spent - before.get(pid, 0.0))
    return Round(cpu_ms, spent_s, [sample.total_s for sample in run.samples])


def part_of(pid: int) -> str:
    """Which part of a stack a process is, by its command line."""
    said = Path(f"/proc/{pid}/cmdline").read_text()
    words = {"-m\0api": "api", "eventing.broker": "broker", "valkey": "store", "\0up\0": "stack"}
    return next((part for word, part in words.items() if word in said), "predictor")


async def scrape(session: aiohttp.ClientSession, stack: Stack) -> None:
    """Fetch every page once, and drop it unread: parsing is not the stack's work."""
    async with session.get(f"{stack.at.activator}/status") as answer:
        (replica,) = (await answer.json())["replicas"]["list"]
    predictor = "http://127.0.0.1:" + replica["id"].rsplit("-", 1)[1]
    for address in (stack.at.api, stack.at.broker, stack.at.activator, predictor):
        async with session.get(f"{address}/metrics") as answer:
            await answer.read()


async def awake(stack: Stack) -> None:
    """Return once a predictor can serve."""
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{stack.at.activator}/status") as answer:
                if (await answer.json())["replicas"]["ready"]:
                    return
            await asyncio.sleep(0.1)


async def measure(unseen: Stack, seen: Stack, blocks: int, jobs: int) -> list[list[list[Round]]]:
    """The rounds of every block: those unseen, and those seen."""
    seeds = count()
    for stack in (unseen, seen):
        await awake(stack)
        await one_round(stack, 2 * jobs, seeds, is_scraped=False)  # connections, caches
    found: list[list[list[Round]]] = []
    for number in range(blocks):
        first = number % 2  # ABBA and BAAB in turn
        rounds: list[list[Round]] = [[], []]
        for which in (first, 1 - first, 1 - first, first):
            stack = (unseen, seen)[which]
            is_scraped = which == 1 and not rounds[1]
            rounds[which].append(await one_round(stack, jobs, seeds, is_scraped=is_scraped))
        found.append(rounds)
        ratio = ratio_of([rounds], cpu)
        sys.stderr.write(f"block {number + 1} of {blocks}: CPU {100 * (ratio - 1):+.1f} %\n")
    return found


Block = Sequence[Sequence[Round]]


def cpu(rounds: Sequence[Round]) -> float:
    return statistics.mean(each.cpu_ms_per_job for each in rounds)


def latency(share: float) -> Callable[[Sequence[Round]], float]:
    """The percentile of the rounds' latencies taken together."""

    def of(rounds: Sequence[Round]) -> float:
        return quantile((value for each in rounds for value in each.totals_s), share)

    return of


def ratio_of(blocks: Sequence[Block], figure: Callable[[Sequence[Round]], float]) -> float:
    """Seen over unseen: the median over blocks."""
    return statistics.median(figure(seen) / figure(unseen) for unseen, seen in blocks)


def pooled(blocks: Sequence[Block], figure: Callable[[Sequence[Round]], float]) -> float:
    """Seen over unseen, of all rounds together: a p99 needs more jobs than a block has."""
    unseen = [each for block in blocks for each in block[0]]
    return figure([each for block in blocks for each in block[1]]) / figure(unseen)


def interval(
    blocks: Sequence[Block],
    figure: Callable[[Sequence[Round]], float],
    over: Callable[[Sequence[Block], Callable[[Sequence[Round]], float]], float],
) -> dict[str, float]:
    """Percent that being seen adds, with the middle 95 % of what resampled blocks say."""
    rng = random.Random(0)
    resampled = sorted(over(rng.choices(blocks, k=len(blocks)), figure) for _ in range(1000))
    shown = (over(blocks, figure), resampled[25], resampled[974])
    names = ("percent", "from", "to")
    return {name: round(100 * (ratio - 1), 2) for name, ratio in zip(names, shown, strict=True)}


def main(seen: str, blocks: int, jobs: int) -> dict[str, Any]:
    load_before = os.getloadavg()[0]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("unseen", "seen"):
            (Path(folder) / name).mkdir()
        with (
            running(Path(folder) / "unseen", UNSEEN, is_blind=True) as off,
            running(Path(folder) / "seen", SEEN[seen], is_blind=False) as on,
        ):
            found = asyncio.run(measure(off, on, blocks, jobs))
    sides = [[each for block in found for each in block[side]] for side in (0, 1)]
    return {
        "seen": seen,
        "blocks": blocks,
        "jobs_a_round": jobs,
        "users": USERS,
        "cores": os.cpu_count(),
        "load_before": round(load_before, 1),
        "took_s": round(time.monotonic() - began, 1),
        "added": {
            "cpu": interval(found, cpu, ratio_of),
            "p50": interval(found, latency(0.5), pooled),
            "p99": interval(found, latency(0.99), pooled),
        },
        "medians": [
            {
                "side": name,
                "cpu_ms_per_job": round(statistics.median(r.cpu_ms_per_job for r in side), 3),
                "by_part": {
                    part: round(statistics.median(r.cpu_ms[part] / jobs for r in side), 3)
                    for part in sorted(side[0].cpu_ms)
                },
                "jobs_per_s": round(statistics.median(jobs / r.seconds for r in side), 1),
                "p50_s": round(latency(0.5)(side), 4),
                "p99_s": round(latency(0.99)(side), 4),
            }
            for name, side in zip(("unseen", "seen"), sides, strict=True)
        ],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seen", choices=sorted(SEEN), default="sampled")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=100)
    given = parser.parse_args()
    publish(main(given.seen, given.blocks, given.jobs), None)

"""Many replicas and prompts that share prefixes: how often a prefix is read again, and how long a first token takes,
by six ways to give a job to a replica.

    python -m bench.prefix_claims [--jobs 20000] [--seeds 3]

A simulation: no engine and no store runs, only the rules. Replicas have 16 slots, read prompts one after the other
(5,000 tokens/s), write at 40 tokens/s in each slot, and keep the prefixes that they used last. Jobs arrive by a
Poisson process, so many that the slots would be busy for the given share if every prefix were found.

first     each free slot pulls the job that waits longest (a plain queue)
window    each free slot pulls the best match among the first that wait (docs/adr/0325)
ours      the same, and a job is left for 30 ms to the last replica with room that took its prefix
          (docs/adr/0372): the rule of `eventing/redis/scripts/claim.lua`
least     pushed to the replica with the fewest jobs, when they arrive
sglang    pushed to the longest match above half of the prompt; to the least loaded where the loads differ by more than
          32 and 0.01 %; without a match to the smallest tree
pstack    pushed by `matched / prompt - load / mean load` (production-stack, PR 1035)

`tests/contract/broker/test_prefix_model.py` holds the rules of `window` and `ours` to the script.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import mean, quantiles
from typing import Final

SLOTS: Final = 16
PREFILL_TOKENS_PER_S: Final = 5_000.0
DECODE_TOKENS_PER_S: Final = 40.0
OUTPUT_TOKENS: Final = 120.0
PREFIXES: Final = 40
PREFIX_TOKENS: Final = 1_500
OWN_TOKENS: Final = 200
WINDOW, MOST_PASSES, PASS_S = 16, 4, 0.5
MOST_HOLDERS: Final = 16
SGLANG_IMBALANCE, SGLANG_RATIO = 32, 1.0001


@dataclass(eq=False, slots=True)
class Job:
    """One prompt: a shared prefix, or none (-1), and a part of its own."""

    arrived_s: float
    prefix: int
    output_tokens: float
    passes: int = 0
    passed_since_s: float | None = None

    @property
    def tokens(self) -> int:
        return PREFIX_TOKENS + OWN_TOKENS


@dataclass(eq=False)
class Replica:
    """An engine: its slots, the prefixes it keeps, and what was pushed to it."""

    keeps: int
    busy: int = 0
    begun: int = 0
    reads_until_s: float = 0.0
    kept: OrderedDict[int, None] = field(default_factory=OrderedDict)
    waiting: deque[Job] = field(default_factory=deque)

    @property
    def load(self) -> int:
        return self.busy + len(self.waiting)

    def matches(self, job: Job) -> bool:
        return job.prefix in self.kept

    def begin(self, job: Job, now_s: float) -> tuple[float, float, bool]:
        """Give when its first token is there, when it ends, and whether its prefix was found."""
        is_hit = self.matches(job)
        tokens = OWN_TOKENS if is_hit else job.tokens
        self.reads_until_s = max(now_s, self.reads_until_s) + tokens / PREFILL_TOKENS_PER_S
        if job.prefix >= 0:
            self.kept[job.prefix] = None
            self.kept.move_to_end(job.prefix)
            if len(self.kept) > self.keeps:
                self.kept.popitem(last=False)
        self.busy += 1
        self.begun += 1
        first_s = self.reads_until_s
        return first_s, first_s + job.output_tokens / DECODE_TOKENS_PER_S, is_hit


def pull_first(waiting: list[Job], _: Replica, __: float) -> int:
    """The place of the job that a free slot takes."""
    return 0


def pull_matching(waiting: list[Job], replica: Replica, now_s: float) -> int:
    """The same, by the rule of docs/adr/0325; marks those that are passed over."""
    place = best_of(waiting, now_s, lambda job: int(replica.matches(job)))
    assert place is not None
    return place


def best_of(waiting: list[Job], now_s: float, length_of: Callable[[Job], int | None]) -> int | None:
    """The place of the best match among the first that wait; a job without a length is left to another."""
    best, at = -1, None
    for place, job in enumerate(waiting[:WINDOW]):
        since_s = job.passed_since_s
        is_due = job.passes >= MOST_PASSES or (since_s is not None and now_s - since_s >= PASS_S)
        length = length_of(job)
        if length is None and is_due:
            length = 0
        if length is not None and length > best:
            best, at = length, place
        if is_due:
            break
    for job in waiting[: at or 0]:
        job.passes += 1
        job.passed_since_s = now_s if job.passed_since_s is None else job.passed_since_s
    return at


class Holders:
    """Which replicas took a prefix last, newest first, as `claim.lua` remembers them."""

    def __init__(self) -> None:
        self._by_prefix: dict[int, list[Replica]] = {}

    def took(self, job: Job, replica: Replica) -> None:
        """The replica holds the job's prefix now."""
        if job.prefix >= 0:
            others = [each for each in self._by_prefix.get(job.prefix, ()) if each is not replica]
            self._by_prefix[job.prefix] = [replica, *others][:MOST_HOLDERS]

    def of(self, job: Job) -> Replica | None:
        """The last one that has room, to which the job is left."""
        held_by = self._by_prefix.get(job.prefix, ())
        return next((each for each in held_by if each.busy < SLOTS), None)

    def pull(self, waiting: list[Job], free: list[Replica], now_s: float, claimer: Replica) -> int:
        """The place of the job that this replica takes among others that are free; -1 if it leaves all to them."""
        was_full = claimer.busy == SLOTS - 1  # so it sends what its engine has seen

        def length_of(job: Job) -> int | None:
            holder = self.of(job) if len(free) > 1 else None
            if holder is not None and holder is not claimer:
                return None
            return int(was_full and claimer.matches(job)) + int(holder is claimer)

        place = best_of(waiting, now_s, length_of)
        return -1 if place is None else place


def push_least(job: Job, replicas: list[Replica]) -> Replica:
    return min(replicas, key=lambda each: each.load)


def push_sglang(job: Job, replicas: list[Replica]) -> Replica:
    loads = [each.load for each in replicas]
    is_uneven = max(loads) - min(loads) > SGLANG_IMBALANCE
    if is_uneven and max(loads) > SGLANG_RATIO * min(loads):
        return push_least(job, replicas)
    matching = [each for each in replicas if each.matches(job)]
    if matching:
        return matching[0]
    return min(replicas, key=lambda each: len(each.kept))


def push_production_stack(job: Job, replicas: list[Replica]) -> Replica:
    average = mean(each.load for each in replicas) or 1.0

    def score(each: Replica) -> float:
        matched = PREFIX_TOKENS if each.matches(job) else 0
        return matched / job.tokens - each.load / average

    return max(replicas, key=score)


Pull = Callable[[list[Job], Replica, float], int]
Push = Callable[[Job, list[Replica]], Replica]
PULLS: Final[dict[str, Pull]] = {
    "first": pull_first,
    "window": pull_matching,
    "ours": pull_matching,
}
PUSHES: Final[dict[str, Push]] = {
    "least": push_least,
    "sglang": push_sglang,
    "pstack": push_production_stack,
}


@dataclass(slots=True)
class Outcome:
    """What one run gave. `most_passes` is of the queue's rules only."""

    hits: float
    first_token_p50_s: float
    first_token_p95_s: float
    most_passes: int
    busiest: float
    """The most jobs that one replica got, over the mean."""


def arrivals(
    count: int, replicas: int, share: float, *, is_shared: bool, draw: random.Random
) -> Iterator[Job]:
    """Jobs in the order in which they come; with prefixes by Zipf's law, or without any."""
    slot_s = OUTPUT_TOKENS / DECODE_TOKENS_PER_S + OWN_TOKENS / PREFILL_TOKENS_PER_S
    rate = share * replicas * min(SLOTS / slot_s, PREFILL_TOKENS_PER_S / OWN_TOKENS)
    if not is_shared:
        rate = (
            share
            * replicas
            * min(SLOTS / slot_s, PREFILL_TOKENS_PER_S / (PREFIX_TOKENS + OWN_TOKENS))
        )
    weights = list(accumulate(1 / (rank + 1) for rank in range(PREFIXES)))
    now_s = 0.0
    for _ in range(count):
        now_s += draw.expovariate(rate)
        prefix = draw.choices(range(PREFIXES), cum_weights=weights)[0] if is_shared else -1
        yield Job(now_s, prefix, draw.expovariate(1 / OUTPUT_TOKENS))


@dataclass(eq=False)
class Fleet:
    """Replicas, what waits for them, and the events to come. The jobs before `counted_from_s` warm them up."""

    rule: str
    replicas: list[Replica]
    draw: random.Random
    counted_from_s: float
    waiting: list[Job] = field(default_factory=list)
    events: list[tuple[float, int, Replica]] = field(default_factory=list)
    """When a slot of a replica ends."""
    holders: Holders = field(default_factory=Holders)
    firsts_s: list[float] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    _order: int = 0

    def arrive(self, job: Job) -> None:
        if self.rule in PUSHES:
            PUSHES[self.rule](job, self.replicas).waiting.append(job)
        else:
            self.waiting.append(job)
        self._fill(job.arrived_s)

    def next_event(self) -> None:
        now_s, _, replica = heapq.heappop(self.events)
        replica.busy -= 1
        self._fill(now_s)

    def _begin(self, job: Job, replica: Replica, now_s: float) -> None:
        first_s, end_s, is_hit = replica.begin(job, now_s)
        self.holders.took(job, replica)
        self._order += 1
        heapq.heappush(self.events, (end_s, self._order, replica))
        if job.arrived_s >= self.counted_from_s:
            self.firsts_s.append(first_s - job.arrived_s)
            self.hits.append(is_hit)

    def _fill(self, now_s: float) -> None:
        if self.rule in PUSHES:
            for replica in self.replicas:
                while replica.waiting and replica.busy < SLOTS:
                    self._begin(replica.waiting.popleft(), replica, now_s)
            return
        while self.waiting and (free := [each for each in self.replicas if each.busy < SLOTS]):
            replica = self.draw.choice(free)  # whose claim arrives first
            if self.rule == "ours":
                place = self.holders.pull(self.waiting, free, now_s, replica)
                if place < 0:  # a holder with room claims within a millisecond or two
                    continue
            else:
                place = PULLS[self.rule](self.waiting, replica, now_s)
            self._begin(self.waiting.pop(place), replica, now_s)


def run(rule: str, jobs: list[Job], replicas: list[Replica], draw: random.Random) -> Outcome:
    """Give the jobs to the replicas by a rule; the first tenth is not counted."""
    fleet = Fleet(rule, replicas, draw, counted_from_s=jobs[len(jobs) // 10].arrived_s)
    for job in jobs:
        while fleet.events and fleet.events[0][0] < job.arrived_s:
            fleet.next_event()
        fleet.arrive(job)
    while fleet.events:
        fleet.next_event()
    cuts = quantiles(fleet.firsts_s, n=100)
    got = [each.begun for each in replicas]
    return Outcome(
        mean(fleet.hits), cuts[49], cuts[94], max(job.passes for job in jobs), max(got) / mean(got)
    )


def measured(
    rule: str,
    count: int,
    replicas: int,
    share: float,
    keeps: int,
    seeds: int,
    *,
    is_shared: bool = True,
) -> Outcome:
    """The mean over so many seeds, of the most passes the highest."""
    found = []
    for seed in range(seeds):
        jobs = list(arrivals(count, replicas, share, is_shared=is_shared, draw=random.Random(seed)))
        fleet = [Replica(keeps) for _ in range(replicas)]
        found.append(run(rule, jobs, fleet, random.Random(seed + 1_000)))
    return Outcome(
        mean(each.hits for each in found),
        mean(each.first_token_p50_s for each in found),
        mean(each.first_token_p95_s for each in found),
        max(each.most_passes for each in found),
        mean(each.busiest for each in found),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs a run")
    parser.add_argument("--seeds", type=int, default=3, help="runs a row")
    asked = parser.parse_args()
    for keeps in (40, 16):
        one = measured("first", asked.jobs, 1, 0.7, keeps, asked.seeds).hits
        print(
            f"\nreplicas keep {keeps} of {PREFIXES} prefixes; one replica alone finds {one:.3f}\n"
        )
        print(
            "| replicas | busy | rule | found / one replica's | p50 s | p95 s | p95 / first | passes | busiest |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for replicas in (4, 16, 64):
            for share in (0.7, 0.9, 1.05):
                plain = None
                for rule in (*PULLS, *PUSHES):
                    it = measured(rule, asked.jobs, replicas, share, keeps, asked.seeds)
                    plain = plain or it
                    print(
                        f"| {replicas} | {share:.2f} | {rule} | {it.hits / one:.2f} | {it.first_token_p50_s:.2f} "
                        f"| {it.first_token_p95_s:.2f} | {it.first_token_p95_s / plain.first_token_p95_s:.2f} "
                        f"| {it.most_passes} | {it.busiest:.2f} |",
                        flush=True,
                    )
    print("\nprompts that share nothing (busy 0.9)\n")
    for replicas in (4, 16, 64):
        plain, ours = (
            measured(rule, asked.jobs, replicas, 0.9, 16, asked.seeds, is_shared=False)
            for rule in ("first", "ours")
        )
        print(
            f"{replicas} replicas: p95 {plain.first_token_p95_s:.2f} s, ours {ours.first_token_p95_s:.2f} s"
        )


if __name__ == "__main__":
    main()

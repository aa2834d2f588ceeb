"""The rules of `bench.prefix_claims` on a trace that has hashes of prompts' blocks, as Mooncake's have.

    python -m bench.prefix_trace conversation_trace.jsonl [--replicas 12 16] [--blocks 600 4000]

The trace is Mooncake's (github.com/kvcache-ai/Mooncake, FAST25-release/traces): time, lengths, and for each 512 tokens
of a prompt a hash of them and all before. A replica keeps so many blocks, the ones used last, and reads what it does
not have. The rules see what a claim sees: the first 16 KiB of a prompt, some 8 blocks. Times are the trace's;
engines are those of `bench.prefix_claims`: 16 slots, 5,000 tokens/s read, 40 a second written in each slot.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Final

from bench.prefix_claims import (
    DECODE_TOKENS_PER_S,
    MOST_HOLDERS,
    PREFILL_TOKENS_PER_S,
    SLOTS,
    Fleet,
    Holders,
    Job,
    Replica,
)
from torpor.simulator.trace import Trace, read_trace

SEEN_BLOCKS: Final = 8
"""Of a prompt, by what claims compare: 16 KiB are some 4,096 tokens."""
RULES: Final = ("first", "window", "ours", "least")


@dataclass(eq=False, slots=True)
class TraceJob(Job):
    """A prompt of the trace."""

    prompt_tokens: int = 0
    blocks: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return self.prompt_tokens

    def cached(self, known: int) -> int:
        """Tokens in so many blocks from the first."""
        return self.prompt_tokens * known // max(len(self.blocks), 1)


@dataclass(eq=False)
class TraceReplica(Replica):
    """An engine that keeps blocks."""

    cached_tokens: int = 0

    def known(self, job: Job) -> int:
        """The blocks from the first that it keeps."""
        blocks = job.blocks if isinstance(job, TraceJob) else ()
        return next((n for n, block in enumerate(blocks) if block not in self.kept), len(blocks))

    def matches(self, job: Job) -> bool:
        return min(self.known(job), SEEN_BLOCKS) > 0

    def begin(self, job: Job, now_s: float) -> tuple[float, float, bool]:
        assert isinstance(job, TraceJob)
        known = self.known(job)
        self.cached_tokens += job.cached(known)
        self.reads_until_s = (
            max(now_s, self.reads_until_s) + (job.tokens - job.cached(known)) / PREFILL_TOKENS_PER_S
        )
        for block in reversed(job.blocks):  # the first is the last to go
            self.kept[block] = None
            self.kept.move_to_end(block)
        while len(self.kept) > self.keeps:
            self.kept.popitem(last=False)
        self.busy += 1
        self.begun += 1
        first_s = self.reads_until_s
        return first_s, first_s + job.output_tokens / DECODE_TOKENS_PER_S, known > 0


class TraceHolders(Holders):
    """Who took a block that begins a prompt last."""

    def __init__(self) -> None:
        super().__init__()
        self._by_block: dict[int, list[Replica]] = {}

    def took(self, job: Job, replica: Replica) -> None:
        for block in _seen(job):
            others = [each for each in self._by_block.get(block, ()) if each is not replica]
            self._by_block[block] = [replica, *others][:MOST_HOLDERS]

    def of(self, job: Job) -> Replica | None:
        seen = _seen(job)
        for block in reversed(seen[len(seen) // 2 :]):
            for each in self._by_block.get(block, ()):
                if each.busy < SLOTS:
                    return each
        return None


def _seen(job: Job) -> tuple[int, ...]:
    return job.blocks[:SEEN_BLOCKS] if isinstance(job, TraceJob) else ()


@dataclass(eq=False)
class TraceFleet(Fleet):
    holders: Holders = field(default_factory=TraceHolders)


def run(rule: str, path: Path, replicas: int, keeps: int) -> tuple[float, float, float]:
    """The share of prompt tokens that were cached, and p50 and p95 of the time to a first token."""
    jobs = [
        TraceJob(
            arrived_s=each.at,
            prefix=-1,
            output_tokens=each.output_tokens,
            prompt_tokens=each.prompt_tokens,
            blocks=each.blocks,
        )
        for each in read_trace(Trace(path))
    ]
    own: list[Replica] = [TraceReplica(keeps) for _ in range(replicas)]
    fleet = TraceFleet(rule, own, random.Random(1), counted_from_s=0.0)
    for job in jobs:
        while fleet.events and fleet.events[0][0] < job.arrived_s:
            fleet.next_event()
        fleet.arrive(job)
    while fleet.events:
        fleet.next_event()
    cached = sum(each.cached_tokens for each in own if isinstance(each, TraceReplica))
    cuts = quantiles(fleet.firsts_s, n=100)
    return cached / sum(job.tokens for job in jobs), cuts[49], cuts[94]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--replicas", type=int, nargs="+", default=[12, 16])
    parser.add_argument("--blocks", type=int, nargs="+", default=[600, 4000])
    asked = parser.parse_args()
    print("| replicas, blocks each | rule | cached | p50 s | p95 s | p95 / first |")
    print("|---|---|---|---|---|---|")
    for replicas in asked.replicas:
        for keeps in asked.blocks:
            plain = 0.0
            for rule in RULES:
                cached, p50, p95 = run(rule, asked.trace, replicas, keeps)
                plain = plain or p95
                print(
                    f"| {replicas}, {keeps} | {rule} | {cached:.3f} | {p50:.2f} | {p95:.2f} "
                    f"| {p95 / plain:.2f} |",
                    flush=True,
                )
    alone = run("first", asked.trace, 1, 10**9)[0]
    print(f"\none replica that forgets nothing: {alone:.3f} cached")


if __name__ == "__main__":
    main()

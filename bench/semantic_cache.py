"""How much the semantic cache serves, and how much of that wrongly: every line has both.

    python -m bench.semantic_cache [--qqp FILE] [--pairs N]

The pairs of `fow-cache` (600 pairs of questions, 240 pairs of chats; data CC BY 4.0, Mabon ap Gwyn), half of which were
read while the rule was written: which, its hash decides. FILE is QQP as zilliztech/GPTCache has it
(examples/benchmark/similiar_qqp_full.json.gz; Quora's terms allow evaluation only, it is not in this repository); N of
its pairs are drawn, half of which were read too. A pair is judged alone: an empty cache holds one side, the other is
asked.
"""

import argparse
import asyncio
import gzip
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fow_cache.data import load_conversations, load_questions

from steps.embedding.packaged import PackagedEmbedder
from steps.semantic_cache.agreement import Verdict
from steps.semantic_cache.question import Question, question_of
from steps.semantic_cache.rule import Candidate, best_match
from steps.semantic_cache.spelling import is_word


class Pair(NamedTuple):
    """Two questions, whether one answer is right for both, and whether it was read while the rule was written."""

    a: str
    b: str
    is_same: bool
    kind: str
    was_read: bool


class Judged(NamedTuple):
    """A pair, the cosine of its sides, and the rule that serves it (None: a miss)."""

    pair: Pair
    similarity: float
    rule: Verdict | None
    is_open: bool  #: a verifier would be asked


def fow_pairs() -> list[Pair]:
    """The pairs of questions of fow-cache. What depends on the application counts as a trap."""
    return [
        Pair(
            item["a"],
            item["b"],
            bool(item["same_answer"]),
            item["category"],
            _half(item["id"]) == 0,
        )
        for item in load_questions()
    ]


def qqp_pairs(path: Path, count: int) -> list[Pair]:
    """Pairs of QQP, drawn by a fixed seed."""
    text = gzip.decompress(path.read_bytes()).decode()
    rows = json.JSONDecoder().raw_decode(text[text.index("[\n") :])[0]
    drawn = random.Random(5).sample(range(len(rows)), count)
    return [
        Pair(rows[i]["text_a"], rows[i]["text_b"], rows[i]["label"] == 1, "qqp", i % 2 == 0)
        for i in drawn
    ]


def _half(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) & 1


async def judge(pairs: Sequence[Pair], embedder: PackagedEmbedder) -> list[Judged]:
    """Judge each pair as the step does."""
    ones = await embedder.embed([pair.a for pair in pairs])
    others = await embedder.embed([pair.b for pair in pairs])
    found = []
    for pair, cosine in zip(pairs, np.sum(ones * others, axis=1), strict=True):
        candidate = Candidate(pair.a, float(cosine), None)
        match = best_match(pair.b, [candidate], is_word, has_verifier=True)
        rule = match.rule if match else None
        is_open = rule is Verdict.OPEN
        found.append(Judged(pair, float(cosine), None if is_open else rule, is_open))
    return found


def served_chats() -> tuple[int, int]:
    """Pairs of chats that are served, of the right ones and of the traps: none is a first turn in both."""
    right = wrong = 0
    for item in load_conversations():
        asked = [
            question_of("/v1/chat/completions", {"model": "m", "messages": item[side]}, tenant="t",
                        plan_version="p", api="", revision="r")
            for side in ("a", "b")
        ]  # fmt: skip
        if all(isinstance(each, Question) for each in asked) and asked[0] == asked[1]:
            right, wrong = right + bool(item["same_answer"]), wrong + (not item["same_answer"])
    return right, wrong


def rates(judged: Sequence[Judged], serves: Callable[[Judged], bool]) -> tuple[float, float]:
    """Share of the right pairs that are served, and of the traps."""
    shares = []
    for is_same in (True, False):
        kind = [each for each in judged if each.pair.is_same is is_same]
        shares.append(sum(map(serves, kind)) / len(kind) if kind else 0.0)
    return shares[0], shares[1]


def table(judged: Sequence[Judged]) -> list[list[Any]]:
    """One row a rule: should-hit served, traps served, precision."""
    rules: list[tuple[str, Callable[[Judged], bool]]] = [
        *((f"cosine ≥ {level}", _at_least(level)) for level in (0.8, 0.9, 0.95, 0.98)),
        ("same words (SAME)", lambda each: each.rule is Verdict.SAME),
        ("SAME or NEAR: what is served", lambda each: each.rule is not None),
        ("reaches a verifier, or served", lambda each: each.is_open or each.rule is not None),
    ]
    rows = []
    for name, serves in rules:
        hit, wrong = rates(judged, serves)
        served = [each.pair.is_same for each in judged if serves(each)]
        rows.append([name, hit, wrong, sum(served) / len(served) if served else 1.0, len(served)])
    return rows


def _at_least(level: float) -> Callable[[Judged], bool]:
    return lambda each: each.similarity >= level


def show(title: str, judged: Sequence[Judged]) -> None:
    print(f"\n{title}: {len(judged)} pairs")
    print("| rule | should-hit served | traps wrong | precision | served |\n|---|---|---|---|---|")
    for name, hit, wrong, precision, served in table(judged):
        print(f"| {name} | {hit:.3f} | {wrong:.3f} | {precision:.3f} | {served} |")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--qqp", type=Path)
    parser.add_argument("--pairs", type=int, default=4000)
    asked = parser.parse_args()
    embedder = PackagedEmbedder()
    judged = await judge(fow_pairs(), embedder)
    show("fow-cache, all", judged)
    show("fow-cache, the half not read", [each for each in judged if not each.pair.was_read])
    for kind in sorted({each.pair.kind for each in judged}):
        some = [each for each in judged if each.pair.kind == kind]
        print(f"| {kind} | served {sum(each.rule is not None for each in some)} of {len(some)} |")
    print("chats served, right and wrong, of 240:", served_chats())
    for each in judged:
        if each.rule is not None and not each.pair.is_same:
            print("wrong:", each.rule, f"{each.similarity:.3f}", each.pair.a, "|", each.pair.b)
    if asked.qqp:
        found = await judge(qqp_pairs(asked.qqp, asked.pairs), embedder)
        show("QQP, all drawn", found)
        show("QQP, the half not read", [each for each in found if not each.pair.was_read])
        for each in found:
            if each.rule is not None and not each.pair.is_same:
                print("labelled different:", each.rule, each.pair.a, "|", each.pair.b)
    await embedder.aclose()


if __name__ == "__main__":
    asyncio.run(main())

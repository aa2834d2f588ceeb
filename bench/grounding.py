"""Grounding without a model: how well its score tells right answers from hallucinated ones, and what blocking costs.

`python -m bench.grounding FILE...`, each a JSON-lines file with `knowledge`, `right_answer` and `hallucinated_answer`
(HaluEval QA). The two halves are shown apart. This data flatters such a rule: its right answers are mostly copied from
the passage, and the length of an answer alone tells a lot. So length stands beside, each rule is shown over pairs of
answers of like length too, and answers of which the step says nothing («yes») count as supported, as false, or not.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from steps.grounding.support import support

Row = dict[str, Any]
Rule = Callable[[Row, str], float]


def auroc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """The chance that a right answer scores above a wrong one; a tie counts half."""
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    return wins / (len(right) * len(wrong))


def alike_auroc(rows: Sequence[Row], rule: Rule) -> float:
    """`auroc` over the pairs whose answers differ by one word in length, at most."""
    right = [(len(r["right_answer"].split()), rule(r, r["right_answer"])) for r in rows]
    wrong = [
        (len(r["hallucinated_answer"].split()), rule(r, r["hallucinated_answer"])) for r in rows
    ]
    pairs = [(a, b) for n, a in right for m, b in wrong if abs(n - m) <= 1]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def judged(row: Row, answer: str) -> bool:
    """True for an answer of which the step says something."""
    return support(answer, [row["knowledge"]]).score is not None


def by_support(row: Row, answer: str, nothing: float = 1.0) -> float:
    """The score of the step; `nothing` for an answer of which it says nothing."""
    score = support(answer, [row["knowledge"]]).score
    return nothing if score is None else score


def strictly(row: Row, answer: str) -> float:
    """The score of the step; the lowest for an answer of which it says nothing."""
    return by_support(row, answer, nothing=0.0)


def by_length(_: Row, answer: str) -> float:
    """Short answers first."""
    return -len(answer.split())


def figures(rows: Sequence[Row], rule: Rule) -> tuple[float, float]:
    """AUROC over all pairs, and over pairs of like length."""
    right = [rule(row, row["right_answer"]) for row in rows]
    wrong = [rule(row, row["hallucinated_answer"]) for row in rows]
    return auroc(right, wrong), alike_auroc(rows, rule)


def withheld(rows: Sequence[Row], answers: Sequence[str], least: float) -> float:
    """The share of these answers that `block` withholds with this `min_score`."""
    pairs = zip(rows, answers, strict=True)
    return sum(by_support(row, answer) < least for row, answer in pairs) / len(rows)


RULES: Sequence[tuple[str, Rule]] = (
    ("support", by_support),
    ("unjudged = false", strictly),
    ("length alone", by_length),
)


def main(paths: Sequence[str]) -> None:
    """Prints one table a file."""
    for path in paths:
        text = Path(path).read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        for name, part in (("even rows", rows[::2]), ("odd rows", rows[1::2])):
            print(f"{Path(path).name}, {name} ({len(part)})")
            for label, rule in RULES:
                whole, alike = figures(part, rule)
                print(f"  {label:16} AUROC {whole:.3f}, answers of like length {alike:.3f}")
            right = [r for r in part if judged(r, r["right_answer"])]
            wrong = [r for r in part if judged(r, r["hallucinated_answer"])]
            only = auroc(
                [by_support(r, r["right_answer"]) for r in right],
                [by_support(r, r["hallucinated_answer"]) for r in wrong],
            )
            print(
                f"  {'judged only':16} AUROC {only:.3f}; not judged: {len(part) - len(right)} right, "
                f"{len(part) - len(wrong)} hallucinated"
            )
            for least in (0.3, 0.5, 0.7):
                held = {
                    "hallucinated": [r["hallucinated_answer"] for r in part],
                    "right": [r["right_answer"] for r in part],
                    "right in other words": [
                        f"According to what I was given, it is {r['right_answer']}." for r in part
                    ],
                }
                shares = ", ".join(
                    f"{withheld(part, answers, least):.1%} {kind}" for kind, answers in held.items()
                )
                print(f"  min_score {least} withholds {shares}")


if __name__ == "__main__":
    main(sys.argv[1:])

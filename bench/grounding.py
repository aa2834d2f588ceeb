"""Grounding without a model: how well its score tells right answers from hallucinated ones, and what blocking costs.

`python -m bench.grounding FILE...`, each a JSON-lines file with `knowledge`, `right_answer` and `hallucinated_answer`
(HaluEval QA). The two halves are shown apart. This data flatters such a rule: its right answers are mostly copied from
the passage, and the length of an answer alone tells a lot. So length stands beside, each rule is shown over pairs of
answers of like length too, and answers of which the step says nothing («yes») count as supported, as false, or not.

Rows that have a `paraphrase` too, the right answer in other words (`bench/data/grounding_rows.jsonl`), are shown by the
`kind` of what is wrong, with 95 % intervals over questions; nothing was chosen on them.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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


def withheld(rows: Sequence[Row], answers: Sequence[str], least: float) -> float:
    """The share of these answers that `block` withholds with this `min_score`."""
    pairs = zip(rows, answers, strict=True)
    return sum(by_support(row, answer) < least for row, answer in pairs) / len(rows)


RULES: Sequence[tuple[str, Rule]] = (
    ("support", by_support),
    ("unjudged = false", strictly),
    ("length alone", by_length),
)


def interval(right: Sequence[float], wrong: Sequence[float]) -> tuple[float, float, float]:
    """AUROC of answers to the same questions, and its 95 % interval by drawing questions again."""
    wins = np.subtract.outer(np.array(right), np.array(wrong))
    matrix = (wins > 0) + 0.5 * (wins == 0)
    size = len(right)
    draws = np.random.default_rng(1).multinomial(size, [1 / size] * size, 4000)
    values = np.einsum("di,ij,dj->d", draws, matrix, draws, optimize=True) / size**2
    low, high = np.quantile(values, (0.025, 0.975))
    return float(matrix.mean()), float(low), float(high)


def by_kind(rows: Sequence[Row]) -> None:
    """One line for each kind of wrong answer: score and length, against right answers copied and in other words."""
    kinds = [*dict.fromkeys(row["kind"] for row in rows)]
    for kind in (*kinds, ""):
        some = [row for row in rows if not kind or row["kind"] == kind]
        print(f"{kind or 'all'} ({len(some)} questions)")
        for label, rule in (("support", by_support), ("length alone", by_length)):
            wrong = [rule(row, row["hallucinated_answer"]) for row in some]
            for form in ("right_answer", "paraphrase"):
                value, low, high = interval([rule(row, row[form]) for row in some], wrong)
                print(f"  {label:13} {form:13} AUROC {value:.3f} [{low:.3f}, {high:.3f}]")


def main(paths: Sequence[str]) -> None:
    """Prints one table a file."""
    for path in paths:
        text = Path(path).read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        if "paraphrase" in rows[0]:
            by_kind(rows)
            continue
        for name, part in (("even rows", rows[::2]), ("odd rows", rows[1::2])):
            print(f"{Path(path).name}, {name} ({len(part)})")
            for label, rule in RULES:
                right = [rule(row, row["right_answer"]) for row in part]
                wrong = [rule(row, row["hallucinated_answer"]) for row in part]
                whole, low, high = interval(right, wrong)
                alike = alike_auroc(part, rule)
                print(
                    f"  {label:16} AUROC {whole:.3f} [{low:.3f}, {high:.3f}], answers of like length {alike:.3f}"
                )
            is_right = [r for r in part if judged(r, r["right_answer"])]
            is_wrong = [r for r in part if judged(r, r["hallucinated_answer"])]
            only = auroc(
                [by_support(r, r["right_answer"]) for r in is_right],
                [by_support(r, r["hallucinated_answer"]) for r in is_wrong],
            )
            print(
                f"  {'judged only':16} AUROC {only:.3f}; not judged: {len(part) - len(is_right)} right, "
                f"{len(part) - len(is_wrong)} hallucinated"
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

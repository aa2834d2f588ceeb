"""Routers between a small and a large model, on cached answers of both: what each gets of the large one's lead.

    python -m bench.routing ROUTING_ANSWERS.csv

The file has a row a prompt: `set`, `prompt`, `small_is_right`, `large_is_right` (RouteLLM's published answers,
Apache-2.0). No model runs. A router gives each prompt a score; those with the highest go to the large model.

APGR   the share of the lead that is recovered, averaged over all shares of calls to the large model (random: 0.5)
CPT50  the share of calls that recovers half of the lead (random: 0.5)

Each with a 95 % interval of 200 bootstrap samples. The learned router is a logistic regression on the packaged
embedder's vectors, judged on rows that it was not trained on.
"""

import argparse
import asyncio
import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eventing.job.job import JobRequest
from steps.embedding.packaged import PackagedEmbedder
from steps.route.tiers import Tier, TierRule, choose

Numbers = NDArray[np.float64]
Scores = Callable[[Sequence[str], Numbers, Numbers], Numbers]


def apgr_and_cpt50(scores: Numbers, small: Numbers, large: Numbers) -> tuple[float, float]:
    """Both figures, from which model was right on each prompt."""
    order = np.argsort(-scores, kind="stable")
    gained = np.concatenate([[0.0], np.cumsum((large - small)[order])]) / max(
        (large - small).sum(), 1e-9
    )
    return float(gained.mean()), float(np.argmax(gained >= 0.5) / len(order))


def interval(scores: Numbers, small: Numbers, large: Numbers) -> str:
    """The figures with their intervals."""
    draw = np.random.default_rng(1)
    found = []
    for _ in range(200):
        rows = draw.integers(0, len(scores), len(scores))
        found.append(apgr_and_cpt50(scores[rows], small[rows], large[rows]))
    low, high = np.percentile(np.array(found), [2.5, 97.5], axis=0)
    apgr, cpt = apgr_and_cpt50(scores, small, large)
    return f"{apgr:.3f} ({low[0]:.3f} to {high[0]:.3f})   {cpt:.3f} ({low[1]:.3f} to {high[1]:.3f})"


def by_chance(prompts: Sequence[str], small: Numbers, large: Numbers) -> Numbers:
    return np.random.default_rng(2).random(len(prompts))


def by_length(prompts: Sequence[str], small: Numbers, large: Numbers) -> Numbers:
    return np.array([len(prompt.split()) for prompt in prompts], float)


def by_marks(prompts: Sequence[str], small: Numbers, large: Numbers) -> Numbers:
    """What `steps.route` decides with its marks of code and mathematics on; the length within one tier."""
    tiers = tuple(Tier(model=str(place)) for place in range(4))
    rule = TierRule(tiers=tiers, holdout=0.0, marks=True)
    found = []
    for number, prompt in enumerate(prompts):
        request = JobRequest(url="/v1/completions", body={"prompt": prompt})
        choice = choose(rule, request, tenant="t", job_id=str(number))
        assert choice is not None
        found.append(int(choice.model) + min(len(re.findall(r"\S+", prompt)), 9999) / 1e4)
    return np.array(found)


def learned(prompts: Sequence[str], small: Numbers, large: Numbers) -> Numbers:
    """Five folds: each prompt is scored by a regression that has not seen it."""
    vectors = asyncio.run(_embedded(prompts))
    wanted = large - small
    order = np.random.default_rng(3).permutation(len(prompts))
    scores = np.zeros(len(prompts))
    for fold in range(5):
        test = order[fold::5]
        train = np.setdiff1d(order, test)
        x = np.hstack([vectors[train], np.ones((len(train), 1))])
        ridge = x.T @ x + 10.0 * np.eye(x.shape[1])
        weights = np.linalg.solve(ridge, x.T @ wanted[train])
        scores[test] = np.hstack([vectors[test], np.ones((len(test), 1))]) @ weights
    return scores


async def _embedded(prompts: Sequence[str]) -> Numbers:
    embedder = PackagedEmbedder(threads=2)
    try:
        return (await embedder.embed(list(prompts))).astype(float)
    finally:
        await embedder.aclose()


ROUTERS: Mapping[str, Scores] = {
    "chance": by_chance,
    "length": by_length,
    "marks": by_marks,
    "learned": learned,
}


def main() -> None:
    """Print a table for each set."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    with parser.parse_args().file.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in sorted({row["set"].split("_")[0] for row in rows}):
        chosen = [row for row in rows if row["set"].startswith(name)]
        prompts = [row["prompt"] for row in chosen]
        small, large = (
            np.array([row[column].lower() in ("1", "true") for row in chosen], float)
            for column in ("small_is_right", "large_is_right")
        )
        print(f"\n{name}: {len(chosen)} prompts, right: {small.mean():.3f} and {large.mean():.3f}")
        print("router    APGR                     CPT50")
        for router, scores in ROUTERS.items():
            print(f"{router:<9} {interval(scores(prompts, small, large), small, large)}")


if __name__ == "__main__":
    main()

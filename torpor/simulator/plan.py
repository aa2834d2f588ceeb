"""Searches for the cheapest policy that keeps a wait target.

Called by `torpor plan` and the benches. It must not know how a run is printed.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from eventing.telemetry.cost import TokenPrice
from torpor.simulator.candidate import (
    Candidate,
    fixed_candidate,
    keda_candidate,
    kpa_candidate,
    work_over_keda_candidate,
)
from torpor.simulator.load import Load
from torpor.simulator.measure import StoodIn
from torpor.simulator.report.report import SimulationReport, report
from torpor.simulator.world import Scenario, simulate

TIER_SHARES: Final = (0.5, 0.75, 0.9, 0.95, 0.99)
"""Of the requests that stay here, by the length of their prompts."""


@dataclass(frozen=True, slots=True)
class WaitTarget:
    """What must hold: the wait of 95 in 100 requests, and the share that may time out."""

    p95_wait_s: float
    timed_out_percent: float = 0.0

    def is_met_by(self, report: SimulationReport) -> bool:
        """Whether the target held and everything was served."""
        kept = report.unserved + report.refused == 0
        in_time = report.timed_out_percent <= self.timed_out_percent
        return kept and in_time and report.wait_s.p95 <= self.p95_wait_s


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate and what it gave."""

    candidate: Candidate
    report: SimulationReport

    def meets(self, target: WaitTarget) -> bool:
        """Whether the target held and everything was served."""
        return target.is_met_by(self.report)


def run(
    scenario: Scenario, load: Load, candidate: Candidate, price_per_gpu_hour: float
) -> SimulationReport:
    """One candidate's report."""
    own = replace(
        scenario,
        initial_replicas=candidate.initial_replicas,
        start_s=scenario.start_s if candidate.start_s is None else candidate.start_s,
        container_concurrency=(
            scenario.container_concurrency
            if candidate.container_concurrency is None
            else candidate.container_concurrency
        ),
    )
    outcome = simulate(own, load.requests(), candidate.build())
    return report(candidate.name, outcome, price_per_gpu_hour)


def search(
    scenario: Scenario,
    load: Load,
    candidates: Iterable[Candidate],
    price_per_gpu_hour: float,
    *,
    on_progress: Callable[[Tried], None] | None = None,
) -> list[Tried]:
    """Every candidate, tried; the cheapest first."""
    tried: list[Tried] = []
    for candidate in candidates:
        one = Tried(candidate, run(scenario, load, candidate, price_per_gpu_hour))
        tried.append(one)
        if on_progress is not None:
            on_progress(one)
    return sorted(tried, key=lambda one: (one.report.cost, one.candidate.name))


def best(tried: Iterable[Tried], target: WaitTarget) -> Tried | None:
    """The cheapest that meets the target, or None."""
    return next((one for one in tried if one.meets(target)), None)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A setting whose load a provider shares: what it answers, and both costs. `most_prompt_tokens` of a tier rule."""

    tried: Tried
    theirs: StoodIn
    provider_cost: float
    most_prompt_tokens: int = 0

    @property
    def cost(self) -> float:
        return self.tried.report.cost + self.provider_cost


def tiers(
    scenario: Scenario, load: Load, chosen: Candidate, gpu_price: float, tokens: TokenPrice
) -> list[Mixed]:
    """The chosen setting with each tier by the length of the prompt, the cheapest first."""
    found = []
    for longest in load.prompt_quantiles(TIER_SHARES):
        theirs = load.beyond(longest)
        if theirs.requests:
            kept = replace(load, most_prompt_tokens=longest)
            tried = Tried(chosen, run(scenario, kept, chosen, gpu_price))
            found.append(Mixed(tried, theirs, _price(theirs, tokens), longest))
    return sorted(found, key=lambda each: each.cost)


def fallbacks(
    scenario: Scenario,
    load: Load,
    candidates: Iterable[Candidate],
    gpu_price: float,
    tokens: TokenPrice,
    after_s: float,
) -> list[Mixed]:
    """Every setting with a provider that answers what has waited for so long, the cheapest first."""
    sharing = replace(scenario, fallback_after_s=after_s)
    found = []
    for candidate in candidates:
        tried = Tried(candidate, run(sharing, load, candidate, gpu_price))
        theirs = tried.report.stood_in
        found.append(Mixed(tried, theirs, _price(theirs, tokens)))
    return sorted(found, key=lambda each: (each.cost, each.tried.candidate.name))


def _price(theirs: StoodIn, tokens: TokenPrice) -> float:
    return tokens.of(theirs.prompt_tokens, theirs.output_tokens)


def grid(
    scenario: Scenario,
    target: WaitTarget,
    *,
    warm_start_s: float | None = None,
    most_fixed: int = 3,
    is_safe: bool = False,
) -> Iterator[Candidate]:
    """The settings worth trying; with `warm_start_s` each also with a warm parent.

    A warm parent has everything imported and forks a predictor: the cold start is shorter. With
    `is_safe` only what `torpor doctor` lets pass: no cooldown shorter than a cold start.
    """
    slots = scenario.slots
    starts: list[tuple[str, float]] = [("", scenario.start_s)]
    if warm_start_s is not None:
        starts.append((", warm parent", warm_start_s))
    for suffix, start_s in starts:
        yield from _kpa_grid(slots, start_s, suffix)
        yield from _keda_grid(slots, start_s, suffix, shortest_s=start_s if is_safe else 0)
        yield work_over_keda_candidate(
            f"work over keda{suffix}",
            scenario.engine,
            slots,
            start_s=start_s,
            p95_wait_s=target.p95_wait_s,
        )
    for replicas in range(1, most_fixed + 1):
        yield fixed_candidate(replicas)


def _kpa_grid(slots: int, start_s: float, suffix: str) -> Iterator[Candidate]:
    for least in (0, 1):
        for window in (6, 30, 60, 180, 600):
            for percent in (70, 90):
                annotations = {
                    "window": f"{window}s",
                    "target-utilization-percentage": str(percent),
                    "min-scale": str(least),
                }
                name = f"kpa window {window} s, {percent} %, min {least}{suffix}"
                yield kpa_candidate(name, annotations, slots, start_s=start_s)


def _keda_grid(
    slots: int, start_s: float, suffix: str, *, shortest_s: float
) -> Iterator[Candidate]:
    cooldowns = [seconds for seconds in (5, 30, 60) if seconds >= shortest_s]
    for least in (0, 1):
        for cooldown in (*cooldowns, max(300, math.ceil(shortest_s))):
            for poll in (2, 30):
                if least and cooldown < 300:
                    continue  # the cooldown only leads to zero
                fields = {
                    "pollingInterval": poll,
                    "cooldownPeriod": cooldown,
                    "minReplicaCount": least,
                }
                name = f"keda cooldown {cooldown} s, poll {poll} s, min {least}{suffix}"
                yield keda_candidate(name, fields, slots, is_fast=True, start_s=start_s)

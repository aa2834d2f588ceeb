"""Policies side by side on the trace and on bursts: who waits, who pays, and how far from the bound.

    python -m bench.policies.table --trace ../shared/traces/azure_llm_2023_conv.csv

    python -m bench.policies.table --seeds 10        # bursts only, as many of them

"best" rows are the cheapest setting of a grid that keeps the target, chosen with hindsight on the very load they
are judged by: a generous rival. "work" has no setting but the target itself.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.policies.bound import Clairvoyant, Setting, lower_bound_s, stretches
from torpor.simulator.candidate import (
    Candidate,
    keda_candidate,
    kpa_candidate,
    work_candidate,
    work_over_keda_candidate,
)
from torpor.simulator.engine import GPU_ASSUMED
from torpor.simulator.load import Load
from torpor.simulator.plan import WaitTarget, grid, run
from torpor.simulator.report.report import SimulationReport, report
from torpor.simulator.trace import Trace
from torpor.simulator.workload import Profile, ProfileKind, Request
from torpor.simulator.world import Scenario, simulate

SLOTS = 16
PRICE = 4.5
TAIL_S = 600.0


# The bound is found in time that grows with the square of the requests.
MOST_FOR_BOUND = 3000


@dataclass(frozen=True)
class Row:
    """One policy on one load at one target; without a bound `times_bound` is 0."""

    load: str
    target_s: float
    policy: str
    gpu_s: float
    times_bound: float
    p95_wait_s: float | None = None
    longest_wait_s: float | None = None
    cold_starts: int | None = None
    keeps: bool = True

    @property
    def cost(self) -> float:
        return self.gpu_s / 3600 * PRICE


def loads(trace: Path) -> list[Load]:
    return [
        Load(Trace(trace, share=100)),
        Load(Trace(trace, share=400)),
        bursts(seed=0),
        Load(Trace(trace, share=1)),
    ]


def bursts(seed: int) -> Load:
    return Load(Profile(ProfileKind.BURST, 3600, 0.005, 2.0), seed=seed)


def candidates(scenario: Scenario, target: WaitTarget) -> list[tuple[str, list[Candidate]]]:
    all_of = list(grid(scenario, target))
    start = scenario.start_s
    ours = {"start_s": start, "p95_wait_s": target.p95_wait_s}
    return [
        ("KPA defaults", [kpa_candidate("kpa", {}, SLOTS)]),
        ("KEDA defaults", [keda_candidate("keda", {}, SLOTS)]),
        ("KPA best of grid", [c for c in all_of if c.name.startswith("kpa")]),
        ("KEDA best of grid", [c for c in all_of if c.name.startswith("keda")]),
        ("work", [work_candidate("work", scenario.engine, SLOTS, **ours)]),
        ("work over KEDA", [work_over_keda_candidate("work", scenario.engine, SLOTS, **ours)]),
    ]


def rows_of(load: Load, start_s: float, target_s: float, *, only: str = "") -> list[Row]:
    """Bound, who knows, and the policies whose name begins with `only`."""
    target = WaitTarget(target_s)
    horizon_s = load.span_s + TAIL_S
    scenario = Scenario(GPU_ASSUMED, horizon_s, start_s=start_s, container_concurrency=SLOTS)
    requests = list(load.requests())
    setting = Setting(GPU_ASSUMED, SLOTS, start_s, target_s)
    bound = lower_bound_s(requests, setting) if len(requests) < MOST_FOR_BOUND else 0.0
    found = []
    if bound:
        found.append(Row(load.title, target_s, "bound", bound, 1.0))
    if bound and target_s >= start_s:
        found += known_rows(load, scenario, requests, setting, bound)
    for name, options in candidates(scenario, target):
        if not name.startswith(only):
            continue
        reports = [run(scenario, load, option, PRICE) for option in options]
        meeting = [one for one in reports if meets(one, target)]
        chosen = min(meeting or reports, key=lambda one: one.cost if meeting else one.wait_s.p95)
        label = name if len(options) == 1 else f"{name}: {chosen.policy.split(' ', 1)[1]}"
        found.append(row_of(load, target, label, chosen, bound))
    return found


def known_rows(
    load: Load, scenario: Scenario, requests: Sequence[Request], setting: Setting, bound: float
) -> list[Row]:
    """Who knows every arrival; the second spends a late job once it is earned, as ours must."""
    players = {
        "who knows all, played": setting,
        "who knows all and borrows nothing": replace(setting, is_earned_first=True),
    }
    target = WaitTarget(setting.wait_s)
    return [
        row_of(load, target, name, played(scenario, requests, each), bound)
        for name, each in players.items()
    ]


def played(scenario: Scenario, requests: Sequence[Request], setting: Setting) -> SimulationReport:
    """The cheapest cut of the bound, played in the simulator."""
    cut = stretches(requests, setting)
    # Those who were left out are served in time for the end.
    last_call_s = scenario.horizon_s - TAIL_S / 2
    outcome = simulate(scenario, requests, Clairvoyant(cut, setting.start_s, last_call_s))
    return report("clairvoyant", outcome, PRICE)


def row_of(
    load: Load, target: WaitTarget, name: str, report: SimulationReport, bound: float
) -> Row:
    return Row(
        load.title,
        target.p95_wait_s,
        name,
        report.gpu_billed_s,
        report.gpu_billed_s / bound if bound else 0.0,
        report.wait_s.p95,
        report.wait_s.most,
        report.cold_starts,
        meets(report, target),
    )


def meets(one: SimulationReport, target: WaitTarget) -> bool:
    # Quantiles are right within half a percent: who is served at the last moment is not late.
    return one.wait_s.p95 <= 1.005 * target.p95_wait_s and one.unserved == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--cold-start", type=float, default=30.0)
    parser.add_argument("--targets", type=float, nargs="+", default=[5, 30, 60, 120])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: list[Row] = []
    for load in loads(arguments.trace) if arguments.trace else []:
        for target_s in arguments.targets:
            part = rows_of(load, arguments.cold_start, target_s)
            found += part
            show(part)
    if arguments.seeds:
        parts = [
            rows_of(bursts(seed), arguments.cold_start, 60.0, only="work")
            for seed in range(arguments.seeds)
        ]
        found += [row for part in parts for row in part]
        show_seeds(parts)
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(row) for row in found], indent=1))


def show_seeds(parts: list[list[Row]]) -> None:
    """Times the bound, a row a seed, and the mean."""
    players = [[row for row in part if row.times_bound != 1.0] for part in parts]
    print(f"\n| seed | {' | '.join(row.policy for row in players[0])} |")
    print("|---" * (len(players[0]) + 1) + "|")
    for seed, rows in enumerate(players):
        cells = (f"{r.times_bound:.2f} ({r.cold_starts})" for r in rows)
        print(f"| {seed} | {' | '.join(cells)} |")
    means = (statistics.mean(r.times_bound for r in rows) for rows in zip(*players, strict=True))
    print(f"| mean | {' | '.join(f'{mean:.2f}' for mean in means)} |", flush=True)


def show(part: list[Row]) -> None:
    print(f"\n{part[0].load}, p95 wait {part[0].target_s:g} s\n")
    print("| policy | p95 wait | longest | GPU-seconds | cost | times the bound | cold starts |")
    print("|---|---|---|---|---|---|---|")
    for row in part:
        missed = "" if row.keeps else " (missed)"
        wait = "-" if row.p95_wait_s is None else f"{row.p95_wait_s:.1f} s{missed}"
        longest = "-" if row.longest_wait_s is None else f"{row.longest_wait_s:.0f} s"
        starts = "-" if row.cold_starts is None else str(row.cold_starts)
        times = f"{row.times_bound:.2f}" if row.times_bound else "-"
        print(
            f"| {row.policy} | {wait} | {longest} | {row.gpu_s:.0f} | {row.cost:.2f} | "
            f"{times} | {starts} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

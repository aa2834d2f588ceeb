"""Policies side by side on the trace and on bursts: who waits, who pays, and how far from the
bound.

    python -m bench.policies_table --trace ../shared/traces/azure_llm_2023_conv.csv

"best" rows are the cheapest setting of a grid that keeps the target, chosen with hindsight on the
very load they are judged by: a generous rival. "work" has no setting but the target itself.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from bench.policies_bound import lower_bound_s
from knative.simulator.candidate import (
    Candidate,
    keda_candidate,
    kpa_candidate,
    work_candidate,
    work_over_keda_candidate,
)
from knative.simulator.engine import GPU_ASSUMED
from knative.simulator.load import Load
from knative.simulator.plan import Target, grid, run
from knative.simulator.report import Report
from knative.simulator.trace import Trace
from knative.simulator.workload import Profile, ProfileKind
from knative.simulator.world import Scenario

SLOTS = 16
PRICE = 4.5
TAIL_S = 600.0


@dataclass(frozen=True)
class Row:
    load: str
    target_s: float
    policy: str
    p95_wait_s: float
    p95_total_s: float
    gpu_s: float
    cost: float
    times_bound: float
    cold_starts: int
    keeps: bool


def loads(trace: Path) -> list[Load]:
    return [
        Load(Trace(trace, share=100)),
        Load(Trace(trace, share=400)),
        Load(Profile(ProfileKind.BURST, 3600, 0.005, 2.0), seed=0),
        Load(Trace(trace, share=1)),
    ]


def candidates(scenario: Scenario, target: Target) -> list[tuple[str, list[Candidate]]]:
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


def rows_of(load: Load, start_s: float, target_s: float) -> list[Row]:
    target = Target(target_s)
    scenario = Scenario(
        GPU_ASSUMED, load.span_s + TAIL_S, start_s=start_s, container_concurrency=SLOTS
    )
    requests = list(load.requests())
    bound = (
        lower_bound_s(requests, GPU_ASSUMED, SLOTS, start_s, target_s)
        if len(requests) < 3000
        else start_s + work_s(requests)
    )
    found = [Row(load.title, target_s, "bound", 0, 0, bound, bound / 3600 * PRICE, 1, 0, True)]
    if len(requests) < 3000:
        strict = lower_bound_s(requests, GPU_ASSUMED, SLOTS, start_s, target_s, kept_share=1.0)
        row = (strict / 3600 * PRICE, strict / bound, 0, True)
        found.append(Row(load.title, target_s, "bound, nobody late", 0, 0, strict, *row))
    for name, options in candidates(scenario, target):
        reports = [run(scenario, load, option, PRICE) for option in options]
        meeting = [one for one in reports if meets(one, target)]
        chosen = min(meeting or reports, key=lambda one: one.cost if meeting else one.wait_s.p95)
        label = name if len(options) == 1 else f"{name}: {chosen.policy.split(' ', 1)[1]}"
        found.append(
            Row(
                load.title,
                target_s,
                label,
                chosen.wait_s.p95,
                chosen.total_s.p95,
                chosen.gpu_billed_s,
                chosen.cost,
                chosen.gpu_billed_s / bound,
                chosen.cold_starts,
                meets(chosen, target),
            )
        )
    return found


def work_s(requests: list) -> float:
    best = max(GPU_ASSUMED.batch_rate(size) for size in range(1, SLOTS + 1))
    prefill = GPU_ASSUMED.prefill_tokens_per_s
    return sum(r.prompt_tokens / prefill + (r.output_tokens - 1) / best for r in requests)


def meets(one: Report, target: Target) -> bool:
    return one.wait_s.p95 <= target.p95_wait_s and one.unserved == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--cold-start", type=float, default=30.0)
    parser.add_argument("--targets", type=float, nargs="+", default=[5, 30, 60, 120])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: list[Row] = []
    for load in loads(arguments.trace):
        for target_s in arguments.targets:
            part = rows_of(load, arguments.cold_start, target_s)
            found += part
            show(part)
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(row) for row in found], indent=1))


def show(part: list[Row]) -> None:
    print(f"\n{part[0].load}, p95 wait {part[0].target_s:g} s\n")
    print("| policy | p95 wait | p95 total | GPU-seconds | cost | times the bound | cold starts |")
    print("|---|---|---|---|---|---|---|")
    for row in part:
        missed = "" if row.keeps else " (missed)"
        wait = "-" if row.policy.startswith("bound") else f"{row.p95_wait_s:.1f} s{missed}"
        total = "-" if row.policy.startswith("bound") else f"{row.p95_total_s:.1f} s"
        print(
            f"| {row.policy} | {wait} | {total} | {row.gpu_s:.0f} | {row.cost:.2f} | "
            f"{row.times_bound:.2f} | {row.cold_starts} |"
        )


if __name__ == "__main__":
    main()

"""Ours beside the policies of the literature, with interactive and batch requests: the cost at equal p95.

    python -m bench.policies.literature --trace ../shared/traces/azure_llm_2023_conv.csv

Interactive requests are the trace's, or bursts. Batch requests come as files do, many at once: a quarter as many as the
interactive ones at each of `--files` moments, with lengths drawn from the same load, and a deadline. Each policy is run
at every setting of a grid of its own. Settings that make more than `--late-percent` of the batch requests late do not
count. Of the others the cheapest line from wait to cost is taken, and the cost at the same p95 wait of the interactive
requests is read from it, linear in between. All run at the batch size at which Chiron's local autoscaler settles.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.policies.chiron import ChironPolicy, ChironSpec, settled_batch_size
from bench.policies.enova import EnovaPolicy, EnovaSpec
from knative.autoscaling.hpa.spec import read_hpa
from torpor.simulator.candidate import Candidate, keda_candidate, kpa_candidate, work_spec
from torpor.simulator.engine import GPU_ASSUMED
from torpor.simulator.load import Load
from torpor.simulator.policy import HpaPolicy, WorkPolicy
from torpor.simulator.trace import Trace
from torpor.simulator.view import Autoscaler
from torpor.simulator.workload import Profile, ProfileKind, Request
from torpor.simulator.world import Scenario, simulate

ITL_SLO_S = 0.05
TAIL_S = 600.0
# Quantiles are right within half a percent, and a tick is a second.
TOLERANCE = 1.02
WINDOWS_S = (6, 15, 30, 60, 120, 300, 600)


@dataclass(frozen=True)
class Point:
    """One setting of a policy on one load."""

    load: str
    policy: str
    setting: str
    p95_wait_s: float
    gpu_s: float
    late_percent: float
    cold_starts: int


@dataclass(frozen=True)
class Files:
    """When batch files come, how many requests each has, and how long they may take."""

    at_s: tuple[float, ...]
    requests: int
    deadline_s: float


def with_batch(load: Load, files: Files, seed: int = 0) -> list[Request]:
    """The load's requests, and the batch requests, in order of arrival."""
    interactive = list(load.requests())
    rng = random.Random(seed)
    batch = [
        replace(rng.choice(interactive), at=at, deadline_s=files.deadline_s)
        for at in files.at_s
        for _ in range(files.requests)
    ]
    return sorted([*interactive, *batch], key=lambda request: request.at)


def candidates(slots: int, start_s: float, targets: Sequence[float]) -> Iterator[Candidate]:
    """Every policy at every setting of its grid; the name ends with the setting, after a colon."""
    for window in WINDOWS_S:
        for least in (0, 1):
            notes = {"window": f"{window}s", "min-scale": str(least)}
            for percent in (50, 70, 90):
                full = notes | {"target-utilization-percentage": str(percent)}
                name = f"KPA: window {window} s, {percent} %, min {least}"
                yield kpa_candidate(name, full, slots)
    for cooldown in WINDOWS_S:
        for target in sorted({1, max(1, slots // 4), slots}):
            fields = {"pollingInterval": 2, "cooldownPeriod": cooldown, "minReplicaCount": 0}
            name = f"KEDA: cooldown {cooldown} s, target {target}"
            yield keda_candidate(name, fields, target, is_fast=True)
    for percent in (10, 20, 30, 40, 50):
        yield _hpa(percent)
    for threshold in (1, 3, 10, 30):
        enova = EnovaSpec(pending_threshold=threshold)
        yield _plain(f"ENOVA: pending {threshold}", lambda s=enova: EnovaPolicy(s), 1)
    yield from _chiron(slots, start_s)
    yield from _work(slots, start_s, targets)


def _chiron(slots: int, start_s: float) -> Iterator[Candidate]:
    rate = GPU_ASSUMED.batch_rate(slots)
    for least in (0, 1):
        for share in (1.0, 0.67, 0.5, 0.33):
            for hold in WINDOWS_S:
                spec = ChironSpec(slots, rate, start_s, share, least=least, hold_s=hold)
                name = f"Chiron: share {share:g}, hold {hold} s, min {least}"
                yield _plain(name, lambda s=spec: ChironPolicy(s), least)


def _work(slots: int, start_s: float, targets: Sequence[float]) -> Iterator[Candidate]:
    for target in targets:
        for policy, hold_s in (("work", 0.0), ("work, batch held", 86_400.0)):
            spec = work_spec(GPU_ASSUMED, slots, start_s=start_s, p95_wait_s=target)
            spec = replace(spec, batch_wait_s=hold_s)
            name = f"{policy}: p95 {target:g} s"
            least = 0 if spec.can_hide_cold_start else 1
            yield _plain(name, lambda s=spec: WorkPolicy(s), least)


def _hpa(percent: int) -> Candidate:
    target = {"type": "Utilization", "averageUtilization": percent}
    metric = {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    manifest = {"spec": {"minReplicas": 1, "maxReplicas": 100, "metrics": [metric]}}
    spec = read_hpa(manifest)
    return _plain(f"HPA: CPU {percent} %", lambda: HpaPolicy(spec), 1)


def _plain(name: str, build: Callable[[], Autoscaler], replicas: int) -> Candidate:
    return Candidate(name, build, initial_replicas=replicas)


def point(scenario: Scenario, title: str, requests: Sequence[Request], each: Candidate) -> Point:
    """One run."""
    own = replace(scenario, initial_replicas=each.initial_replicas)
    outcome = simulate(own, requests, each.build())
    policy, setting = each.name.split(": ", 1)
    late = 100 * outcome.batch.late / max(1, outcome.batch.requests)
    billed = outcome.gpu.billed
    wait_s = outcome.wait.quantile(0.95)
    return Point(title, policy, setting, wait_s, billed, late, outcome.cold_starts)


def frontier(points: Iterable[Point], late_percent: float) -> list[Point]:
    """The settings that no other beats in both wait and cost, the shortest wait first."""
    kept = [each for each in points if each.late_percent <= late_percent]
    best: list[Point] = []
    for each in sorted(kept, key=lambda p: (p.p95_wait_s, p.gpu_s)):
        if not best or each.gpu_s < best[-1].gpu_s:
            best.append(each)
    return best


def cost_at(line: Sequence[Point], p95_wait_s: float) -> float | None:
    """GPU-seconds at a wait, linear between the settings around it; None where no setting keeps it."""
    before = [each for each in line if each.p95_wait_s <= TOLERANCE * p95_wait_s]
    if not before:
        return None
    if len(before) == len(line):
        return before[-1].gpu_s
    one, two = before[-1], line[len(before)]
    if one.p95_wait_s >= p95_wait_s:
        return one.gpu_s
    share = (p95_wait_s - one.p95_wait_s) / (two.p95_wait_s - one.p95_wait_s)
    return one.gpu_s + share * (two.gpu_s - one.gpu_s)


def show(title: str, lines: Mapping[str, Sequence[Point]], targets: Sequence[float]) -> None:
    print(f"\n{title}\n")
    print(f"| policy | {' | '.join(f'p95 {target:g} s' for target in targets)} | settings |")
    print("|---" * (len(targets) + 2) + "|")
    for policy, line in lines.items():
        costs = [cost_at(line, target) for target in targets]
        cells = ["-" if cost is None else f"{cost:.0f}" for cost in costs]
        print(f"| {policy} | {' | '.join(cells)} | {len(line)} |", flush=True)


def loads(trace: Path | None, shares: Sequence[int]) -> Iterator[Load]:
    for share in shares if trace else ():
        yield Load(Trace(trace, share=share))  # type: ignore[arg-type]
    yield Load(Profile(ProfileKind.BURST, 3600, 0.005, 2.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--shares", type=int, nargs="+", default=[100, 10, 1])
    parser.add_argument("--cold-start", type=float, default=30.0)
    parser.add_argument("--targets", type=float, nargs="+", default=[5, 30, 60, 120])
    parser.add_argument("--files", type=float, nargs="+", default=[300, 1500, 2700])
    parser.add_argument("--deadline", type=float, default=1200.0)
    parser.add_argument("--late-percent", type=float, default=1.0)
    parser.add_argument("--only", default="", help="policies whose name begins so")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    slots = settled_batch_size(GPU_ASSUMED, ITL_SLO_S)
    found: list[Point] = []
    for load in loads(given.trace, given.shares):
        count = sum(1 for _ in load.requests())
        files = Files(tuple(given.files), max(1, count // 4), given.deadline)
        requests = with_batch(load, files)
        title = f"{load.title}: {count} interactive, {len(requests) - count} batch"
        scenario = Scenario(
            GPU_ASSUMED, load.span_s + TAIL_S, given.cold_start, container_concurrency=slots
        )
        tried = [
            point(scenario, title, requests, each)
            for each in candidates(slots, given.cold_start, given.targets)
            if each.name.startswith(given.only)
        ]
        found += tried
        policies = dict.fromkeys(each.policy for each in tried)
        lines = {
            policy: frontier([p for p in tried if p.policy == policy], given.late_percent)
            for policy in policies
        }
        show(title, lines, given.targets)
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in found], indent=1))


if __name__ == "__main__":
    main()

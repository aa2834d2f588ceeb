"""The Black-Friday scenario: an HPA on CPU beside KEDA on queue depth and p95.

Called by `torpor` (`black-friday`), the benches and tests. It must not be tuned per policy: both run the same
requests on the same pods, and both are the YAML files in this folder.

The pods: a small model behind a shop. A request takes about 180 ms alone. Two at once on one pod slow each other
down (150 tokens/s each instead of 400), because they wait for memory, not for the processor: so CPU stays at 55 %
with every slot taken.
"""

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import yaml
from rich.table import Table

from knative.autoscaling.hpa.spec import read_hpa
from knative.autoscaling.keda.scaledobject import read_scaled_object
from torpor.simulator.engine import EngineModel
from torpor.simulator.load import Load
from torpor.simulator.policy import CpuModel, HpaPolicy, KedaPolicy
from torpor.simulator.report.page import plot
from torpor.simulator.report.plot import PlotAxis
from torpor.simulator.report.report import SimulationReport, as_table, report
from torpor.simulator.workload import Lengths, Profile, ProfileKind
from torpor.simulator.world import Scenario, simulate

CPU_IDLE_PERCENT, CPU_FULL_PERCENT = 5.0, 55.0
PODS = 3
TIMEOUT_S = 4.2
DURATION_S = 1800.0
SEED = 2
ENGINE = EngineModel(20_000.0, ((1, 400.0), (2, 300.0)), max_batch=2, decode_during_prefill=1.0)
LENGTHS = Lengths(prompt_median=100, prompt_sigma=0.2, output_median=70, output_sigma=0.08)
PROFILE = Profile(ProfileKind.BLACK_FRIDAY, DURATION_S, 3.0, 13.9, LENGTHS)
_PLOTS = (
    ("queued", "Requests that wait", PlotAxis(is_whole=True)),
    ("p95_s", "p95 of total time, last minute", PlotAxis(unit=" s")),
    ("ready", "Ready pods", PlotAxis(is_whole=True, is_step=True)),
    ("cpu_percent", "CPU of a pod", PlotAxis(unit=" %")),
)
# The plateau of the profile, and its quiet start, as shares of the time.
_PLATEAU = (0.5, 0.65)
_QUIET = (0.05, 0.2)


@dataclass(frozen=True, slots=True)
class LoadPhase:
    """One policy's result for the day."""

    report: SimulationReport
    queue_quiet: float
    queue_peak: float
    p95_quiet_s: float
    p95_peak_s: float
    cpu_most_percent: float


def run() -> tuple[LoadPhase, LoadPhase]:
    """The day under the HPA on CPU, and under KEDA on queue depth and p95."""
    load = Load(PROFILE, SEED)
    scenario = Scenario(ENGINE, DURATION_S, start_s=5.0, initial_replicas=PODS, timeout_s=TIMEOUT_S)
    cpu = CpuModel(CPU_IDLE_PERCENT, CPU_FULL_PERCENT)
    hpa = HpaPolicy(read_hpa(_manifest("black-friday-hpa.yaml")), cpu)
    keda = KedaPolicy(read_scaled_object(_manifest("black-friday-keda.yaml")))
    first = simulate(scenario, load.requests(), hpa)
    second = simulate(scenario, load.requests(), keda)
    return (
        _chapter(report("HPA on 70 % CPU", first, 0.0)),
        _chapter(report("KEDA on queue and p95", second, 0.0)),
    )


def write_report(folder: Path) -> Table:
    """Write the plots into `folder` and give the table of what happened."""
    folder.mkdir(parents=True, exist_ok=True)
    phases = run()
    reports = [_with_cpu(chapter.report) for chapter in phases]
    for name, caption, axis in _PLOTS:
        picture = plot(name, caption, axis, reports)
        (folder / f"black-friday-{name.replace('_', '-')}.svg").write_text(
            picture, encoding="utf-8"
        )
    return _table(phases)


def _table(phases: tuple[LoadPhase, LoadPhase]) -> Table:
    table = as_table([chapter.report for chapter in phases], title="Black Friday")
    table.add_row("mean queue, quiet", *(f"{c.queue_quiet:.1f}" for c in phases))
    table.add_row("mean queue, plateau", *(f"{c.queue_peak:.1f}" for c in phases))
    table.add_row("p95, quiet", *(f"{c.p95_quiet_s * 1000:.0f} ms" for c in phases))
    table.add_row("p95, plateau", *(f"{c.p95_peak_s * 1000:.0f} ms" for c in phases))
    table.add_row("CPU at most", *(f"{c.cpu_most_percent:.0f} %" for c in phases))
    return table


def _chapter(one: SimulationReport) -> LoadPhase:
    return LoadPhase(
        report=one,
        queue_quiet=_mean(one, "queued", _QUIET),
        queue_peak=_mean(one, "queued", _PLATEAU),
        p95_quiet_s=_mean(one, "p95_s", _QUIET),
        p95_peak_s=_mean(one, "p95_s", _PLATEAU),
        cpu_most_percent=max(_cpu(point, one) for point in one.series),
    )


def _mean(one: SimulationReport, name: str, shares: tuple[float, float]) -> float:
    at = one.series_names.index(name)
    low, high = (share * DURATION_S for share in shares)
    values = [point[at] for point in one.series if low <= point[0] < high]
    return sum(values) / len(values)


def _cpu(point: tuple[float, ...], one: SimulationReport) -> float:
    share = point[one.series_names.index("slot_percent")] / 100
    return CPU_IDLE_PERCENT + (CPU_FULL_PERCENT - CPU_IDLE_PERCENT) * share


def _with_cpu(one: SimulationReport) -> SimulationReport:
    return replace(
        one,
        series_names=(*one.series_names, "cpu_percent"),
        series=tuple((*point, _cpu(point, one)) for point in one.series),
    )


def _manifest(name: str) -> dict[str, object]:
    text = resources.files("torpor.simulator").joinpath("data", name).read_text("utf-8")
    document: dict[str, object] = yaml.safe_load(text)
    return document

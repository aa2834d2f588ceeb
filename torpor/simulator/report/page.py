"""The report as one HTML page: the verdict, the table and the plots, without external resources.

Called by the command line.
"""

from collections.abc import Sequence
from datetime import datetime
from html import escape

from torpor.simulator.plan import WaitTarget
from torpor.simulator.report.plot import PlotAxis, PlotBar, PlotLine, bar_plot, line_plot
from torpor.simulator.report.report import SimulationReport, rows
from torpor.simulator.report.style import framed, row, table

_COUNT = PlotAxis(is_whole=True)
_REPLICAS = PlotAxis(is_whole=True, is_step=True)
PLOTS = (
    ("ready", "Ready replicas", _REPLICAS),
    ("queued", "Waiting requests", _COUNT),
    ("p95_s", "p95 of total time, last minute", PlotAxis(unit=" s")),
    ("slot_percent", "Places in use", PlotAxis(unit=" %")),
    ("arrivals_per_s", "Requests a second", PlotAxis()),
)
_GAPS = frozenset({"p95_s"})
"""Measures that are not 0 where nothing was asked, but unknown."""
_GPU = ("busy", "idle", "waking", "empty node")


def page(
    title: str,
    notes: Sequence[str],
    reports: Sequence[SimulationReport],
    target: WaitTarget,
    now: datetime,
) -> str:
    """The whole page; `notes` say what was assumed, `target` what is to be kept."""
    best = cheapest(reports, target)
    remarks = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    head = ["", *(one.policy + (" ✓" if one is best else "") for one in reports)]
    lines = [row(name, values) for name, values in rows(reports)]
    body = (
        f'<p class="verdict">{escape(verdict(reports, target))}</p>\n<ul>\n{remarks}</ul>\n'
        f"{_marked(table(head, lines), reports, best)}"
        f'<div class="plots">\n{_waits(reports, target)}{_time(reports)}'
        f"{''.join(plot(name, caption, axis, reports) for name, caption, axis in PLOTS)}</div>\n"
    )
    return framed(title, body, now)


def cheapest(reports: Sequence[SimulationReport], target: WaitTarget) -> SimulationReport | None:
    """The cheapest run that keeps the target, or None."""
    keeping = [one for one in reports if target.is_met_by(one)]
    return min(keeping, key=lambda one: one.cost) if keeping else None


def verdict(reports: Sequence[SimulationReport], target: WaitTarget) -> str:
    """The target, and the cheapest policy that meets it."""
    words = f"target: p95 wait of at most {target.p95_wait_s:g} s; "
    best = cheapest(reports, target)
    if best is None:
        return f"{words}none keeps it"
    return f"{words}the cheapest that keeps it: {best.policy}, cost {best.cost:,.3f}"


def _marked(html: str, reports: Sequence[SimulationReport], best: SimulationReport | None) -> str:
    """The table with the winner's column in another colour."""
    if best is None or len(reports) < 2:
        return html
    column = list(reports).index(best) + 2
    style = f"<style>tr>:nth-child({column}){{background:var(--good)}}</style>\n"
    return style + html


def plot(name: str, caption: str, axis: PlotAxis, reports: Sequence[SimulationReport]) -> str:
    """One measure of all runs over time."""
    lines: list[PlotLine] = []
    for one in reports:
        at = one.series_names.index(name)
        points = [(point[0], _known(name, point[at])) for point in one.series]
        lines.append(PlotLine(one.policy, points))
    if len({tuple(line.points) for line in lines}) == 1 < len(lines):  # the load, which all have
        lines = [PlotLine("every policy", lines[0].points)]
    return line_plot(caption, lines, axis)


def _known(name: str, value: float) -> float | None:
    return None if name in _GAPS and not value else value


def _waits(reports: Sequence[SimulationReport], target: WaitTarget) -> str:
    bars = [
        PlotBar(one.policy, [one.wait_s.p50, one.wait_s.p95 - one.wait_s.p50]) for one in reports
    ]
    caption = f"Wait: half of all requests, and 95 in 100; target {target.p95_wait_s:g} s"
    return bar_plot(caption, ("p50", "p95"), bars, unit=" s", target=target.p95_wait_s)


def _time(reports: Sequence[SimulationReport]) -> str:
    bars = [
        PlotBar(one.policy, [one.gpu_busy_s, one.gpu_idle_s, one.gpu_waking_s, one.gpu_empty_s])
        for one in reports
    ]
    return bar_plot("GPU time that is paid", _GPU, bars, unit=" s")

"""The report as one HTML page with figures and plots, without external resources.

Called by `torpor load`. Must not know how a figure was computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any, Final

from torpor.load.sample import LoadSample, SampleOutcome
from torpor.load.summary import percentiles
from torpor.load.watch import MetricsSnapshot
from torpor.simulator.report.plot import PlotAxis, PlotLine, line_plot
from torpor.simulator.report.style import framed, row, table

_COLUMNS: Final = ("p50", "p95", "p99", "max", "mean", "count")
_WINDOWS: Final = 60
_LARGE: Final = 10_000
"""From here on figures have no digits after the point."""


def page(
    report: Mapping[str, Any],
    samples: Sequence[LoadSample],
    looks: Sequence[MetricsSnapshot],
    now: datetime,
) -> str:
    """The whole page."""
    remarks = "".join(f"<li>{escape(note)}</li>\n" for note in report["notes"])
    body = (
        f"<ul>\n{remarks}</ul>\n{_facts(report)}{_times(report)}{_growth(report)}"
        f'<div class="plots">\n{_plots(samples, looks)}</div>\n'
    )
    return framed(report["setup"]["title"], body, now)


def _facts(report: Mapping[str, Any]) -> str:
    facts = {
        "target": report["setup"]["target"],
        "model": report["setup"]["model"],
        "span": f"{report['span_s']:g} s",
        "sent": report["sent"],
        "outcomes": ", ".join(f"{n} {name}" for name, n in sorted(report["outcomes"].items())),
        "lost": report["lost"],
        **report["throughput"],
        **{f"cost: {name}": value for name, value in report["cost"].items()},
        **{f"replicas: {name}": value for name, value in report["replicas"].items()},
    }
    return table(
        ("", ""), [row(name.replace("_", " "), [_text(value)]) for name, value in facts.items()]
    )


def _times(report: Mapping[str, Any]) -> str:
    groups = dict(report["seconds"])
    groups |= {f"total, {kind}": value for kind, value in report["seconds_by_client"].items()}
    groups["generator lag"] = report["generator_lag_seconds"]
    rows = [
        row(name, [_text(values[column]) for column in _COLUMNS])
        for name, values in groups.items()
        if values
    ]
    return table(("seconds", *_COLUMNS), rows)


def _growth(report: Mapping[str, Any]) -> str:
    columns = ("first", "last", "highest", "per_hour")
    rows = [
        row(name.replace("_", " "), [_text(values[column]) for column in columns])
        for name, values in report["growth"].items()
    ]
    return table(("growth", *columns), rows) if rows else ""


def _plots(samples: Sequence[LoadSample], looks: Sequence[MetricsSnapshot]) -> str:
    done = [s for s in samples if s.outcome is SampleOutcome.COMPLETED]
    wrong = [s for s in samples if s.outcome is not SampleOutcome.COMPLETED]
    width_s, span_s = _width_s(samples), max((s.due_s for s in samples), default=0.0)
    windows = _Windows(width_s, int(span_s / width_s) + 1)
    seconds, counts = PlotAxis(unit=" s"), PlotAxis(is_whole=True, is_step=True)
    plots = [
        line_plot(
            "Total time by when it was due, p95", [windows.p95("p95", done, _total)], seconds
        ),
        line_plot(
            "First token by when it was due, p95",
            [windows.p95("p95", done, lambda s: s.ttft_s)],
            seconds,
        ),
        line_plot(
            "Requests a second",
            [
                windows.rate("due", samples),
                windows.rate("completed", done),
                windows.rate("anything else", wrong),
            ],
        ),
        line_plot(
            "Replicas and jobs",
            [
                _seen("ready", looks, lambda look: look.ready),
                _seen("in flight", looks, lambda look: look.in_flight),
                _seen("waiting", looks, lambda look: look.depth),
            ],
            counts,
        ),
    ]
    if any(look.gpu_utilisation is not None for look in looks):
        line = _seen("highest", looks, lambda look: look.gpu_utilisation)
        plots.append(line_plot("GPU utilisation", [line], PlotAxis(unit=" %")))
    plots.append(line_plot("Memory", _memory(looks), PlotAxis(unit=" MB")))
    return "\n".join(plots)


def _total(sample: LoadSample) -> float | None:
    return sample.total_s


@dataclass(frozen=True, slots=True)
class _Windows:
    """The run in `count` windows of equal width, by when requests were due."""

    width_s: float
    count: int

    def p95(
        self, name: str, samples: Sequence[LoadSample], value: Callable[[LoadSample], float | None]
    ) -> PlotLine:
        """The p95 of each window; a gap where nothing was asked or nothing came."""
        points: list[tuple[float, float | None]] = []
        for at_s, group in self._groups(samples):
            found = percentiles(group, value)
            points.append((at_s, found["p95"] if found else None))
        return PlotLine(name, points)

    def rate(self, name: str, samples: Sequence[LoadSample]) -> PlotLine:
        """Requests a second in each window."""
        return PlotLine(
            name, [(at, len(group) / self.width_s) for at, group in self._groups(samples)]
        )

    def _groups(self, samples: Sequence[LoadSample]) -> list[tuple[float, list[LoadSample]]]:
        groups: list[list[LoadSample]] = [[] for _ in range(self.count)]
        for sample in samples:
            groups[int(sample.due_s / self.width_s)].append(sample)
        return [(number * self.width_s, group) for number, group in enumerate(groups)]


def _width_s(samples: Sequence[LoadSample]) -> float:
    return max(max((s.due_s for s in samples), default=0.0) / _WINDOWS, 1.0)


def _seen(
    name: str, looks: Sequence[MetricsSnapshot], value: Callable[[MetricsSnapshot], float | None]
) -> PlotLine:
    points = [(look.at_s, found) for look in looks if (found := value(look)) is not None]
    return PlotLine(name, points)


def _memory(looks: Sequence[MetricsSnapshot]) -> list[PlotLine]:
    parts = sorted({part for look in looks for part in look.memory_bytes})
    return [
        _seen(part, looks, lambda look, part=part: _megabytes(look.memory_bytes.get(part)))  # type: ignore[misc]
        for part in parts
    ]


def _megabytes(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)

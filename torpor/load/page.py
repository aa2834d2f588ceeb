"""The report as one HTML page with figures and plots, without external resources.

Called by `torpor load`. Must not know how a figure was computed.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

from torpor.load.sample import LoadSample, SampleOutcome
from torpor.load.summary import percentiles
from torpor.load.watch import MetricsSnapshot
from torpor.simulator.report.plot import PlotLine, line_plot

_STYLE: Final = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;"
    "border-bottom:1px solid #ddd;text-align:right}td:first-child{text-align:left}"
    "svg{width:100%;margin:.5em 0}"
)
_COLUMNS: Final = ("p50", "p95", "p99", "max", "mean", "count")
_WINDOWS: Final = 60


def page(
    report: Mapping[str, Any], samples: Sequence[LoadSample], looks: Sequence[MetricsSnapshot]
) -> str:
    """The whole page."""
    title = escape(report["setup"]["title"])
    remarks = "".join(f"<li>{escape(note)}</li>\n" for note in report["notes"])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f"<ul>\n{remarks}</ul>\n{_facts(report)}{_times(report)}{_growth(report)}"
        f"{_plots(samples, looks)}</body></html>\n"
    )


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
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(_text(value))}</td></tr>\n"
        for name, value in facts.items()
    )
    return f"<table>\n{rows}</table>\n"


def _times(report: Mapping[str, Any]) -> str:
    groups = dict(report["seconds"])
    groups |= {f"total, {kind}": value for kind, value in report["seconds_by_client"].items()}
    groups["generator lag"] = report["generator_lag_seconds"]
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{_text(values[column])}</td>" for column in _COLUMNS)
        + "</tr>\n"
        for name, values in groups.items()
        if values
    )
    return f"<table><tr><th>seconds</th>{head}</tr>\n{rows}</table>\n"


def _growth(report: Mapping[str, Any]) -> str:
    columns = ("first", "last", "highest", "per_hour")
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{_text(values[column])}</td>" for column in columns)
        + "</tr>\n"
        for name, values in report["growth"].items()
    )
    head = "".join(f"<th>{name}</th>" for name in columns)
    return f"<table><tr><th>growth</th>{head}</tr>\n{rows}</table>\n" if rows else ""


def _plots(samples: Sequence[LoadSample], looks: Sequence[MetricsSnapshot]) -> str:
    done = [s for s in samples if s.outcome is SampleOutcome.COMPLETED]
    wrong = [s for s in samples if s.outcome is not SampleOutcome.COMPLETED]
    plots = [
        line_plot("Total time by when it was due, p95", [_p95("p95", done, _total)], y_unit="s"),
        line_plot(
            "First token by when it was due, p95",
            [_p95("p95", done, lambda s: s.ttft_s)],
            y_unit="s",
        ),
        line_plot(
            "Requests a second",
            [_rate("due", samples), _rate("completed", done), _rate("anything else", wrong)],
        ),
        line_plot(
            "Replicas and jobs",
            [
                _seen("ready", looks, lambda look: look.ready),
                _seen("in flight", looks, lambda look: look.in_flight),
                _seen("waiting", looks, lambda look: look.depth),
            ],
        ),
    ]
    if any(look.gpu_utilisation is not None for look in looks):
        line = _seen("highest", looks, lambda look: look.gpu_utilisation)
        plots.append(line_plot("GPU utilisation", [line], y_unit="%"))
    plots.append(line_plot("Memory", _memory(looks), y_unit=" MB"))
    return "\n".join(plots)


def _total(sample: LoadSample) -> float | None:
    return sample.total_s


def _p95(
    name: str, samples: Sequence[LoadSample], value: Callable[[LoadSample], float | None]
) -> PlotLine:
    points: list[tuple[float, float]] = []
    for at_s, group in _windows(samples):
        if found := percentiles(group, value):
            points.append((at_s, found["p95"]))
    return PlotLine(name, points)


def _rate(name: str, samples: Sequence[LoadSample]) -> PlotLine:
    width_s = _width_s(samples)
    return PlotLine(name, [(at_s, len(group) / width_s) for at_s, group in _windows(samples)])


def _windows(samples: Sequence[LoadSample]) -> list[tuple[float, list[LoadSample]]]:
    width_s = _width_s(samples)
    groups: dict[int, list[LoadSample]] = {}
    for sample in samples:
        groups.setdefault(int(sample.due_s / width_s), []).append(sample)
    return [(index * width_s, groups[index]) for index in sorted(groups)]


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
    return f"{value:,.4g}" if isinstance(value, float) else str(value)

"""The report as one HTML page: the table and the plots, without external resources.

Called by the command line.
"""

from collections.abc import Sequence
from html import escape

from torpor.simulator.report.plot import PlotLine, line_plot
from torpor.simulator.report.report import SimulationReport, rows

_PLOTS = (
    ("ready", "Ready replicas", ""),
    ("queued", "Waiting requests", ""),
    ("p95_s", "p95 of total time, last minute", "s"),
    ("slot_percent", "Places in use", "%"),
    ("arrivals_per_s", "Requests a second", ""),
)
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child{text-align:left}svg{width:100%;margin:.5em 0}"
)


def page(title: str, notes: Sequence[str], reports: Sequence[SimulationReport]) -> str:
    """The whole page; `notes` say what was assumed."""
    head = "".join(f"<th>{escape(one.policy)}</th>" for one in reports)
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(v)}</td>' for v in values)}</tr>\n"
        for name, values in rows(reports)
    )
    remarks = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    plots = "".join(plot(name, caption, unit, reports) for name, caption, unit in _PLOTS)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n<ul>\n{remarks}</ul>\n"
        f"<table><tr><th></th>{head}</tr>\n{body}</table>\n{plots}</body></html>\n"
    )


def plot(name: str, caption: str, unit: str, reports: Sequence[SimulationReport]) -> str:
    """One measure of all runs over time."""
    lines: list[PlotLine] = []
    for one in reports:
        at = one.series_names.index(name)
        lines.append(PlotLine(one.policy, [(point[0], point[at]) for point in one.series]))
    return line_plot(caption, lines, y_unit=unit)

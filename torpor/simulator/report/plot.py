"""Plots as SVG text, without a script: lines over time, and bars of one value each.

Called by the pages of the simulator and of `torpor load`. No library: the small ones have neither dark mode nor a
phone's width, the large ones bring a script of megabytes or a renderer. A picture follows the reader's colour scheme
and width by its own style sheet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

from torpor.simulator.report.axis import amount_words, marks, time_marks, time_words
from torpor.simulator.report.style import LINES, PLOT_STYLE, WIDTH

_LEFT: Final = 74
_RIGHT: Final = 32
_TITLE: Final = 34
_NAMES: Final = 28
"""Height of a row of names."""
_AREA: Final = 200
_BOTTOM: Final = 38
_BAR: Final = 40


@dataclass(frozen=True, slots=True)
class PlotLine:
    """One named line: points of (x, y) with rising x; a y of None is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotAxis:
    """The y axis. Of counts the marks are whole numbers, and a value holds until the next (`is_step`). `target` is
    drawn across.
    """

    unit: str = ""
    is_whole: bool = False
    is_step: bool = False
    target: float | None = None


def line_plot(title: str, lines: Sequence[PlotLine], axis: PlotAxis | None = None) -> str:
    """The lines over time in seconds, with axes and names."""
    axis = axis or PlotAxis()
    known = [(x, y) for line in lines for x, y in line.points if y is not None]
    x_most = max((x for line in lines for x, _ in line.points), default=0.0) or 1.0
    highest = max([y for _, y in known] + ([axis.target] if axis.target else []), default=0.0)
    y_marks = marks(highest, is_whole=axis.is_whole)
    top = _TITLE + _NAMES * -(-len(lines) // 2)
    area = _Area(top, x_most, y_marks[-1])
    parts = [*_grid(area, y_marks, axis.unit), *_time_axis(area), *_target(area, axis)]
    for number, line in enumerate(lines):
        index = number % LINES
        at_x, at_y = _LEFT + 330 * (number % 2), _TITLE + _NAMES * (number // 2)
        parts += [
            f'<path class="l{index}" d="{_path(area, line, is_step=axis.is_step)}"/>',
            f'<path class="l{index}" d="M{at_x} {at_y + 9}h26"/>',
            f'<text class="name" x="{at_x + 33}" y="{at_y + 14}">{escape(line.name)}</text>',
        ]
    return _picture(title, top + _AREA + _BOTTOM, parts, _said(lines, axis.unit))


@dataclass(frozen=True, slots=True)
class _Area:
    """Where values lie in the picture."""

    top: float
    x_most: float
    y_most: float

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / self.x_most

    def y(self, value: float) -> float:
        return self.top + _AREA * (1 - value / self.y_most)


def _grid(area: _Area, y_marks: Sequence[float], unit: str) -> list[str]:
    parts = []
    for number, mark in enumerate(y_marks):
        y, second = area.y(mark), " second" if number % 2 else ""
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="end{second}" x="{_LEFT - 8}" y="{y + 5:.1f}">'
            f"{amount_words(mark)}{escape(unit)}</text>"
        )
    return parts


def _time_axis(area: _Area) -> list[str]:
    times = time_marks(area.x_most)
    step = times[1] if len(times) > 1 else area.x_most
    y = area.top + _AREA + 26
    return [
        f'<text class="middle{" second" if number % 2 else ""}" x="{area.x(mark):.1f}" y="{y}">'
        f"{time_words(mark, step)}</text>"
        for number, mark in enumerate(times)
    ]


def _target(area: _Area, axis: PlotAxis) -> list[str]:
    if axis.target is None:
        return []
    y = area.y(axis.target)
    return [
        f'<line class="target" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
        f'<text class="name end" x="{WIDTH - _RIGHT - 4}" y="{y - 5:.1f}">'
        f"target {amount_words(axis.target)}{escape(axis.unit)}</text>",
    ]


def _path(area: _Area, line: PlotLine, *, is_step: bool) -> str:
    parts: list[str] = []
    is_drawing = False
    for x, y in _thinned(line.points):
        if y is None:
            is_drawing = False
            continue
        at = f"{area.x(x):.1f}"
        if not is_drawing:
            parts.append(f"M{at} {area.y(y):.1f}")
        elif is_step:
            parts.append(f"H{at}V{area.y(y):.1f}")
        else:
            parts.append(f"L{at} {area.y(y):.1f}")
        is_drawing = True
    return "".join(parts)


def _thinned(points: Sequence[tuple[float, float | None]]) -> Sequence[tuple[float, float | None]]:
    """As many points as the picture has columns; of each group the highest."""
    group = -(-len(points) // (WIDTH - _LEFT - _RIGHT)) or 1
    if group == 1:
        return points
    groups = [points[at : at + group] for at in range(0, len(points), group)]
    return [max(each, key=lambda p: -1.0 if p[1] is None else p[1]) for each in groups]


def _said(lines: Sequence[PlotLine], unit: str) -> str:
    """The picture in words, for those who do not see it."""
    found = []
    for line in lines:
        values = [y for _, y in line.points if y is not None]
        found.append(
            f"{line.name} at most {max(values):.3g}{unit}" if values else f"{line.name} none"
        )
    return "; ".join(found)


@dataclass(frozen=True, slots=True)
class PlotBar:
    """One named bar: `parts` after one another, in the order of the names."""

    name: str
    parts: Sequence[float]


def bar_plot(
    title: str,
    names: Sequence[str],
    bars: Sequence[PlotBar],
    *,
    unit: str = "",
    target: float | None = None,
) -> str:
    """Horizontal bars of one unit, one under the other, each under its name; `names` are those of the parts."""
    most = max([sum(bar.parts) for bar in bars] + [target or 0.0], default=0.0)
    x_marks = marks(most)
    top = _TITLE + (_NAMES if len(names) > 1 else 0)
    bottom = top + (_BAR + 8) * len(bars)
    wide = WIDTH - 2 * _RIGHT

    def x(value: float) -> float:
        return _RIGHT + wide * value / x_marks[-1]

    parts = []
    for number, mark in enumerate(x_marks):
        second = " second" if number % 2 else ""
        side = "end" if number == len(x_marks) - 1 else "middle" if number else "start"
        parts.append(
            f'<line class="grid" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top}" y2="{bottom}"/>'
            f'<text class="{side}{second}" x="{x(mark):.1f}" y="{bottom + 24}">'
            f"{amount_words(mark)}{escape(unit)}</text>"
        )
    if len(names) > 1:
        for number, name in enumerate(names):
            at = _RIGHT + 165 * number
            parts.append(
                f'<rect class="f{number}" x="{at}" y="{_TITLE + 3}" width="14" height="14"/>'
                f'<text class="name" x="{at + 20}" y="{_TITLE + 15}">{escape(name)}</text>'
            )
    for number, bar in enumerate(bars):
        parts += _bar(bar, top + (_BAR + 8) * number, x)
    if target is not None:
        parts.append(
            f'<line class="target" x1="{x(target):.1f}" x2="{x(target):.1f}" y1="{top}" y2="{bottom}"/>'
        )
    said = "; ".join(f"{bar.name} {sum(bar.parts):.3g}{unit}" for bar in bars)
    return _picture(title, bottom + _BOTTOM, parts, said)


def _bar(bar: PlotBar, y: float, x: Callable[[float], float]) -> list[str]:
    drawn = [f'<text class="name" x="{_RIGHT + 2}" y="{y + 17}">{escape(bar.name)}</text>']
    ends = [sum(bar.parts[:count]) for count in range(len(bar.parts) + 1)]
    for number, (start, end) in enumerate(pairwise(ends)):
        drawn.append(
            f'<rect class="f{number % LINES}" x="{x(start):.1f}" y="{y + 23}" '
            f'width="{max(x(end) - x(start), 0):.1f}" height="14"/>'
        )
    return drawn


def _picture(title: str, height: float, parts: Sequence[str], said: str) -> str:
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'aria-label="{escape(title)}: {escape(said)}">',
            f"<style>{PLOT_STYLE}</style>",
            f'<rect class="back" width="{WIDTH}" height="{height:g}"/>',
            f'<text class="title" x="{_RIGHT}" y="24">{escape(title)}</text>',
            *parts,
            "</svg>\n",
        )
    )

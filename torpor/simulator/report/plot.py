"""Small line plots as SVG text, without a library and without a script.

Called by the pages of the simulator and of `torpor load`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 42, 30
# Told apart by colour-blind readers too (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_TICKS = 4


@dataclass(frozen=True, slots=True)
class PlotLine:
    """One named line: points of (x, y) with rising x."""

    name: str
    points: Sequence[tuple[float, float]]


def line_plot(title: str, lines: Sequence[PlotLine], *, x_unit: str = "s", y_unit: str = "") -> str:
    """The lines in one picture with axes and a legend."""
    xs = [x for line in lines for x, _ in line.points] or [0.0]
    ys = [y for line in lines for _, y in line.points] or [0.0]
    x_most, y_most = max(max(xs), 1e-9), _nice(max(ys))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="14" font-size="13" fill="#222">{escape(title)}</text>',
        *_grid(x_most, y_most, x_unit, y_unit),
    ]
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(
            f"{_x(x, x_most):.1f},{_y(y, y_most):.1f}" for x, y in _thinned(line.points)
        )
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>'
        )
        at = _LEFT + 8 + 150 * number
        parts.append(f'<rect x="{at}" y="26" width="10" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{at + 14}" y="31" fill="#222">{escape(line.name)}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _grid(x_most: float, y_most: float, x_unit: str, y_unit: str) -> list[str]:
    parts: list[str] = []
    for tick in range(_TICKS + 1):
        y_value, x_value = y_most * tick / _TICKS, x_most * tick / _TICKS
        anchor = "end" if tick == _TICKS else "middle"
        y, x = _y(y_value, y_most), _x(x_value, x_most)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">'
            f"{y_value:g}{escape(y_unit)}</text>"
        )
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="{anchor}" fill="#555">'
            f"{x_value:.0f}{escape(x_unit)}</text>"
        )
    return parts


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """As many points as the picture has columns; of each group the highest."""
    group = -(-len(points) // (_WIDTH - _LEFT - _RIGHT)) or 1
    if group == 1:
        return points
    return [max(points[i : i + group], key=lambda p: p[1]) for i in range(0, len(points), group)]


def _nice(most: float) -> float:
    """The next round number, so that the grid's labels are short."""
    if most <= 0:
        return 1.0
    step = 10.0 ** len(f"{int(most)}") / 10 if most >= 1 else 0.1
    while step > most:
        step /= 10
    for factor in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10):
        if step * factor >= most:
            return step * factor
    return step * 10


def _x(value: float, most: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / most


def _y(value: float, most: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / most

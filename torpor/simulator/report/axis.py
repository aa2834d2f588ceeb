"""The marks of an axis: round numbers, whole ones for counts, and times as people say them. Pure."""

import math
from typing import Final

_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_TIMES_S: Final = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    21600,
    43200,
    86400,
)
_MARKS: Final = 5
_LEAST: Final = 1e-12
"""What is below is drawn as 0: floats near their smallest have no round numbers between them."""


def marks(most: float, *, is_whole: bool = False) -> list[float]:
    """From 0 to the first round number that is not below `most`; for counts no fractions."""
    if most < _LEAST:
        return [0.0, 1.0]
    rough = most / _MARKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(by * power for by in _STEPS if by * power >= rough * (1 - 1e-9))
    if is_whole:
        step = max(1.0, math.ceil(step))
    count = math.ceil(most / step - 1e-9)
    return [float(f"{step * number:.12g}") for number in range(count + 1)]


def time_marks(most_s: float) -> list[float]:
    """Times from 0 on, as far as the last that is not above `most_s`: whole minutes, hours, days where they fit."""
    if most_s <= 0:
        return [0.0]
    rough = most_s / (_MARKS + 1)
    step = next((float(each) for each in _TIMES_S if each >= rough), 0.0)
    if not step:
        step = 86400.0 * math.ceil(rough / 86400)
    if rough < 1:
        return [mark for mark in marks(most_s) if mark <= most_s]
    return [step * number for number in range(int(most_s / step) + 1)]


def time_words(value_s: float, step_s: float) -> str:
    """A mark of a time axis whose marks are `step_s` apart."""
    if value_s == 0:
        return "0"
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if step_s >= unit_s:
            return f"{value_s / unit_s:g} {unit}"
    return f"{value_s:g} s"


def amount_words(value: float) -> str:
    """A mark of another axis, short."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:g}"

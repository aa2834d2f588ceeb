"""Tables, numbers and states as every command shows them. Pure but for the clock that is given."""

import time
from collections.abc import Iterable
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

_UNBOUNDED: Final = 10_000
_LAST_COLUMN: Final = 24
"""Width that the last column keeps on a narrow terminal."""
_COLOURS: Final = {
    "completed": "green",
    "ready": "green",
    "delivered": "green",
    "failed": "red",
    "expired": "red",
    "cancelled": "yellow",
    "in_progress": "cyan",
    "waking": "cyan",
    "queued": "dim",
}


class WholeTable(Table):
    """A table whose cells are never cut: on a narrow terminal the last column wraps, and then the lines do."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = self.__rich_measure__(console, options.update(width=_UNBOUNDED)).maximum
        width = whole
        if console.is_terminal and self.columns:
            cells = [str(cell) for cell in self.columns[-1].cells]
            last = max((len(cell) for cell in cells), default=0)
            width = min(whole, max(options.max_width, whole - last + min(last, _LAST_COLUMN)))
        yield from super().__rich_console__(console, options.update(width=width))


def table(*columns: str, numbers: Iterable[str] = (), title: str = "") -> Table:
    """An empty table; the columns in `numbers` are right-aligned."""
    right = set(numbers)
    made = (
        Column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name != columns[-1],
            overflow="fold",
        )
        for name in columns
    )
    return WholeTable(*made, box=None, title=title or None, header_style="bold")


def number(value: float | None, digits: int = 0) -> str:
    """With thousands separators; a dash for an unknown value."""
    return "-" if value is None else f"{value:,.{digits}f}"


def state(name: str) -> Text:
    """A state in its colour."""
    return Text(name, style=_COLOURS.get(name, ""))


def moment(at_ms: int | None, now_s: float) -> str:
    """Local time: the hour for today, with the date before."""
    if not at_ms:
        return "-"
    at, today = time.localtime(at_ms / 1000), time.localtime(now_s)
    is_today = at[:3] == today[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M", at)


def first_words(text: str, length: int = 48) -> str:
    """The beginning, on one line."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else f"{line[: length - 1]}…"

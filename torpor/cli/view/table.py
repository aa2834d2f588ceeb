"""Tables, numbers and states as every command shows them. Pure but for the clock that is given."""

import time
from collections.abc import Iterable
from typing import Final

from rich.table import Column, Table
from rich.text import Text

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


def table(*columns: str, numbers: Iterable[str] = (), title: str = "") -> Table:
    """An empty table; the columns of `numbers` stand right, and no cell is cut."""
    right = set(numbers)
    made = (
        Column(name, justify="right" if name in right else "left", no_wrap=True, overflow="fold")
        for name in columns
    )
    return Table(*made, box=None, title=title or None, header_style="bold")


def number(value: float | None, digits: int = 0) -> str:
    """With separators; a dash for what is not known."""
    return "-" if value is None else f"{value:,.{digits}f}"


def state(name: str) -> Text:
    """A state in its colour."""
    return Text(name, style=_COLOURS.get(name, ""))


def moment(at_ms: int | None, now_s: float) -> str:
    """When, in local time: the hour today, the day as well before."""
    if not at_ms:
        return "-"
    at, today = time.localtime(at_ms / 1000), time.localtime(now_s)
    is_today = at[:3] == today[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M", at)


def first_words(text: str, length: int = 48) -> str:
    """The beginning, on one line."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else f"{line[: length - 1]}…"

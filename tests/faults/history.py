"""What happened in a fault run, as one JSON line an event, for the checker to judge afterwards.

Written by clients and fault injectors in the order they saw things. Jepsen's words: `invoke` before
a call, then `ok`, `fail` or `unknown` after it; `fault` for what was done to the system.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson


class Kind(StrEnum):
    """What a line says."""

    INVOKE = "invoke"  #: a call begins
    OK = "ok"  #: it was answered, and did what it says
    FAIL = "fail"  #: it was answered, and did nothing
    UNKNOWN = "unknown"  #: nobody can tell
    FAULT = "fault"  #: the system was hurt, or healed
    SEEN = "seen"  #: an observer's report: a state, a delivery, a log scan


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One event; `at_s` is monotonic, `fields` depend on `operation`."""

    kind: Kind
    operation: str
    at_s: float
    fields: dict[str, Any] = field(default_factory=dict)


class History:
    """Lines in order; written through to a file when one is given, so that a crash keeps them."""

    def __init__(
        self, path: Path | None = None, *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines: list[Line] = []
        self._now_s = now_s
        self._path = path

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines)

    def add(self, kind: Kind, operation: str, **fields: Any) -> None:
        line = Line(kind=kind, operation=operation, at_s=self._now_s(), fields=fields)
        self._lines.append(line)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(orjson.dumps(asdict(line)) + b"\n")


def read(path: Path) -> list[Line]:
    """The lines of a file; one that was cut by a crash is left out."""
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            record = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        lines.append(Line(**(record | {"kind": Kind(record["kind"])})))
    return lines

"""Reads a published request trace: any CSV or JSON lines with a time, prompt tokens and output
tokens.

Called by the command line, the benches and tests. It must not know what becomes of a request.
Azure's LLM inference traces (2023, 2024), BurstGPT and Mooncake are read as they are published; other
files name their columns in the first line.
"""

import csv
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from torpor.simulator.workload import Request

_TIME = ("timestamp", "time", "arrived_at", "arrival_time", "at", "t", "time_s", "timestamp_ms")
_PROMPT = (
    "contexttokens", "prompt_tokens", "input_tokens", "request tokens", "prompt", "input_length",
)  # fmt: skip
_OUTPUT = (
    "generatedtokens", "output_tokens", "completion_tokens", "response tokens", "output",
    "output_length",
)  # fmt: skip
_DELIMITERS = ",;\t|"
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
_NOT_TEXT = {b"PK\x03\x04": "an Excel file or an archive", b"\x1f\x8b": "compressed by gzip"}


class TraceError(ValueError):
    """The file is no trace: its text names the line and what is missing there."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A file of requests and how much of it counts.

    `share` keeps one row in so many, drawn at random with `seed` (one draw a row, so that gaps stay
    natural); `hours` repeats the trace until so much time is filled (None: once).
    """

    path: Path
    share: int = 1
    seed: int = 0
    hours: float | None = None


def read_trace(trace: Trace) -> Iterator[Request]:
    """The trace's requests in order, times in seconds from the first row of the file.

    Raises TraceError for a file that cannot be read or lacks the three columns, a bad number, or
    times that go back.
    """
    if trace.hours is None:
        yield from _thinned(trace)
        return
    end = trace.hours * 3600
    offset = 0.0
    span = _span(trace)
    while offset < end:
        for request in _thinned(trace):
            if request.at + offset >= end:
                return
            yield Request(request.at + offset, request.prompt_tokens, request.output_tokens)
        offset += span


def span_s(trace: Trace) -> float:
    """How long the trace lasts, repeated if it is."""
    return trace.hours * 3600 if trace.hours is not None else _span(trace)


def _span(trace: Trace) -> float:
    """From the first row to the last, plus one mean gap so that repeats do not collide."""
    count, last = 0, 0.0
    for request in _rows(trace.path):
        count, last = count + 1, request.at
    if count < 1:
        raise TraceError(f"{trace.path}: no rows")
    return last + (last / (count - 1) if count > 1 else 1.0)


def _thinned(trace: Trace) -> Iterator[Request]:
    rng = random.Random(trace.seed)  # noqa: S311 - a sample, no secret
    for request in _rows(trace.path):
        if trace.share == 1 or rng.random() < 1 / trace.share:
            yield request


def _rows(path: Path) -> Iterator[Request]:
    start: float | None = None
    before = 0.0
    for number, (time, prompt, output) in _cells(path):
        try:
            seconds = _seconds(time)
            request = Request(seconds, _tokens(prompt), max(1, _tokens(output)))
        except (ValueError, TypeError) as error:
            raise TraceError(f"{path}:{number}: {error}") from error
        start = seconds if start is None else start
        at = seconds - start
        if at < before:
            raise TraceError(f"{path}:{number}: time goes back by {before - at:g} s")
        before = at
        yield Request(at, request.prompt_tokens, request.output_tokens)


def _cells(path: Path) -> Iterator[tuple[int, tuple[Any, Any, Any]]]:
    """Number of the line, and its three values as they stand there."""
    try:
        with path.open(newline="", encoding=_encoding(path)) as file:
            first = file.readline()
            if not first.strip():
                raise TraceError(f"{path}: empty file")
            file.seek(0)
            yield from (
                _json_lines(path, file)
                if first.lstrip().startswith("{")
                else _csv(path, file, first)
            )
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not text in UTF-8 or UTF-16 ({error.reason})") from error


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    for mark, what in _NOT_TEXT.items():
        if head.startswith(mark):
            raise TraceError(f"{path}: {what}; save it as CSV")
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")


def _csv(path: Path, file: TextIO, first: str) -> Iterator[tuple[int, tuple[Any, Any, Any]]]:
    delimiter = max(_DELIMITERS, key=first.count)
    rows = csv.reader(file, delimiter=delimiter)
    header = [name.strip() for name in next(rows)]
    columns = [header.index(name) for name in _names(path, header)]
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) <= max(columns):
            raise TraceError(f"{path}:{number}: {len(row)} cells, {len(header)} in the first line")
        time, prompt, output = (row[column] for column in columns)
        yield number, (time, prompt, output)


def _json_lines(path: Path, file: TextIO) -> Iterator[tuple[int, tuple[Any, Any, Any]]]:
    """Mooncake's form: one object a line, its time in milliseconds."""
    names: tuple[str, str, str] | None = None
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row: Mapping[str, Any] = json.loads(line)
            names = names or _names(path, list(row))
            time, prompt, output = (row[name] for name in names)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise TraceError(f"{path}:{number}: {error}") from error
        is_ms = names[0].lower() in ("timestamp", "timestamp_ms") and not isinstance(time, str)
        yield number, (time / 1000 if is_ms else time, prompt, output)


def _names(path: Path, header: list[str]) -> tuple[str, str, str]:
    """Which of the columns are time, prompt and output tokens."""
    by_word = {name.lower(): name for name in reversed(header)}

    def found(known: tuple[str, ...]) -> str:
        for name in known:
            if name in by_word:
                return by_word[name]
        raise TraceError(
            f"{path}:1: no column named one of {', '.join(known)}; found {', '.join(header)[:200]}"
        )

    return found(_TIME), found(_PROMPT), found(_OUTPUT)


def _tokens(value: Any) -> int:
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} is no number of tokens")
    return int(number)


def _seconds(value: Any) -> float:
    try:
        number = float(value)
    except ValueError:
        moment = datetime.fromisoformat(_shortened(value.strip()))
        # Only differences count: a zone that changes its clocks must not change them.
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no time")
    return number


def _shortened(text: str) -> str:
    """Microseconds are all that `fromisoformat` reads; Azure writes seven digits."""
    whole, point, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return f"{whole}{point}{digits[:6]}{rest[len(digits) :]}"

"""Reads a published request trace: any CSV or JSON lines with a time, prompt tokens and output
tokens.

Called by the command line, the benches and tests. It must not know what becomes of a request.
Azure's LLM inference traces (2023, 2024), BurstGPT and Mooncake are read as they are published; other
files name their columns in the first line.
"""

import csv
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
_SAME = ("prompt_hash", "request_hash", "hash", "hash_ids")
"""A column that is equal for equal prompts; Mooncake's `hash_ids` are those of a prompt's blocks."""
_DELIMITERS = ",;\t|"
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
_NOT_TEXT = {
    b"PK\x03\x04": "an Excel file or an archive",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"\x1f\x8b": "compressed by gzip",
    b"PAR1": "a Parquet file",
    b"(\xb5/\xfd": "compressed by zstd",
}
_MOST_TOKENS = 100_000_000
"""A prompt that is longer is a mistake in the file."""


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
            # A repetition asks for other things: what is asked again within it is what the trace has.
            same = (
                f"{offset:g} {request.same_as}" if offset and request.same_as else request.same_as
            )
            blocks = tuple(hash((offset, each)) for each in request.blocks)
            yield replace(request, at=request.at + offset, same_as=same, blocks=blocks)
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
    for number, (time, prompt, output, same) in _cells(path):
        try:
            seconds = _seconds(time)
            prompt_tokens = _tokens(prompt)
            same_as = f"{same} {prompt_tokens}" if same else ""
            blocks = tuple(same) if isinstance(same, list) else ()
            answer = max(1, _tokens(output))
            request = Request(seconds, prompt_tokens, answer, same_as, blocks=blocks)
        except (ValueError, TypeError) as error:
            raise TraceError(f"{path}:{number}: {error}") from error
        start = seconds if start is None else start
        at = seconds - start
        if at < before:
            raise TraceError(f"{path}:{number}: time goes back by {before - at:g} s")
        before = at
        yield replace(request, at=at)


_Cells = tuple[Any, Any, Any, Any]
"""Time, prompt tokens, output tokens, and what is equal for equal prompts (or nothing)."""


def _cells(path: Path) -> Iterator[tuple[int, _Cells]]:
    """Number of the line, and its values as they stand there."""
    try:
        with path.open(newline="", encoding=_encoding(path)) as file:
            before, first = _first_line(file)
            if not first:
                raise TraceError(f"{path}: empty file")
            if first.startswith("["):
                raise TraceError(f"{path}:1: a JSON array; write one object a line")
            lines = itertools.chain([first], file)
            read = _json_lines if first.startswith("{") else _csv
            for number, values in read(path, lines):
                yield number + before, values
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not text in UTF-8 or UTF-16 ({error.reason})") from error


def _first_line(file: TextIO) -> tuple[int, str]:
    """The first line with content, and how many stand before it. Excel's line that names the separator is none."""
    for number, line in enumerate(file):
        if line.strip() and not line.lower().startswith("sep="):
            return number, line
    return 0, ""


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    for mark, what in _NOT_TEXT.items():
        if head.startswith(mark):
            raise TraceError(f"{path}: {what}; save it as CSV")
    if head[1:2] == b"\0" and head[3:4] == b"\0":
        return "utf-16-le"  # Windows' programs leave the mark out
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")


def _csv(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, _Cells]]:
    first = next(lines)
    delimiter = max(_DELIMITERS, key=first.count)
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
    header = [name.strip() for name in next(rows)]
    columns = [header.index(name) for name in _names(path, header)]
    known = _same(header)
    place = header.index(known) if known else None
    for number, row in enumerate(rows, start=2):
        if not any(cell.strip() for cell in row):
            continue  # spreadsheets end their files with such rows
        if len(row) <= max(columns):
            raise TraceError(f"{path}:{number}: {len(row)} cells, {len(header)} in the first line")
        time, prompt, output = (row[column] for column in columns)
        if delimiter == ";":  # where it parts cells, a comma parts a number
            time, prompt, output = (cell.replace(",", ".") for cell in (time, prompt, output))
        same = row[place].strip() if place is not None and place < len(row) else ""
        yield number, (time, prompt, output, same)


def _json_lines(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, _Cells]]:
    """Mooncake's form: one object a line, its time in milliseconds."""
    names: tuple[str, str, str] | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: Mapping[str, Any] = json.loads(line)
            names = names or _names(path, list(row))
            time, prompt, output = (row[name] for name in names)
            known = _same(list(row))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise TraceError(f"{path}:{number}: {error}") from error
        is_ms = names[0].lower() in ("timestamp", "timestamp_ms") and isinstance(time, int | float)
        yield number, (time / 1000 if is_ms else time, prompt, output, row[known] if known else "")


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


def _same(header: list[str]) -> str:
    """The column that is equal for equal prompts; empty without one."""
    by_word = {name.lower(): name for name in header}
    return next((by_word[name] for name in _SAME if name in by_word), "")


def _tokens(value: Any) -> int:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    # A whole number: in a spreadsheet of another language 1.234 is a thousand.
    if not 0 <= number <= _MOST_TOKENS or not number.is_integer():
        raise ValueError(f"{value!r:.60} is no number of tokens")
    return int(number)


def _seconds(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return _moment_s(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no time")
    return number


def _moment_s(value: Any) -> float:
    try:
        moment = datetime.fromisoformat(_shortened(str(value).strip()))
    except ValueError as error:
        raise ValueError(
            f"{value!r:.60} is no time; write seconds, or 2024-05-10 12:00:00.5"
        ) from error
    # Only differences count: a zone that changes its clocks must not change them.
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _shortened(text: str) -> str:
    """Microseconds are all that `fromisoformat` reads; Azure writes seven digits."""
    whole, point, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return f"{whole}{point}{digits[:6]}{rest[len(digits) :]}"

"""Reads a published request trace: any CSV with a time, prompt tokens and output tokens.

Called by the command line, the benches and tests. It must not know what becomes of a request.
Azure's LLM inference traces are read as they are published; other files name their columns in the
first line.
"""

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from torpor.simulator.workload import Request

_TIME = ("timestamp", "time", "arrived_at", "arrival_time", "at", "t", "time_s")
_PROMPT = ("contexttokens", "prompt_tokens", "input_tokens", "prompt", "input_length")
_OUTPUT = ("generatedtokens", "output_tokens", "completion_tokens", "output", "output_length")
# Microseconds are all that `fromisoformat` reads; Azure writes seven digits.
_LONGEST_TIME = len("2023-11-16 18:15:46.680590")


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

    Raises TraceError for a file without the three columns, a bad number, or times that go back.
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
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows, None)
        if header is None:
            raise TraceError(f"{path}: empty file")
        columns = _columns(path, header)
        start: float | None = None
        before = 0.0
        for number, row in enumerate(rows, start=2):
            if not row:
                continue
            seconds, prompt, output = _row(path, number, row, columns)
            start = seconds if start is None else start
            at = seconds - start
            if at < before:
                raise TraceError(f"{path}:{number}: time goes back by {before - at:g} s")
            before = at
            yield Request(at, prompt, output)


def _columns(path: Path, header: Sequence[str]) -> tuple[int, int, int]:
    names = [name.strip().lower() for name in header]

    def found(known: tuple[str, ...]) -> int:
        for name in known:
            if name in names:
                return names.index(name)
        raise TraceError(f"{path}:1: no column named one of {', '.join(known)}")

    return found(_TIME), found(_PROMPT), found(_OUTPUT)


def _row(
    path: Path, number: int, row: Sequence[str], columns: tuple[int, int, int]
) -> tuple[float, int, int]:
    try:
        time, prompt, output = (row[column] for column in columns)
        return _seconds(time.strip()), int(float(prompt)), max(1, int(float(output)))
    except (ValueError, IndexError) as error:
        raise TraceError(f"{path}:{number}: {error}") from error


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text[:_LONGEST_TIME])
        # Only differences count: a zone that changes its clocks must not change them.
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()

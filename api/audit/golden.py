"""The golden set: answers of which people have said whether their passages support them.

Called by `api.audit.make`. A critic is asked about each row as
about any other answer, so what is measured is all of it: its weights, its instructions, and how its words are read.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson

from api.audit.critic import Verdict
from api.audit.estimate import LEAST_GOLDEN_ROWS, GoldenCounts
from eventing.errors import BadRequest
from eventing.job.moderation.claim import Claim

_MOST_ROWS: Final = 5000
_LEAST_OF_EACH: Final = 30
"""Rows of each label, so that neither kind of error is known from a handful."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRow:
    """One answer with its label."""

    claim: Claim
    is_supported: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSet:
    """The rows, and a digest of them."""

    rows: tuple[GoldenRow, ...]
    digest: str

    def counts(self, verdicts: Mapping[int, Verdict]) -> GoldenCounts:
        """How a critic did on the rows that it gave a verdict on."""
        judged = [
            (self.rows[row].is_supported, verdict)
            for row, verdict in verdicts.items()
            if row < len(self.rows) and verdict.is_counted
        ]
        return GoldenCounts(
            positives=sum(not supported for supported, _ in judged),
            true_positives=sum(
                not supported and verdict is Verdict.UNSUPPORTED for supported, verdict in judged
            ),
            negatives=sum(supported for supported, _ in judged),
            true_negatives=sum(
                supported and verdict is Verdict.SUPPORTED for supported, verdict in judged
            ),
        )


@cache
def load_golden(path: Path) -> GoldenSet:
    """The set in a JSON-lines file `{passages, question, answer, supported}`. Raises `BadRequest` naming line and
    field, or saying that the rows are too few.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}", "path") from error
    lines = [line for line in text.splitlines() if line.strip()]
    rows = tuple(_row(number, line) for number, line in enumerate(lines, 1))
    _check_size(rows)
    return GoldenSet(rows=rows, digest=hashlib.sha256(text).hexdigest())


def _check_size(rows: Iterable[GoldenRow]) -> None:
    labels = [row.is_supported for row in rows]
    if not LEAST_GOLDEN_ROWS <= len(labels) <= _MOST_ROWS:
        raise BadRequest(f"has {len(labels)} rows, not {LEAST_GOLDEN_ROWS} to {_MOST_ROWS}", "rows")
    if min(labels.count(True), labels.count(False)) < _LEAST_OF_EACH:
        raise BadRequest(
            f"needs {_LEAST_OF_EACH} rows that are supported and as many that are not", "supported"
        )


def _row(number: int, line: bytes) -> GoldenRow:
    where = f"line {number}"
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"{where} is not JSON", where) from error
    if not isinstance(row, dict):
        raise BadRequest(f"{where} must be an object", where)
    passages = row.get("passages")
    if not isinstance(passages, list) or not passages or not all(map(_is_text, passages)):
        raise BadRequest(f"{where}: passages must be a list of texts", f"{where}.passages")
    for name in ("question", "answer"):
        if not _is_text(row.get(name)):
            raise BadRequest(f"{where}: {name} must be a text", f"{where}.{name}")
    if not isinstance(row.get("supported"), bool):
        raise BadRequest(f"{where}: supported must be true or false", f"{where}.supported")
    claim = Claim(question=row["question"], answer=row["answer"], passages=tuple(passages))
    return GoldenRow(claim=claim, is_supported=row["supported"])


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())

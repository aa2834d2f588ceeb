"""Cursors of paginated job lists, and the limits on the cost of one page.

Called by both stores. Lists are ordered by store time and, within a millisecond, by job id; a cursor has both, so
that no job is skipped or repeated among those of the same millisecond.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from eventing.errors import BadRequest
from eventing.job.job import JobId

_FORM: Final = re.compile(r"([0-9]{1,15})-(job_[0-9a-f]{24})\Z")


LIST_LOOKS: Final = 1_000
"""Largest number of jobs that one call reads, however few of them match."""
LIST_BYTES: Final = 4 * 1024 * 1024
"""Largest total size of the requests and results on one page; those of the first job are always included."""


def fitting(sizes: Sequence[int]) -> int:
    """How many jobs with requests and results of these sizes fit on one page."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > LIST_BYTES and count:
            return count
    return len(sizes)


@dataclass(frozen=True, slots=True, order=True)
class ListCursor:
    """A position in a list; a greater one is newer."""

    at_ms: int
    job_id: JobId

    def __str__(self) -> str:
        return f"{self.at_ms}-{self.job_id}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The position in `text`, None for an empty one. Raises `BadRequest` for an invalid cursor."""
        if not text:
            return None
        if (found := _FORM.match(text)) is None:
            raise BadRequest("cursor must be the next_cursor of an earlier page", "cursor")
        return cls(int(found[1]), JobId(found[2]))

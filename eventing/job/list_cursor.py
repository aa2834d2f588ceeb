"""A place in a list of jobs: what a page ends with and the next one starts after; and how much one page may cost.

Called by both stores. Lists are ordered by store time and, within a millisecond, by job id; a
cursor names both, so that no job that shares its millisecond with others is skipped or shown twice.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from eventing.errors import BadRequest
from eventing.job.job import JobId

_FORM: Final = re.compile(r"([0-9]{1,15})-(job_[0-9a-f]{24})\Z")


LIST_LOOKS: Final = 1_000
"""Jobs that one call looks at, however few of them are wanted."""
LIST_BYTES: Final = 4 * 1024 * 1024
"""Requests and results that one page holds; the first job's are always among them."""


def fitting(sizes: Sequence[int]) -> int:
    """How many jobs with requests and results of these sizes one page holds."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > LIST_BYTES and count:
            return count
    return len(sizes)


@dataclass(frozen=True, slots=True, order=True)
class ListCursor:
    """A place in a list; a greater one is newer."""

    at_ms: int
    job_id: JobId

    def __str__(self) -> str:
        return f"{self.at_ms}-{self.job_id}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The place that `text` names, None for the start. Raises `BadRequest` for a cursor that
        no page of ours ended with.
        """
        if not text:
            return None
        if (found := _FORM.match(text)) is None:
            raise BadRequest("cursor must be the next_cursor of an earlier page", "cursor")
        return cls(int(found[1]), JobId(found[2]))

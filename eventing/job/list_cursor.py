"""A place in a list of jobs: what a page ends with and the next one starts after.

Called by both stores. Lists are ordered by store time and, within a millisecond, by job id; a
cursor names both, so that no job that shares its millisecond with others is skipped or shown twice.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

from eventing.errors import BadRequest
from eventing.job.job import JobId

_FORM: Final = re.compile(r"([0-9]{1,15})-(job_[0-9a-f]{24})\Z")


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

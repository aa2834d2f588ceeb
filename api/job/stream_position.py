"""The position of a reader in a job's token stream, and whether new entries continue there. Pure.

Called by `api.job.live`. Tokens are numbered, so a reader learns that it missed some, or that the store has lost
some that it was shown (a failover, a power cut), and is not given an end that looks complete.
"""

from enum import StrEnum
from typing import Final

from eventing.errors import TorporError
from eventing.job.job import Job, JobState
from eventing.job.stream import EntryKind, StreamEntry

_NUMBERED: Final = (EntryKind.ATTEMPT, EntryKind.TOKENS, EntryKind.TURN)


class StreamFault(StrEnum):
    """How a stream fails to continue at its reader's position."""

    GAP = "stream_gap"  #: tokens are missing
    REWOUND = "stream_rewound"  #: tokens that were shown are not the job's any more


class StreamBroken(TorporError):
    """The text shown so far cannot be continued, and a stream cannot take text back."""

    def __init__(self, fault: StreamFault, job: Job) -> None:
        what = (
            "a part of the answer was lost"
            if fault is StreamFault.GAP
            else "the answer was set back to an earlier point"
        )
        super().__init__(f"{what}; ask /v1/jobs/{job.id} for the whole")
        self.code = fault  # type: ignore[misc]


class StreamPosition:
    """The position of one reader: the number of the next token, and the attempt of the last one. None when the
    reader resumed behind an entry that has no such number.
    """

    __slots__ = ("place",)

    def __init__(self, *, is_start: bool) -> None:
        self.place: tuple[int, int] | None = (0, 0) if is_start else None

    def fault_of(self, entry: StreamEntry) -> StreamFault | None:
        """What is wrong with `entry` at this position, if anything."""
        if entry.kind not in _NUMBERED or self.place is None:
            return None
        index, attempt = self.place
        if entry.is_restart:  # it voids the present turn, and nothing of those before
            return StreamFault.GAP if entry.index > index else None
        if entry.index < index:
            return StreamFault.REWOUND
        is_known = entry.kind is not EntryKind.TOKENS or entry.attempt == attempt
        return None if is_known and entry.index == index else StreamFault.GAP

    def advance(self, entry: StreamEntry) -> None:
        """Move behind `entry`, whatever came before it."""
        if entry.kind in _NUMBERED:
            self.place = (entry.index + len(entry.token_ids), entry.attempt)

    def fault_at_end(self, job: Job) -> StreamFault | None:
        """What is wrong with the stream of the ended `job` when it ends here; nothing for a job without an answer."""
        has_answer = job.state in (JobState.COMPLETED, JobState.INCOMPLETE) and not job.incomplete
        if not has_answer or self.place is None or self.place[0] == job.token_count:
            return None
        return StreamFault.GAP if self.place[0] < job.token_count else StreamFault.REWOUND


def before(cursor: str) -> str:
    """The greatest cursor less than `cursor`, so that the entry at `cursor` is read next."""
    milliseconds, _, sequence = cursor.partition("-")
    if int(sequence or 0):
        return f"{milliseconds}-{int(sequence) - 1}"
    return f"{int(milliseconds) - 1}-{2**64 - 1}"

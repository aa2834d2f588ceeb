"""What the in-memory store keeps of one job, and the small changes all its transitions share.

Called by `eventing.memory_store` only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from eventing.job import AttemptRecord, Job
from eventing.store import Hold, StreamEntry


@dataclass(slots=True)
class MemoryRecord:
    """What Redis keeps under one hash tag: the job, its token stream, and what is nobody's
    business.
    """

    job: Job
    sha: str
    failures: int = 0
    expires_ms: int = 0
    is_rejected: bool = False
    must_restart: bool = False
    entries: list[StreamEntry] = field(default_factory=list)

    def refuse(self, answer: Hold) -> Hold:
        """Count a write that was refused; the answer to it."""
        self.job = replace(self.job, refused_writes=self.job.refused_writes + 1)
        return answer


def closed(
    history: tuple[AttemptRecord, ...], outcome: str, now_ms: int
) -> tuple[AttemptRecord, ...]:
    """The history with its last attempt ended."""
    if not history:
        return ()
    return (*history[:-1], replace(history[-1], outcome=outcome, ended_ms=now_ms))


def stored(value: Mapping[str, Any] | None, before: Any) -> Any:
    """What a reader gets back: JSON as the real store keeps it, or what stood there before."""
    return before if value is None else orjson.loads(orjson.dumps(value))


def entry_order(cursor: str) -> tuple[int, int]:
    """The order of stream entries; their cursors do not sort as text."""
    milliseconds, _, sequence = cursor.partition("-")
    return int(milliseconds), int(sequence or 0)

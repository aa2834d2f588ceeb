"""What a claim gives, and how much of it a process may hold."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from eventing.cloudevent.event import Event, from_record

CLAIM_BYTES: Final = 8 * 1024 * 1024
"""A claim ends with the event that reaches this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A claimed event. `tries` counts deliveries that may have been accepted, this one included; `refusals` those
    that were not accepted, the first of them `refused_ms` ago.
    """

    ticket: str
    event: Event
    tries: int
    enqueued_ms: int
    refusals: int = 0
    refused_ms: int = 0
    size: int = 0  #: bytes of its record
    passes: int = 0  #: how often it was passed over for one whose prompt an engine had seen
    left_ms: int = -1  #: since it was left to an engine that holds its prefix; -1 where it was not
    is_prefix_seen: bool | None = None  #: by the engine of its pump; None where that is not known


def claimed_from(row: Sequence[Any]) -> Claimed:
    """The event in one row of the claim script's answer."""
    stamp, record = row[2].split(b" ", 1)
    return Claimed(
        ticket=row[0].decode(),
        event=from_record(record),
        tries=int(row[3]),
        enqueued_ms=int(stamp),
        refusals=int(row[4]),
        refused_ms=int(row[5]),
        size=len(row[2]),
        passes=int(row[7]),
        left_ms=int(row[8]),
    )


class ClaimRoom:
    """Room for the claimed events of all pumps of a process, in bytes of their records. The last event of a claim
    may exceed it: an event larger than the room must still be delivered.
    """

    def __init__(self, most_bytes: int = 32 * 1024 * 1024) -> None:
        self._left = most_bytes
        self._waiting: list[asyncio.Event] = []

    def watch(self, freed: asyncio.Event) -> None:
        """Set `freed` whenever room is given back."""
        self._waiting.append(freed)

    def reserve(self) -> int:
        """Bytes for one claim; 0 when no room is left."""
        size = max(0, min(self._left, CLAIM_BYTES))
        self._left -= size
        return size

    def release(self, size: int) -> None:
        """Give back what was reserved and not used, or an event that was delivered."""
        self._left += size
        for freed in self._waiting:
            freed.set()

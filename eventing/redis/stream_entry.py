"""An entry of a job's token stream: the only module with the names of its fields.

Called by both stores and `eventing.live.stream_multiplexer`; the Lua scripts write the entries.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from eventing.job.job import JobState
from eventing.job.plan import StepStatus
from eventing.job.store import EntryKind, StreamEntry

_TOKENS_LAYOUT: Final = [b"kind", b"attempt", b"index", b"ids", b"delta"]
"""The fields of a token entry in the order in which `append.lua` writes them."""


def parse_flat_entry(cursor: bytes, flat: Sequence[bytes]) -> StreamEntry:
    """As `parse_entry`, from names and values in turn, as Redis sends them. A hot path: called for every live
    token.
    """
    if flat[::2] != _TOKENS_LAYOUT:
        return parse_entry(cursor, dict(zip(flat[::2], flat[1::2], strict=True)))
    _, _, _, attempt, _, index, _, ids, _, delta = flat
    return StreamEntry(
        cursor.decode(),
        EntryKind.TOKENS,
        int(attempt),
        int(index),
        tuple(map(int, ids.split())),
        delta.decode(),
    )


_KINDS: Final = frozenset(str(kind).encode() for kind in EntryKind)
_STATES: Final = frozenset(str(state) for state in JobState)


def parse_entry(cursor: bytes, fields: Mapping[bytes, bytes]) -> StreamEntry:
    """One entry of a token stream."""
    kind = fields[b"kind"]
    attempt = int(fields.get(b"attempt", 0))
    if kind == b"tokens":
        return StreamEntry(
            cursor=cursor.decode(),
            kind=EntryKind.TOKENS,
            attempt=attempt,
            index=int(fields.get(b"index", 0)),
            token_ids=tuple(map(int, fields.get(b"ids", b"").split())),
            delta=fields.get(b"delta", b"").decode(),
            shown=int(fields.get(b"shown", -1)),
        )
    return StreamEntry(
        cursor=cursor.decode(),
        kind=EntryKind(kind.decode()) if kind in _KINDS else EntryKind.OTHER,
        attempt=attempt,
        index=int(fields.get(b"index", 0)),
        state=JobState(state) if (state := fields.get(b"state", b"").decode()) in _STATES else None,
        is_restart=fields.get(b"restarted") == b"1",
        at_ms=int(fields.get(b"at_ms", 0)),
        step=fields.get(b"step", b"").decode(),
        step_status=_step_status(fields.get(b"status", b"").decode()),
        step_ms=int(fields.get(b"ms", 0)),
        phase=fields.get(b"phase", b"").decode(),
        shown=int(fields.get(b"shown", -1)),
    )


def _step_status(text: str) -> StepStatus | None:
    return StepStatus(text) if text in list(StepStatus) else None

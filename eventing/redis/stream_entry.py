"""An entry of a job's token stream: the only module with the names of its fields.

Called by both stores and `eventing.live.stream_multiplexer`; the Lua scripts write the entries.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from eventing.job.job import JobState
from eventing.job.plan import StepStatus
from eventing.job.stream import EntryKind, StreamEntry
from eventing.job.tools.call import CallState

RawEntries = Sequence[tuple[bytes, Sequence[bytes]]]
"""Entries as Redis sends them: each a cursor, and names and values in turn."""


class TokensEntry(NamedTuple):
    """An entry of tokens as it is in the store, for readers that pass it on: texts are bytes, and ids are counted. A
    hot path: one is made for every live token.
    """

    cursor: bytes
    attempt: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    count: int  # type: ignore[assignment]  # hides tuple.count, likewise
    ids: bytes
    delta: bytes

    def parsed(self) -> StreamEntry:
        """The same as any reader sees it."""
        return StreamEntry(
            self.cursor.decode(),
            EntryKind.TOKENS,
            self.attempt,
            self.index,
            tuple(map(int, self.ids.split())),
            self.delta.decode(),
        )


def tokens_entries(raw: RawEntries) -> list[TokensEntry] | None:
    """The entries, where all are of tokens alone, with their fields in the order in which `append.lua` writes them;
    None where one is not.
    """
    found = []
    for cursor, flat in raw:
        if len(flat) != _TOKENS_LENGTH or flat[1] != b"tokens" or flat[::2] != _TOKENS_LAYOUT:
            return None
        _, _, _, attempt, _, index, _, ids, _, delta = flat
        count = 1 if ids.isdigit() else len(ids.split())
        # A NamedTuple's own constructor takes three times as long.
        found.append(_new_tuple(TokensEntry, (cursor, int(attempt), int(index), count, ids, delta)))
    return found


_TOKENS_LAYOUT: Final = [b"kind", b"attempt", b"index", b"ids", b"delta"]
_TOKENS_LENGTH: Final = 2 * len(_TOKENS_LAYOUT)
_new_tuple: Final = tuple.__new__


def parse_flat_entry(cursor: bytes, flat: Sequence[bytes]) -> StreamEntry:
    """As `parse_entry`, from names and values in turn."""
    return parse_entry(cursor, dict(zip(flat[::2], flat[1::2], strict=True)))


_KINDS: Final = frozenset(str(kind).encode() for kind in EntryKind)
_STATES: Final = frozenset(str(state) for state in JobState)
_CALL_STATES: Final = frozenset(str(state) for state in CallState)


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
    if kind in (b"turn", b"call"):
        return _parse_tools(cursor, EntryKind(kind.decode()), attempt, fields)
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


def _parse_tools(
    cursor: bytes, kind: EntryKind, attempt: int, fields: Mapping[bytes, bytes]
) -> StreamEntry:
    """An entry of a turn or of a call in it."""
    state = fields.get(b"status", b"").decode()
    return StreamEntry(
        cursor=cursor.decode(),
        kind=kind,
        attempt=attempt,
        index=int(fields.get(b"index", 0)),
        at_ms=int(fields.get(b"at_ms", 0)),
        turn=int(fields.get(b"turn", 0)),
        place=int(fields.get(b"place", 0)),
        calls=fields.get(b"calls", b"").decode(),
        call_state=CallState(state) if state in _CALL_STATES else None,
        call_ms=int(fields.get(b"ms", 0)),
        send=int(fields.get(b"send", 0)),
        name=fields.get(b"name", b"").decode(),
        output=fields.get(b"output", b"").decode("utf-8", "ignore"),  # it may be cut anywhere
        is_error=fields.get(b"is_error") == b"1",
        approval_id=fields.get(b"approval_id", b"").decode(),
        reason=fields.get(b"reason", b"").decode("utf-8", "ignore"),
        progress=fields.get(b"progress", b"").decode("utf-8", "ignore"),
    )


def _step_status(text: str) -> StepStatus | None:
    return StepStatus(text) if text in list(StepStatus) else None

"""What readers of a token stream see of an answer that is held back: nothing behind its mark.

Called by `api.job.live`, through which every view of a stream goes (SSE, WebSocket, long poll, OpenAI's streams). The
stream itself says how far its text may be shown: with tokens (rules in the predictor judged them) and at the job's end
(the steps after it let the answer pass). What is held is not kept here but read again from the store when the mark
moves, so that a reader costs no more for an answer that is judged as a whole. States and steps are shown at once; they
carry the cursor of what was shown last, so that a reader who comes again misses no token behind them.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Final, Protocol

from eventing.job.job import JobId
from eventing.job.plan import Hold
from eventing.job.store import JobReader
from eventing.job.stream import EntryKind, StreamEntry, cursor_order

_HELD: Final = (EntryKind.ATTEMPT, EntryKind.TOKENS)


class LiveReader(Protocol):
    """A reader of one job's token stream (`eventing.live.stream_multiplexer.Reader`)."""

    cursor: str

    async def next(self, timeout_s: float) -> list[StreamEntry]: ...

    async def catch_up(self) -> list[StreamEntry]: ...


class ShownEntries:
    """A reader that gives what may be shown. `hold` says what is held back now: of an ended job nothing."""

    def __init__(
        self, reader: LiveReader, store: JobReader, job_id: JobId, hold: Callable[[], Hold]
    ) -> None:
        self.cursor = reader.cursor  #: of the last entry that was shown in its place
        self._reader = reader
        self._store = store
        self._job_id = job_id
        self._hold = hold
        self._mark = 0
        self._is_holding = False
        self._is_open = False

    async def next(self, timeout_s: float) -> list[StreamEntry]:
        return await self._shown(await self._reader.next(timeout_s))

    async def catch_up(self) -> list[StreamEntry]:
        return await self._shown(await self._reader.catch_up())

    async def _shown(self, entries: Sequence[StreamEntry]) -> list[StreamEntry]:
        shown: list[StreamEntry] = []
        for entry in entries:
            shown += await self._take(entry)
        return shown

    async def _take(self, entry: StreamEntry) -> list[StreamEntry]:
        if not self._is_holding and self._hold() is Hold.NONE:
            self.cursor = entry.cursor
            return [entry]
        if entry.kind is EntryKind.ATTEMPT and entry.is_restart:
            self._mark = min(self._mark, entry.index)  # what was held from there on is void
        is_told, self._mark = entry.shown >= 0, max(self._mark, entry.shown)
        if entry.kind not in _HELD:
            self._is_open = self._is_open or (entry.kind is EntryKind.STATE and is_told)
            released = await self._released(entry.cursor) if self._is_holding and is_told else []
            if self._is_holding:
                return [*released, entry._replace(cursor=self.cursor)]
            self.cursor = entry.cursor
            return [*released, entry]
        if not self._is_holding and self._may_show(entry):
            self.cursor = entry.cursor
            return [entry]
        self._is_holding = True
        return await self._released(entry.cursor) if is_told else []

    def _may_show(self, entry: StreamEntry) -> bool:
        """True for tokens before the mark. Text without a token has no place before the end."""
        if self._is_open:
            return True
        has_place = bool(entry.token_ids) or not entry.delta
        return has_place and entry.index + len(entry.token_ids) <= self._mark

    async def _released(self, upto: str) -> list[StreamEntry]:
        """What was held and may be shown now, up to and with the entry at a cursor if it is one of tokens."""
        found: list[StreamEntry] = []
        after, end = self.cursor, cursor_order(upto)
        while entries := await self._store.read_stream(self._job_id, after):
            for entry in entries:
                if cursor_order(entry.cursor) > end:
                    break
                if entry.kind is EntryKind.ATTEMPT and entry.is_restart:
                    found = [each for each in found if each.index < entry.index]
                if entry.kind in _HELD:
                    found.append(entry)
            after = entries[-1].cursor
            if cursor_order(after) >= end:
                break
        shown = list(takewhile(self._may_show, found))
        self._is_holding = len(shown) < len(found)
        if shown:
            self.cursor = shown[-1].cursor
        return shown

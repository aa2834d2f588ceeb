"""Reads and writes the checkpoints of an attempt.

Called by `predictor.delivery.delivery` and `predictor.generation.generation`. Writing never delays decoding: tokens
are put into a buffer, and a task of its own writes them to the store, the first at once and then every `flush_s`,
or more often when the store is fast. If the process dies, the buffer's content is lost.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import orjson

from eventing.errors import StoreUnavailable
from eventing.job.job import JobId
from eventing.job.store import JobWorker, Lease, LeaseStatus, TokenBatch
from eventing.job.stream import EntryKind
from predictor import metrics
from predictor.generation.append_batcher import AppendBatcher
from predictor.generation.replay_filter import Entry, ReplayFilter, coalesce

_BUFFER_TOKENS: Final = 16_384
"""More than a lease's worth of tokens at 500 a second: an unavailable store ends the attempt before the buffer is
full.
"""
_AFTER_TROUBLE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state that earlier attempts left: ids to continue from, and what readers were shown of them. `before` are the
    ids of the turns before the present one.
    """

    token_ids: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    shown: ReplayFilter = field(default_factory=ReplayFilter)


async def read_checkpoint(
    store: JobWorker, job_id: JobId, count: int, *, begin: int = 0
) -> Checkpoint:
    """The tokens of the job's stream from `begin`, where the present turn begins, up to `count`. Raises
    `StoreUnavailable`.

    An attempt that starts at an index replaces the tokens from there on.
    """
    ids: list[int] = []
    shown = ReplayFilter()
    after = ""
    while entries := await store.read_stream(job_id, after):
        for entry in entries:
            match entry.kind:
                case EntryKind.ATTEMPT:
                    del ids[entry.index :]
                    if entry.index == begin:
                        shown.clear()
                case EntryKind.TOKENS:
                    ids.extend(entry.token_ids)
                    if entry.delta:
                        shown.note(orjson.loads(entry.delta))
        after = entries[-1].cursor
    return Checkpoint(tuple(ids[begin:count]), tuple(ids[:begin]), shown)


class CheckpointWriter:
    """Writes one attempt's tokens to the store. `on_refusal` is called once, when the store says that the lease was
    lost; nothing is written after that.
    """

    def __init__(
        self,
        store: JobWorker,
        appends: AppendBatcher,
        lease: Lease,
        *,
        index: int,
        flush_s: float,
        on_refusal: Callable[[LeaseStatus], None],
        shown: Callable[[], int] | None = None,
    ) -> None:
        """`shown` gives the position up to which the tokens may be shown, of an answer that is judged meanwhile."""
        self._store = store
        self._appends = appends
        self._lease = lease
        self._index = index
        self._flush_s = flush_s
        self._on_refusal = on_refusal
        self._shown = shown
        self._token_ids: list[int] = []
        self._entries: list[Entry] = []
        self._unsure: TokenBatch | None = None
        self._has_some = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._closing = asyncio.Event()
        self._is_abandoned = False
        self._leaves_rest = False

    @property
    def pending_tokens(self) -> int:
        """The number of tokens that the store has not confirmed."""
        unsure = len(self._unsure.token_ids) if self._unsure else 0
        return len(self._token_ids) + unsure

    def add(self, token_ids: Sequence[int], entries: Sequence[Entry]) -> None:
        """Buffer tokens and what readers are shown of them. Returns at once."""
        self._token_ids += token_ids
        self._entries += entries
        if token_ids or entries:
            self._has_some.set()
        if len(self._token_ids) > _BUFFER_TOKENS:
            self._has_room.clear()

    @property
    def is_full(self) -> bool:
        """True when the engine must wait for the store."""
        return not self._has_room.is_set()

    async def wait_for_room(self) -> None:
        await self._has_room.wait()

    def close(self, *, leaves_rest: bool = False) -> None:
        """Write what is buffered and end. With `leaves_rest`, tokens of which no write has begun are left for
        `pop_final_batch`.
        """
        self._leaves_rest = leaves_rest
        self._closing.set()
        self._has_some.set()

    def abandon(self) -> None:
        """The lease was lost: end without writing."""
        self._is_abandoned = True
        self.close()

    def pop_final_batch(self) -> TokenBatch | None:
        """The tokens that were left, to be written together with the job's end."""
        return self._take()

    async def run(self) -> None:
        """Write until closed."""
        while not self._is_abandoned:
            await self._has_some.wait()
            self._has_some.clear()
            if self._leaves_rest and self._unsure is None:
                return
            try:
                await self._flush()
                pause_s = self._appends.flush_interval_s(self._flush_s)
            except StoreUnavailable:
                pause_s = _AFTER_TROUBLE_S
                self._has_some.set()
                if self._closing.is_set():
                    await asyncio.sleep(pause_s)
                    continue
            if self._closing.is_set() and not self._has_some.is_set():
                return
            await self._pause(pause_s)

    async def _flush(self) -> None:
        """Write everything buffered; first the batch whose earlier write may have been lost."""
        if self._unsure is not None:
            arrived = await self._has_arrived(self._unsure)
            self._conclude(
                self._unsure, LeaseStatus.OK if arrived else await self._append(self._unsure)
            )
        if not self._is_abandoned and (batch := self._take()):
            self._unsure = batch
            self._conclude(batch, await self._append(batch))

    def _conclude(self, batch: TokenBatch, hold: LeaseStatus) -> None:
        if hold is not LeaseStatus.OK:
            self.abandon()
            self._on_refusal(hold)
            return
        self._unsure = None
        self._index = batch.index + len(batch.token_ids)
        self._has_room.set()

    def _take(self) -> TokenBatch | None:
        """The buffer as one batch. Text without a token is written with the next token, and alone only at the end."""
        if not self._token_ids and not (self._entries and self._closing.is_set()):
            return None
        entries = coalesce(self._entries)
        delta = orjson.dumps(entries).decode() if entries else ""
        batch = TokenBatch(
            index=self._index,
            token_ids=tuple(self._token_ids),
            delta=delta,
            shown=self._shown() if self._shown else None,
        )
        self._token_ids = []
        self._entries = []
        return batch

    async def _append(self, batch: TokenBatch) -> LeaseStatus:
        with metrics.FLUSH.time():
            hold = await self._appends.append(self._lease, batch)
        # A server that forgot its scripts half-way through a pipeline has some of it done twice.
        return (
            LeaseStatus.OK if hold is LeaseStatus.GAP and await self._has_arrived(batch) else hold
        )

    async def _has_arrived(self, batch: TokenBatch) -> bool:
        """True when a write whose reply was lost has been done, since no other process writes this attempt.

        Reads the whole stream, which is rare, since text without a token changes no counter.
        """
        after = ""
        last: tuple[str, tuple[int, ...]] = ("", ())
        while entries := await self._store.read_stream(self._lease.job_id, after):
            after = entries[-1].cursor
            last = next(
                (
                    (e.delta, e.token_ids)
                    for e in reversed(entries)
                    if e.attempt == self._lease.attempt
                ),
                last,
            )
        return last == (batch.delta, batch.token_ids)

    async def _pause(self, flush_interval_s: float) -> None:
        """Wait until the next flush, at the same moment for all writers, or until closing."""
        wait_s = flush_interval_s - asyncio.get_running_loop().time() % flush_interval_s
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._closing.wait()

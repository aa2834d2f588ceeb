"""A job's life as it happens: one account of it, whatever carries it (SSE, WebSocket, long poll).

Called by the jobs' streams and OpenAI's. Must not know the wire form.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from api.http.protocol import ResponseWriter
from api.job.stream_position import StreamFault, StreamPosition, before
from api.view.outlook import Outlook
from eventing.clock import Clock
from eventing.errors import NotFound, StoreUnavailable
from eventing.job.job import Job, JobId, JobState
from eventing.job.store import EntryKind, JobReader, StreamEntry
from eventing.live.stream_multiplexer import TokenCallback, order_of
from eventing.replica import Replica

_OUTLOOK_EVERY_S: Final = 1.0
_FIRST_OUTLOOK_S: Final = 0.05
_AFTER_END_S: Final = 2.0
_LOOK_AGAIN_S: Final = 15.0
_LOOK_UNASKED_S: Final = 2.0
"""A message that was lost costs who waits for the end as much."""

_Read = TypeVar("_Read")


class LiveReader(Protocol):
    """A follower of one job's token stream (`eventing.live.stream_multiplexer.Reader`)."""

    cursor: str

    async def next(self, timeout_s: float) -> list[StreamEntry]: ...

    async def catch_up(self) -> list[StreamEntry]: ...


class Live(Protocol):
    """Where token streams are followed (`eventing.live.stream_multiplexer.StreamMultiplexer`)."""

    def follow(
        self, job_id: JobId, after: str = "", on_tokens: TokenCallback | None = None
    ) -> AbstractAsyncContextManager[LiveReader]: ...


class Ends(Protocol):
    """Where ends of jobs are heard of (`eventing.live.completion_notifier.CompletionNotifier`)."""

    def expecting(self, job_id: JobId) -> AbstractContextManager[asyncio.Event]:
        """An event that is set when the job's record should be looked at."""


class QueueStatus(Protocol):
    """Tells where a queued job stands (`api.job.waiting.QueueWaiting`)."""

    async def outlook(self, job: Job) -> Outlook | None:
        """What is known now; None when nothing is, or the job does not wait."""

    async def replicas(self, model: str) -> Sequence[Replica]:
        """The model's replicas, the oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveDeps:
    """What following a job needs."""

    store: JobReader
    live: Live
    ends: Ends
    waiting: QueueStatus
    clock: Clock
    store_timeout_s: float


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened: entries of the stream, that they do not go on from what came before (`fault`), news of
    the wait, or the end (`job`).
    """

    entries: tuple[StreamEntry, ...] = ()
    fault: StreamFault | None = None
    outlook: Outlook | None = None
    job: Job | None = None


async def moments(
    deps: LiveDeps, job: Job, after: str, on_tokens: TokenCallback | None = None
) -> AsyncGenerator[Moment, None]:
    """What happens to `job` after a cursor, until it has ended and nothing is left in its stream; the last moment
    carries the ended job. Tokens that `on_tokens` takes are in no moment; it is called while the caller waits for one.

    Raises `ReaderCutOff` when the caller takes moments too slowly; it may come again with its last
    cursor. Raises `NotFound` when the job is deleted. A store that goes away for a while only makes
    a pause; one that goes away at the very end raises `StoreUnavailable`.
    """
    position = await _position_at(deps, job.id, after)
    if position is None:
        yield Moment(fault=StreamFault.REWOUND)
        position = StreamPosition(is_start=False)
    follower = _Follower(deps, job, position)
    async with deps.live.follow(job.id, after, _in_order(position, on_tokens)) as reader:
        while True:
            async with aclosing(follower.moments(reader)) as living:
                async for moment in living:
                    yield moment
            if follower.job.state.is_terminal:
                break
    if (fault := position.fault_at_end(follower.job)) is not None:
        yield Moment(fault=fault)
    yield Moment(job=follower.job)


class _Follower:
    """One reader's view of one job; `job` is the record as it was last read."""

    def __init__(self, deps: LiveDeps, job: Job, position: StreamPosition) -> None:
        self.job = job
        self._deps = deps
        self._position = position
        self._outlook: Outlook | None = None
        self._is_waiting = job.state is JobState.QUEUED
        self._heard_s = time.monotonic()
        self._pause_s = _FIRST_OUTLOOK_S  # waking has most to tell in its first second

    async def moments(self, reader: LiveReader) -> AsyncGenerator[Moment, None]:
        """What happens until the stream says that the job has ended, or the record does and nothing is left in the
        stream.
        """
        while True:
            is_running = not (self._is_waiting or self.job.state.is_terminal)
            entries = await _next(reader, _LOOK_AGAIN_S if is_running else self._pause_s)
            self._pause_s = min(2 * self._pause_s, _OUTLOOK_EVERY_S)
            if not entries and self._is_due():
                self.job = await _as_it_is(self._deps, self.job)
                self._heard_s = time.monotonic()
                if self._is_behind():
                    entries = await _retry_for_a_moment(reader.catch_up)
                if not entries and self.job.state.is_terminal and await self._has_ended():
                    return
            if entries:
                self._heard_s = time.monotonic()
                for moment in _checked(entries, self._position):
                    yield moment
                state = last_state(entries)
                self._is_waiting = state is JobState.QUEUED
                if state is not None and state.is_terminal and await self._has_ended():
                    return
            elif self._is_waiting and (outlook := await self._news()) is not None:
                yield Moment(outlook=outlook)

    def _is_due(self) -> bool:
        """Whether the record is to be looked at: it says that the job has ended, or nothing was heard for long."""
        is_silent = time.monotonic() - self._heard_s >= _LOOK_AGAIN_S
        return is_silent or self.job.state.is_terminal

    def _is_behind(self) -> bool:
        """Whether the record tells of more than the live tail has brought: this process may have stood still."""
        if self._is_waiting:
            return self.job.state is not JobState.QUEUED
        place = self._position.place
        return self.job.state.is_terminal or place is None or place[0] != self.job.token_count

    async def _has_ended(self) -> bool:
        """Whether the record says so too: the job may have been redriven since."""
        self.job = await _ended(self._deps, self.job.id)
        self._is_waiting = self.job.state is JobState.QUEUED
        return self.job.state.is_terminal

    async def _news(self) -> Outlook | None:
        """Where the job stands in its queue, if that has changed."""
        self.job = replace(self.job, state=JobState.QUEUED)
        now, known = await outlook_of(self._deps, self.job), self._outlook
        if now is None or now == known:
            return None
        if known is None or now.phase != known.phase:
            self._pause_s = _FIRST_OUTLOOK_S  # the next phase may be a short one
        self._outlook = now
        return now


def _checked(entries: Sequence[StreamEntry], position: StreamPosition) -> Iterator[Moment]:
    """The entries as moments, with each fault where it is."""
    good: list[StreamEntry] = []
    for entry in entries:
        if (fault := position.fault_of(entry)) is not None:
            if good:
                yield Moment(entries=tuple(good))
                good = []
            yield Moment(fault=fault)
        position.advance(entry)
        good.append(entry)
    yield Moment(entries=tuple(good))


def _in_order(position: StreamPosition, on_tokens: TokenCallback | None) -> TokenCallback | None:
    """The callback, for tokens that go on from where the reader stands; it leaves others to be looked at."""
    if on_tokens is None:
        return None

    def take(entries: Sequence[StreamEntry]) -> bool:
        place = position.place
        if position.accepts(entries) and on_tokens(entries):
            return True
        position.place = place
        return False

    return take


async def _position_at(deps: LiveDeps, job_id: JobId, after: str) -> StreamPosition | None:
    """Where a reader stands that has seen everything up to a cursor; None when what it saw last is not in the stream
    any more.
    """
    if not after or order_of(after) == (0, 0):
        return StreamPosition(is_start=True)
    seen = await _retry_for_a_moment(lambda: deps.store.read_stream(job_id, before(after), 1))
    if not seen or seen[0].cursor != after:
        return None
    position = StreamPosition(is_start=False)
    position.advance(seen[0])
    return position


async def wait_for_end(deps: LiveDeps, job: Job, timeout_s: float) -> Job:
    """The job once it has ended, or as it is after `timeout_s`."""
    if job.state.is_terminal:
        return job
    give_up_s = deps.clock.monotonic_s() + timeout_s
    with deps.ends.expecting(job.id) as news:
        while not job.state.is_terminal:
            left_s = give_up_s - deps.clock.monotonic_s()
            if left_s <= 0:
                return job
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _LOOK_UNASKED_S)):
                    await news.wait()
            news.clear()
            job = await _as_it_is(deps, job)
    return job


def last_state(entries: Sequence[StreamEntry]) -> JobState | None:
    """The state that the newest of `entries` with a say speaks of."""
    for entry in reversed(entries):
        match entry.kind:
            case EntryKind.STATE:
                return entry.state
            case EntryKind.ATTEMPT | EntryKind.TOKENS:
                return JobState.IN_PROGRESS
    return None


async def outlook_of(deps: LiveDeps, job: Job) -> Outlook | None:
    """Where a queued job stands; None when nobody can tell now."""
    if job.state is not JobState.QUEUED:
        return None
    try:
        async with asyncio.timeout(deps.store_timeout_s):
            return await deps.waiting.outlook(job)
    except (StoreUnavailable, TimeoutError):
        return None


async def _next(reader: LiveReader, timeout_s: float) -> list[StreamEntry]:
    try:
        return await reader.next(timeout_s)
    except StoreUnavailable:
        await asyncio.sleep(min(timeout_s, 0.5))
        return []


def write_directly(
    wire: ResponseWriter | None, render: Callable[[StreamEntry], bytes]
) -> TokenCallback | None:
    """A callback that writes tokens out as they come."""
    if wire is None:
        return None

    def on_tokens(entries: Sequence[StreamEntry]) -> bool:
        return wire.write(b"".join(map(render, entries)))

    return on_tokens


async def _as_it_is(deps: LiveDeps, job: Job) -> Job:
    """The record of a job that has long been silent: one that was deleted says nothing more."""
    try:
        async with asyncio.timeout(deps.store_timeout_s):
            now = await deps.store.get(job.id)
    except (StoreUnavailable, TimeoutError):
        return job
    if now is None:
        raise NotFound("the job is gone")
    return now


async def _ended(deps: LiveDeps, job_id: JobId) -> Job:
    """The record; it changed in the same step as the stream said that the job has ended."""
    job = await _retry_for_a_moment(lambda: deps.store.get(job_id))
    if job is None:
        raise NotFound("the job is gone")
    return job


async def _retry_for_a_moment(read: Callable[[], Awaitable[_Read]]) -> _Read:
    """What `read` gives, tried again for two seconds. Raises `StoreUnavailable`."""
    give_up_s = time.monotonic() + _AFTER_END_S
    while True:
        try:
            return await read()
        except StoreUnavailable:
            if time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(0.1)

"""The events of a job as they happen: one source for every transport (SSE, WebSocket, long poll).

Called by the jobs' streams and OpenAI's. Must not know the wire format.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from api.http.protocol import ResponseWriter
from api.job.stream_position import StreamFault, StreamPosition, before
from api.view.outlook import Outlook, tool_outlook
from eventing.clock import Clock
from eventing.errors import NotFound, ObjectGone, StoreUnavailable, Unavailable
from eventing.job.job import Job, JobId, JobState
from eventing.job.plan import Hold, StepStatus
from eventing.job.store import JobReader
from eventing.job.stream import EntryKind, StreamEntry, cursor_order
from eventing.live.shown import LiveReader, ShownEntries
from eventing.live.stream_multiplexer import TokenCallback
from eventing.redis.stream_entry import TokensEntry
from eventing.replica import Replica

_OUTLOOK_EVERY_S: Final = 1.0
_FIRST_OUTLOOK_S: Final = 0.05
_AFTER_END_S: Final = 2.0
_LOOK_AGAIN_S: Final = 15.0
_LOOK_UNASKED_S: Final = 2.0
"""Interval at which the record is read anyway: the longest delay when a notification is lost."""

_Read = TypeVar("_Read")


class Live(Protocol):
    """Opens readers of token streams (`eventing.live.stream_multiplexer.StreamMultiplexer`)."""

    def follow(
        self, job_id: JobId, after: str = "", on_tokens: TokenCallback | None = None
    ) -> AbstractAsyncContextManager[LiveReader]: ...


class Ends(Protocol):
    """Notifies of ended jobs (`eventing.live.completion_notifier.CompletionNotifier`)."""

    def expecting(self, job_id: JobId) -> AbstractContextManager[asyncio.Event]:
        """An event that is set when the job's record should be read."""


class QueueStatus(Protocol):
    """The state of a queued job's wait (`api.job.waiting.QueueWaiting`)."""

    async def outlook(self, job: Job) -> Outlook | None:
        """What is known of the wait; None when the job does not wait, or nothing is known."""

    async def replicas(self, model: str) -> Sequence[Replica]:
        """The model's replicas, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveDeps:
    """The dependencies of following a job."""

    store: JobReader
    live: Live
    ends: Ends
    waiting: QueueStatus
    clock: Clock
    store_timeout_s: float


@dataclass(frozen=True, slots=True)
class Moment:
    """One event of a job: entries of its stream, a break in the stream (`fault`), news of the wait, or the end
    (`job`).
    """

    entries: tuple[StreamEntry, ...] = ()
    fault: StreamFault | None = None
    outlook: Outlook | None = None
    job: Job | None = None


class DirectTokens:
    """Writes tokens that continue at the reader's position to its connection as they are read; declines others, which
    are then checked. `render` may count and collect what it renders, so it gets an entry only when its frames are
    surely written.
    """

    __slots__ = ("_render", "_wire", "position")

    def __init__(self, wire: ResponseWriter, render: Callable[[TokensEntry], bytes]) -> None:
        self._wire = wire
        self._render = render
        self.position = StreamPosition(is_start=False)

    def __call__(self, tokens: Sequence[TokensEntry]) -> bool:
        if not self._wire.is_writable:
            return False
        place = self.position.place
        for _, attempt, index, count, _, _ in tokens:
            if place != (index, attempt):
                return False
            place = (index + count, attempt)
        self.position.place = place
        self._wire.write(b"".join(map(self._render, tokens)))
        return True


def write_directly(
    wire: ResponseWriter | None, render: Callable[[TokensEntry], bytes]
) -> DirectTokens | None:
    return None if wire is None else DirectTokens(wire, render)


async def moments(
    deps: LiveDeps,
    job: Job,
    after: str,
    on_tokens: DirectTokens | None = None,
    *,
    with_result: bool = True,
) -> AsyncGenerator[Moment, None]:
    """The events of `job` after a cursor, until it has ended and its stream is read; the last one has the ended
    job, without a result that is in the object store unless `with_result`. Tokens that `on_tokens` takes are not
    included; it is called while the caller waits for the next event.

    Raises `ReaderCutOff` when the caller is too slow; it may resume at its last cursor. Raises `NotFound` when the
    job is deleted, and `ObjectGone` when its result is wanted and no longer stored. While the store or the object
    store is unavailable there is a pause; at the very end it raises `Unavailable`.
    """
    position = await _position_at(deps, job.stream_id, after)
    if position is None:
        yield Moment(fault=StreamFault.REWOUND)
        position = StreamPosition(is_start=False)
    if on_tokens is not None:
        on_tokens.position = position
    watched = _Reading(deps, job, position, with_result=with_result)
    stream = job.stream_id
    while not watched.is_over(stream):
        stream = watched.job.stream_id
        # Tokens of an answer that is held back are looked at one by one.
        direct = on_tokens if watched.job.hold is Hold.NONE else None
        async with deps.live.follow(stream, after, direct) as live:
            reader = ShownEntries(live, deps.store, stream, lambda: watched.job.hold)
            try:
                async with aclosing(watched.moments(reader)) as living:
                    async for moment in living:
                        yield moment
            except ObjectGone:  # with its tokens; the job has ended, and may have no more to show
                if not await watched.has_ended():
                    raise
                break
            after = reader.cursor
    if (fault := position.fault_at_end(watched.job)) is not None:
        yield Moment(fault=fault)
    yield Moment(job=watched.job)


class _Reading:
    """One reader of one job; `job` is the record as it was last read. The stream of a job that follows another is that
    one's: the reader goes from one to the next under the same cursor.
    """

    def __init__(
        self, deps: LiveDeps, job: Job, position: StreamPosition, *, with_result: bool
    ) -> None:
        self.job = job
        self._with_result = with_result
        self._deps = deps
        self._position = position
        self._outlook: Outlook | None = None
        self._is_waiting = job.state is JobState.QUEUED
        self._heard_s = time.monotonic()
        self._pause_s = _FIRST_OUTLOOK_S  # the first second of a start has the most phases
        self._stream = job.stream_id
        self._is_led_over = False
        self._was_read = False
        self._is_validating = False

    def is_over(self, stream: JobId) -> bool:
        """True when the job has ended, and its stream was read: `stream`, or as much of it as another had."""
        if not self._was_read or not self.job.state.is_terminal:
            return False
        return stream == self.job.id or self._position.fault_at_end(self.job) is None

    async def moments(self, reader: LiveReader) -> AsyncGenerator[Moment, None]:
        """Events until the stream says that the job has ended, or the record does and the stream has been read; or
        until the job has another stream.
        """
        self._stream, self._is_led_over, self._was_read = self.job.stream_id, False, True
        while True:
            is_running = not (self._is_waiting or self.job.state.is_terminal)
            place = self._position.place
            entries = await _next(reader, _LOOK_AGAIN_S if is_running else self._pause_s)
            if self._position.place != place:  # tokens were written directly
                self._heard_s = time.monotonic()
            self._pause_s = min(2 * self._pause_s, _OUTLOOK_EVERY_S)
            if not entries and self._is_due():
                self.job = await job_now(self._deps, self.job, with_result=self._with_result)
                self._heard_s = time.monotonic()
                if self._is_behind():
                    entries = await _retry_for_a_moment(reader.catch_up)
                if not entries and await self._has_left():
                    return
            if entries:
                self._heard_s = time.monotonic()
                for moment in _checked(entries, self._position):
                    yield moment
                if await self._is_left_by(entries):
                    return
            elif self._is_waiting and (outlook := await self._news()) is not None:
                yield Moment(outlook=outlook)

    async def _has_left(self) -> bool:
        """True when the job has ended, or has another stream."""
        if self.job.stream_id != self._stream and not self.job.state.is_terminal:
            return True
        return self.job.state.is_terminal and await self.has_ended()

    async def _is_left_by(self, entries: Sequence[StreamEntry]) -> bool:
        """True when the job's stream is at its end with these entries."""
        for entry in entries:
            self._follow_plan(entry)
        state = last_state(entries, is_validating=self._is_validating)
        self._is_waiting = state is JobState.QUEUED
        if state is None or not state.is_terminal:
            return False
        if await self.has_ended() or self.job.stream_id != self._stream:
            return True
        if self._stream != self.job.id:  # the job that it follows has ended: soon it will, too
            self._is_led_over, self._pause_s = True, _FIRST_OUTLOOK_S
        return False

    def _follow_plan(self, entry: StreamEntry) -> None:
        """Which step is next, by what the stream says: the record was read before."""
        if self.job.plan is None:
            return
        if entry.kind is EntryKind.STEP and (step := self.job.plan.step(entry.step)) is not None:
            self._is_validating = step.is_after
            is_over = entry.step_status in (StepStatus.COMPLETED, StepStatus.SKIPPED)
            following = self.job.plan.next_after(step.name) if is_over else step.name
            self.job = replace(self.job, step=following)
        elif entry.state is JobState.QUEUED and self._is_validating:
            self.job = replace(self.job, step="")  # queued after it: for the next turn, or again
            self._is_validating = False

    def _is_due(self) -> bool:
        """True when the record should be read: it says that the job has ended, or the stream has been silent for
        long.
        """
        is_silent = time.monotonic() - self._heard_s >= _LOOK_AGAIN_S
        return is_silent or self._is_led_over or self.job.state.is_terminal

    def _is_behind(self) -> bool:
        """True when the record is ahead of the live tail, for example because this process was suspended."""
        if self._is_waiting:
            return self.job.state is not JobState.QUEUED
        place = self._position.place
        return self.job.state.is_terminal or place is None or place[0] != self.job.token_count

    async def has_ended(self) -> bool:
        """True when the record has ended as well: the job may have been redriven since."""
        self.job = await _ended(self._deps, self.job.id, with_result=self._with_result)
        self._is_waiting = self.job.state is JobState.QUEUED
        return self.job.state.is_terminal

    async def _news(self) -> Outlook | None:
        """The job's place in its queue, if that has changed."""
        self.job = replace(self.job, state=JobState.QUEUED)
        now, known = await outlook_of(self._deps, self.job), self._outlook
        if now is None or now == known:
            return None
        if known is None or now.phase != known.phase:
            self._pause_s = _FIRST_OUTLOOK_S  # the next phase may be short
        self._outlook = now
        return now


def _checked(entries: Sequence[StreamEntry], position: StreamPosition) -> Iterator[Moment]:
    """The entries as events, with breaks in the sequence marked."""
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


async def _position_at(deps: LiveDeps, job_id: JobId, after: str) -> StreamPosition | None:
    """The position of a reader that has seen everything up to a cursor; None when the stream no longer has the
    entry there.
    """
    if not after or cursor_order(after) == (0, 0):
        return StreamPosition(is_start=True)
    try:
        seen = await _retry_for_a_moment(lambda: deps.store.read_stream(job_id, before(after), 1))
    except ObjectGone:
        return StreamPosition(is_start=True)
    if not seen or seen[0].cursor != after:
        return None
    position = StreamPosition(is_start=False)
    position.advance(seen[0])
    return position


async def wait_for_end(deps: LiveDeps, job: Job, timeout_s: float) -> Job:
    """The ended job, or the job as it is after `timeout_s`."""
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
            job = await job_now(deps, job)
    return job


def last_state(entries: Sequence[StreamEntry], *, is_validating: bool = False) -> JobState | None:
    """The state in the newest of `entries` that has one; a step runs while its job waits for a predictor, or for the
    end (`is_validating`).
    """
    for entry in reversed(entries):
        match entry.kind:
            case EntryKind.STATE:
                return entry.state
            case EntryKind.ATTEMPT | EntryKind.TOKENS | EntryKind.TURN | EntryKind.CALL:
                return JobState.IN_PROGRESS
            case EntryKind.STEP:
                return JobState.IN_PROGRESS if is_validating else JobState.QUEUED
    return None


async def outlook_of(deps: LiveDeps, job: Job) -> Outlook | None:
    """The state of the wait of a job that is queued, or stands between two turns; None when it is not known."""
    if job.state is not JobState.QUEUED:
        return tool_outlook(job)
    try:
        async with asyncio.timeout(deps.store_timeout_s):
            return await deps.waiting.outlook(job)
    except (StoreUnavailable, TimeoutError):
        return None


async def _next(reader: LiveReader, timeout_s: float) -> list[StreamEntry]:
    try:
        return await reader.next(timeout_s)
    except Unavailable:
        await asyncio.sleep(min(timeout_s, 0.5))
        return []


async def job_now(deps: LiveDeps, job: Job, *, with_result: bool = True) -> Job:
    """The record of a job that has been silent for long, since a deleted job's stream has no more entries."""
    try:
        async with asyncio.timeout(deps.store_timeout_s):
            now = await deps.store.get(job.id, with_result=with_result)
    except (Unavailable, TimeoutError):
        return job
    if now is None:
        raise NotFound("the job was deleted")
    return now


async def _ended(deps: LiveDeps, job_id: JobId, *, with_result: bool) -> Job:
    """The record; it changed in the same step in which the stream got the entry of the end."""
    job = await _retry_for_a_moment(lambda: deps.store.get(job_id, with_result=with_result))
    if job is None:
        raise NotFound("the job was deleted")
    return job


async def _retry_for_a_moment(read: Callable[[], Awaitable[_Read]]) -> _Read:
    """The result of `read`, retried for two seconds. Raises `StoreUnavailable` and `ObjectsUnavailable`."""
    give_up_s = time.monotonic() + _AFTER_END_S
    while True:
        try:
            return await read()
        except Unavailable:
            if time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(0.1)

"""A job's life as it happens: one account of it, whatever carries it (SSE, WebSocket, long poll).

Called by the jobs' streams and OpenAI's. Must not know the wire form.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from api.front import Front, LiveReader, Outlook
from api.http.protocol import ResponseWriter
from eventing.errors import NotFound, StoreUnavailable
from eventing.job.job import Job, JobId, JobState
from eventing.job.store import EntryKind, StreamEntry
from eventing.live.stream_multiplexer import TokenCallback

_OUTLOOK_EVERY_S: Final = 1.0
_FIRST_OUTLOOK_S: Final = 0.05
_AFTER_END_S: Final = 2.0
_LOOK_AGAIN_S: Final = 15.0
_LOOK_UNASKED_S: Final = 2.0
"""A message that was lost costs who waits for the end as much."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened: entries of the stream, news of the wait, or the end (`job`)."""

    entries: tuple[StreamEntry, ...] = ()
    outlook: Outlook | None = None
    job: Job | None = None


async def moments(
    front: Front, job: Job, after: str, tap: TokenCallback | None = None
) -> AsyncGenerator[Moment, None]:
    """What happens to `job` after a cursor, until it has ended; the last moment carries the ended
    job. Tokens that `tap` takes are in no moment; it is called while the caller waits for one.

    Raises `ReaderCutOff` when the caller takes moments too slowly; it may come again with its last
    cursor. Raises `NotFound` when the job is deleted. A store that goes away for a while only makes
    a pause.
    """
    known: Outlook | None = None
    is_waiting = job.state is JobState.QUEUED
    pause_s = _FIRST_OUTLOOK_S  # waking has most to tell in its first second
    async with front.live.follow(job.id, after, tap) as reader:
        while True:
            is_running = not (is_waiting or job.state.is_terminal)
            entries = await _next(reader, _LOOK_AGAIN_S if is_running else pause_s)
            pause_s = min(2 * pause_s, _OUTLOOK_EVERY_S)
            if entries:
                yield Moment(entries=tuple(entries))
                state = last_state(entries)
                is_waiting = state is JobState.QUEUED
                if state is not None and state.is_terminal:
                    job = await _ended(front, job.id)
                    if job.state.is_terminal:  # it may have been redriven since
                        yield Moment(job=job)
                        return
                continue
            if job.state.is_terminal:
                yield Moment(job=job)
                return
            if is_running:
                job = await _as_it_is(front, job)
            elif is_waiting:
                job = replace(job, state=JobState.QUEUED)
                outlook = await outlook_of(front, job)
                if outlook is not None and outlook != known:
                    if known is None or outlook.phase != known.phase:
                        pause_s = _FIRST_OUTLOOK_S  # the next phase may be a short one
                    known = outlook
                    yield Moment(outlook=outlook)


async def wait_for_end(front: Front, job: Job, timeout_s: float) -> Job:
    """The job once it has ended, or as it is after `timeout_s`."""
    if job.state.is_terminal:
        return job
    give_up_s = front.clock.monotonic_s() + timeout_s
    with front.ends.expecting(job.id) as news:
        while not job.state.is_terminal:
            left_s = give_up_s - front.clock.monotonic_s()
            if left_s <= 0:
                return job
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _LOOK_UNASKED_S)):
                    await news.wait()
            news.clear()
            job = await _as_it_is(front, job)
    return job


def last_state(entries: list[StreamEntry]) -> JobState | None:
    """The state that the newest of `entries` with a say speaks of."""
    for entry in reversed(entries):
        match entry.kind:
            case EntryKind.STATE:
                return entry.state
            case EntryKind.ATTEMPT | EntryKind.TOKENS:
                return JobState.IN_PROGRESS
    return None


async def outlook_of(front: Front, job: Job) -> Outlook | None:
    """Where a queued job stands; None when nobody can tell now."""
    if job.state is not JobState.QUEUED:
        return None
    try:
        async with asyncio.timeout(front.settings.store_timeout_s):
            return await front.waiting.outlook(job)
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
    """A tap that writes tokens out as they come."""
    if wire is None:
        return None

    def tap(entries: Sequence[StreamEntry]) -> bool:
        return wire.write(b"".join(map(render, entries)))

    return tap


async def _as_it_is(front: Front, job: Job) -> Job:
    """The record of a job that has long been silent: one that was deleted says nothing more."""
    try:
        async with asyncio.timeout(front.settings.store_timeout_s):
            now = await front.store.get(job.id)
    except (StoreUnavailable, TimeoutError):
        return job
    if now is None:
        raise NotFound("the job is gone")
    return now


async def _ended(front: Front, job_id: JobId) -> Job:
    """The ended job; its record changed in the same step as the stream said so."""
    async with asyncio.timeout(_AFTER_END_S):
        while True:
            try:
                job = await front.store.get(job_id)
                break
            except StoreUnavailable:
                await asyncio.sleep(0.1)
    if job is None:
        raise NotFound("the job is gone")
    return job

"""Calls that are held open until their job has ended: answered, streamed, left by their client, or cut
off by the end of this process.

Called by `api.routes.openai` and `api.routes.responses`. Must not know what the answer looks like.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Message

from api.http.shutdown import Shutdown, ShuttingDown
from api.http.sse import Stream
from api.job.cut_off import CutOffCalls
from api.job.live import LiveDeps, wait_for_end
from api.routes.jobs import cancelled
from api.routes.route import Call
from api.view.outcome import CallFailed, still_running
from eventing.errors import NotFound, StoreUnavailable, TorporError, Unavailable, first_of
from eventing.job.job import Job, JobState
from eventing.job.store import JobIntake

_CANCEL_S: Final = 2.0
_NOTE_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDeps:
    """What holding a call needs."""

    store: JobIntake
    live: LiveDeps
    cut_off: CutOffCalls
    shutdown: Shutdown
    keep_alive_s: float
    sync_timeout_s: float


async def job_of_repeat(deps: HeldDeps, call: Call[Any], body: Mapping[str, Any]) -> Job | None:
    """The job of the same call, when an SDK repeats it because a process before us ended. A call
    with an Idempotency-Key finds its job by that.
    """
    count = call.request.headers.get("x-stainless-retry-count", "0")
    if "idempotency-key" in call.request.headers or not count.isdigit() or not int(count):
        return None
    tenant = call.principal.tenant
    job_id = await deps.cut_off.take(tenant, call.request.url.path, body)
    job = await deps.store.get(job_id) if job_id else None
    if job is None or job.tenant != tenant or job.state is JobState.CANCELLED:
        return None
    return job


def cancel_when_left(deps: HeldDeps, call: Call[Any], job: Job) -> Callable[[], Awaitable[None]]:
    """What to do when the client of a held call goes away: nobody else waits for the answer, unless
    an Idempotency-Key lets it come back.
    """

    async def cancel() -> None:
        if "idempotency-key" not in call.request.headers:
            await cancel_if_possible(deps, job)

    return cancel


async def cancel_if_possible(deps: HeldDeps, job: Job) -> None:
    """Cancel a job that nobody waits for any more. Where that fails, its deadline or its end will do."""
    with suppress(TimeoutError, Unavailable, NotFound):
        async with asyncio.timeout(_CANCEL_S):
            await cancelled(deps.store, job)


def stream_of(
    deps: HeldDeps,
    job: Job,
    frames: AsyncGenerator[bytes, None],
    *,
    gone: Callable[[], Awaitable[None]] | None,
    error_frame: Callable[[TorporError], bytes],
) -> Stream:
    """The response that streams `frames`; `gone` is called when the client leaves before its end. A
    stream that the end of the process cuts off ends in an error.
    """

    async def on_disconnect(_: Message) -> None:
        if gone is not None:
            await gone()

    return Stream(
        frames,
        keep_alive_s=deps.keep_alive_s,
        shutdown=deps.shutdown,
        farewell=lambda: error_frame(ShuttingDown()),
        on_disconnect=on_disconnect,
        headers={"torpor-job-id": job.id},
    )


async def ended_job(deps: HeldDeps, call: Call[Any], body: Mapping[str, Any], job: Job) -> Job:
    """The job once it has ended. Raises `CallFailed` when it has not in the time a call may be held,
    `ShuttingDown` when this process ends before; both name the job.
    """
    gone = cancel_when_left(deps, call, job)
    try:
        ended = await deps.shutdown.cut_off(_ended_or_left(deps, call.request, job, gone))
        if not ended.state.is_terminal:
            raise still_running(job)
    except ShuttingDown:
        await _note_cut_off(deps, call, body, job)
        raise
    return ended


async def _ended_or_left(
    deps: HeldDeps, request: Request, job: Job, gone: Callable[[], Awaitable[None]]
) -> Job:
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_when_left(request, gone))
            ended = await wait_for_end(deps.live, job, deps.sync_timeout_s)
            watch.cancel()
    except ExceptionGroup as errors:
        raise first_of(errors) from None
    return ended


async def _when_left(request: Request, gone: Callable[[], Awaitable[None]]) -> None:
    """Raises `CallFailed` once the client has left; nobody reads that, but the wait ends."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
    await gone()
    raise CallFailed("the client left", 499, "client_left")


async def _note_cut_off(deps: HeldDeps, call: Call[Any], body: Mapping[str, Any], job: Job) -> None:
    """Without the note the repeat makes a second job, as it would have before."""
    if "idempotency-key" in call.request.headers:
        return
    with suppress(TimeoutError, StoreUnavailable):
        async with asyncio.timeout(_NOTE_S):
            await deps.cut_off.note(call.principal.tenant, call.request.url.path, body, job.id)

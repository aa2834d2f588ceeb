"""Calls that are held open until their job has ended: answered, streamed, abandoned by the client, or cut off by a
shutdown.

Called by `api.routes.openai` and `api.routes.responses`. Must not know the form of the answer.
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
from api.view.cache import job_headers
from api.view.outcome import CallFailed, still_running
from eventing.errors import NotFound, StoreUnavailable, TorporError, Unavailable, first_of
from eventing.job.job import Job, JobState
from eventing.job.store import JobIntake

_CANCEL_S: Final = 2.0
_NOTE_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDeps:
    """The dependencies of held calls."""

    store: JobIntake
    live: LiveDeps
    cut_off: CutOffCalls
    shutdown: Shutdown
    keep_alive_s: float
    sync_timeout_s: float


async def job_of_repeat(deps: HeldDeps, call: Call[Any], body: Mapping[str, Any]) -> Job | None:
    """The first call's job, when an SDK repeats a call that a shutdown cut off. A call with an Idempotency-Key
    finds its job by the key.
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
    """The action when the client of a held call disconnects: cancel the job, unless an Idempotency-Key lets the
    client return.
    """

    async def cancel() -> None:
        if "idempotency-key" not in call.request.headers:
            await cancel_if_possible(deps, job)

    return cancel


async def cancel_if_possible(deps: HeldDeps, job: Job) -> None:
    """Cancel a job whose caller has left. When that fails, the job ends by itself or by its deadline."""
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
    """The response that streams `frames`; `gone` is called when the client disconnects early. A shutdown ends the
    stream with an error.
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
        headers=job_headers(job),
    )


async def ended_job(deps: HeldDeps, call: Call[Any], body: Mapping[str, Any], job: Job) -> Job:
    """The ended job. Raises `CallFailed` when it has not ended within the longest time allowed, `ShuttingDown` at
    shutdown; both name the job.
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
    """Raises `CallFailed` once the client has disconnected, which ends the wait."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
    await gone()
    raise CallFailed("the client left", 499, "client_left")


async def _note_cut_off(deps: HeldDeps, call: Call[Any], body: Mapping[str, Any], job: Job) -> None:
    """Record the call, so that its repeat finds the job instead of creating another."""
    if "idempotency-key" in call.request.headers:
        return
    with suppress(TimeoutError, StoreUnavailable):
        async with asyncio.timeout(_NOTE_S):
            await deps.cut_off.note(call.principal.tenant, call.request.url.path, body, job.id)

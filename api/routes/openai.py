"""OpenAI's chat completions, completions, embeddings and models, through the queue.

Called by `api.wiring`. A call is a job; it works from zero replicas, since the job waits for one. A
client that goes away cancels its job, unless an Idempotency-Key lets it come back.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from api.auth.principal import Scope
from api.http.problem import openai_error
from api.http.protocol import ResponseWriter, wire_of
from api.http.sse import Stream, comment, data_frame
from api.job.catalog import Catalog
from api.job.live import LiveDeps, moments, wait_for_end, write_directly
from api.job.stream_position import StreamBroken
from api.job.submission import SubmitDeps, parse_submit_options, submit
from api.openapi import openai as docs
from api.routes.jobs import accepted, cancelled, json_response
from api.routes.route import Call, Routes
from api.view.chunk import Chunker
from api.view.outcome import CallFailed, answer_of, failure_of, still_running
from api.view.outlook import outlook_view
from eventing.errors import InvalidJob, NotFound, TorporError, Unavailable, first_of
from eventing.job.job import Job, Lane
from eventing.job.store import Store, StreamEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIDeps:
    """What OpenAI's calls need."""

    submission: SubmitDeps
    live: LiveDeps
    store: Store
    catalog: Catalog
    keep_alive_s: float
    sync_timeout_s: float


routes: Routes[OpenAIDeps] = Routes()

DONE: Final = data_frame(b"[DONE]")
_CANCEL_S: Final = 2.0


@routes.operation("POST", "/v1/chat/completions", scope=Scope.JOBS_WRITE, doc=docs.CHAT_COMPLETIONS)
async def create_chat_completion(call: Call[OpenAIDeps]) -> Response:
    """Answer a conversation.

    As OpenAI's. `stream: true` sends chunks, with comments while a predictor wakes; `Prefer:
    respond-async` answers 202 and the job at once.
    """
    return await _serve(call, "/v1/chat/completions")


@routes.operation("POST", "/v1/completions", scope=Scope.JOBS_WRITE, doc=docs.COMPLETIONS)
async def create_completion(call: Call[OpenAIDeps]) -> Response:
    """Go on with a text.

    As OpenAI's, with the same additions as chat completions.
    """
    return await _serve(call, "/v1/completions")


@routes.operation("POST", "/v1/embeddings", scope=Scope.JOBS_WRITE, doc=docs.EMBEDDINGS)
async def create_embedding(call: Call[OpenAIDeps]) -> Response:
    """Turn texts into vectors.

    As OpenAI's; a model that makes no embeddings says so.
    """
    return await _serve(call, "/v1/embeddings")


@routes.operation("GET", "/v1/models", scope=Scope.JOBS_READ, doc=docs.LIST_MODELS)
async def list_models(call: Call[OpenAIDeps]) -> Response:
    """List the models served here, awake or asleep."""
    cards = call.deps.catalog.cards
    return json_response({"object": "list", "data": [_model(card.name) for card in cards]})


@routes.operation("GET", "/v1/models/{model:path}", scope=Scope.JOBS_READ, doc=docs.GET_MODEL)
async def retrieve_model(call: Call[OpenAIDeps]) -> Response:
    """Look at one model."""
    card = call.deps.catalog.card(call.request.path_params["model"])
    if card is None:
        raise NotFound("no such model here")
    return json_response(_model(card.name) | {"max_model_len": card.context_tokens})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "torpor"}


async def _serve(call: Call[OpenAIDeps], url: str) -> Response:
    body = await call.read_object()
    is_stream = _flag(body, "stream")
    has_usage = _has_usage(body)
    is_async = prefers_async(call.request)
    line = {"url": url, "body": {k: v for k, v in body.items() if k not in _OURS}}
    lane = Lane.DEFAULT if is_async else Lane.INTERACTIVE
    wish = parse_submit_options({"metadata": body.get("metadata")}, call.request.headers, lane=lane)
    job, _ = await submit(call.deps.submission, call.principal, line, wish)
    if is_async:
        return accepted_async(job)
    gone = None if wish.idempotency_key else cancelling(call.deps.store, job)
    if is_stream and url != "/v1/embeddings":
        wire = wire_of(call.request.scope)
        frames = _frames(call.deps.live, job, wire, has_usage=has_usage)
        return stream_of(job, frames, gone, keep_alive_s=call.deps.keep_alive_s)
    ended = await answer_or_cancel(
        call.request, call.deps.live, job, gone, call.deps.sync_timeout_s
    )
    if failure := failure_of(ended):
        raise failure
    return json_response(answer_of(ended), headers={"torpor-job-id": job.id})


_OURS: Final = ("stream", "stream_options")
"""How the answer travels is between the client and us; the job is the same."""


def stream_of(
    job: Job,
    frames: AsyncGenerator[bytes, None],
    gone: Callable[[], Awaitable[None]] | None,
    *,
    keep_alive_s: float,
) -> Stream:
    """The response that streams `frames`; `gone` is called when the client leaves before its
    end.
    """

    async def on_disconnect(_: Message) -> None:
        if gone is not None:
            await gone()

    return Stream(
        frames,
        keep_alive_s=keep_alive_s,
        on_disconnect=on_disconnect,
        headers={"torpor-job-id": job.id},
    )


async def _frames(
    deps: LiveDeps, job: Job, wire: ResponseWriter | None, *, has_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Chunks until the end; a failure half-way is an error in the stream, as OpenAI does it."""
    chunker = Chunker(job)

    def render(entry: StreamEntry) -> bytes:
        return b"".join(map(data_frame, chunker.chunks(entry)))

    yield comment(f"accepted {job.id}")
    try:
        async for moment in moments(deps, job, "", write_directly(wire, render)):
            if moment.fault is not None:
                raise StreamBroken(moment.fault, job)
            if moment.outlook is not None:
                yield comment("waiting " + orjson.dumps(outlook_view(moment.outlook)).decode())
            if frames := b"".join(map(render, moment.entries)):
                yield frames
            if moment.job is not None:
                yield _last_frames(chunker, moment.job, has_usage=has_usage)
                return
    except TorporError as error:
        yield data_frame(orjson.dumps(openai_error(error)))


def _last_frames(chunker: Chunker, job: Job, *, has_usage: bool) -> bytes:
    """What the end of `job` adds to its stream. Raises why there is no answer."""
    if failure := failure_of(job):
        raise failure
    chunks = list(chunker.unshown(job))
    if has_usage:
        chunks.append(chunker.usage(job.usage or _usage_of(job)))
    return b"".join(map(data_frame, chunks)) + DONE


def cancelling(store: Store, job: Job) -> Callable[[], Awaitable[None]]:
    """What to do when the client of a held call goes away: nobody else waits for the answer."""

    async def cancel() -> None:
        try:
            async with asyncio.timeout(_CANCEL_S):
                await cancelled(store, job)
        except (TimeoutError, Unavailable, NotFound):
            return  # its deadline, or its end, will do

    return cancel


async def answer_or_cancel(
    request: Request,
    deps: LiveDeps,
    job: Job,
    gone: Callable[[], Awaitable[None]] | None,
    timeout_s: float,
) -> Job:
    """The ended job. Raises `CallFailed` when it has not ended in the time a call may be held."""
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_when_left(request, gone))
            ended = await wait_for_end(deps, job, timeout_s)
            watch.cancel()
    except ExceptionGroup as errors:
        raise first_of(errors) from None
    if not ended.state.is_terminal:
        raise still_running(job)
    return ended


async def _when_left(request: Request, gone: Callable[[], Awaitable[None]] | None) -> None:
    """Raises `CallFailed` once the client has left; nobody reads that, but the wait ends."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
    if gone is not None:
        await gone()
    raise CallFailed("the client left", 499, "client_left")


def prefers_async(request: Request) -> bool:
    """RFC 7240: `Prefer: respond-async`, alone or among others."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(p.split(";")[0].strip().lower() == "respond-async" for p in preferences)


def accepted_async(job: Job) -> Response:
    """202, and says that the preference was kept."""
    answer = accepted(job)
    answer.headers["preference-applied"] = "respond-async"
    return answer


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidJob(f"{name} must be true or false", f"body.{name}")
    return bool(value)


def _has_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise InvalidJob("stream_options must be an object", "body.stream_options")
    return bool(options.get("include_usage"))


def _usage_of(job: Job) -> Any:
    return (job.result or {}).get("usage")

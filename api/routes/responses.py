"""OpenAI's Responses: create (background, streamed, both or neither), retrieve, resume, cancel, delete.

Called by `api.wiring`. A response is a chat job (`resp_x` is `job_x`); its stream is derived from the job's token
stream, so it survives a restart of this process.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from api.auth.principal import Scope
from api.http.parameter import AFTER, LIMIT, ORDER, Choice, Whole
from api.http.problem import openai_error
from api.http.protocol import writer_of
from api.http.sse import LINE_LIMIT_BYTES, frame
from api.job.conversation import named_items, read_ask, stored_response, submit_response
from api.job.live import job_now, moments, write_directly
from api.job.response.request import REQUEST_SCHEMA
from api.job.stream_position import StreamBroken
from api.job.submission import SubmitDeps
from api.openapi.operation import Body, Text
from api.routes.held import (
    HeldDeps,
    cancel_when_left,
    ended_job,
    job_of_repeat,
    stream_of,
)
from api.routes.jobs import cancelled, json_response, naming
from api.routes.openai import (
    GENERATING_HEADERS,
    GENERATING_REFUSES,
    preferences,
    prefers_async,
)
from api.routes.route import Call, Routes
from api.view.cache import cache_headers, job_headers
from api.view.outcome import CallRefused, failure_of
from api.view.page import Deleted, Page, page_of
from api.view.response import (
    ResponseView,
    output_items,
    response_id,
    response_view,
)
from api.view.response_stream import Event, Translator, without_repeats, without_text
from eventing.errors import BadRequest, NotFound, TorporError, WrongState
from eventing.job.job import Job
from eventing.job.stream import StreamEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseDeps:
    """The dependencies of `/v1/responses`."""

    submission: SubmitDeps
    held: HeldDeps


routes: Routes[ResponseDeps] = Routes("openai")

_CHAIN_LIMIT: Final = 100
_STREAM: Final = Choice("stream", "Send the events", words=("false", "true"))
_STARTING_AFTER: Final = Whole(
    "starting_after", "Only events after this number", least=0, most=999_999_999, default=-1
)


RESPONSE_REQUEST: Final = Body("ResponseRequest", REQUEST_SCHEMA)
_EVENTS: Final = Text(
    "",
    "text/event-stream",
    'id: 0\nevent: response.created\ndata: {"type":"response.created","sequence_number":0,'
    '"response":{"id":"resp_0123456789abcdef01234567","status":"queued"}}\n\n',
)


class ItemList(Page):
    """A page of items."""

    data: list[Mapping[str, Any]]


@routes.operation(
    "POST",
    "/v1/responses",
    Scope.JOBS_WRITE,
    parameters=GENERATING_HEADERS,
    body=RESPONSE_REQUEST,
    answers={200: (ResponseView, _EVENTS), 202: ResponseView},
    refuses=GENERATING_REFUSES,
)
async def create_response(call: Call[ResponseDeps]) -> Response:
    """Create a response.

    As at OpenAI. `background: true` answers at once with a queued response; `stream: true` sends events, which a
    reader of a background response can resume after a disconnect.
    """
    body = await call.read_object()
    is_async = prefers_async(call.request)
    if is_async:
        body["background"] = True
    ask = await read_ask(
        call.deps.submission,
        call.deps.held.store,
        call.principal,
        body,
        headers=call.request.headers,
    )
    if ask.is_stream:
        await call.hold_stream()
    held, is_held = call.deps.held, not (ask.is_stream or ask.is_background)
    job = await job_of_repeat(held, call, body) if is_held else None
    job = job or await submit_response(
        call.deps.submission,
        held.store,
        call.principal,
        ask,
        body.get("metadata"),
        call.request.headers,
    )
    if ask.is_stream and not is_async:
        gone = None if ask.is_background else cancel_when_left(held, call, job)
        return _stream(call, job, ask.record, after=-1, gone=gone)
    if ask.is_background:
        status = 202 if is_async else 200
        headers = {"location": f"/v1/responses/{response_id(job.id)}"} | cache_headers(job)
        if is_async:
            headers["preference-applied"] = "respond-async"
        return json_response(response_view(job, ask.record), status=status, headers=headers)
    with naming(job):
        ended = await ended_job(held, call, body, job)
        if isinstance(failure := failure_of(ended), CallRefused):
            raise failure
    return json_response(response_view(ended, ask.record), headers=job_headers(ended))


@routes.operation(
    "GET",
    "/v1/responses/{id}",
    Scope.JOBS_READ,
    parameters=(_STREAM, _STARTING_AFTER),
    answers={200: (ResponseView, _EVENTS)},
)
async def retrieve_response(call: Call[ResponseDeps]) -> Response:
    """Retrieve a response, or resume its stream.

    `stream=true&starting_after=N` sends the events after number N, of a response that was created with `background`
    and `stream`.
    """
    query = call.request.query_params
    job, record = await _own(call)
    if _STREAM.of(query) == "false":
        return json_response(response_view(job, record))
    if not (record["background"] and record["stream"]):
        reason = "background=true" if not record["background"] else "stream=true"
        raise BadRequest(
            f"This response cannot be streamed because it was not created with {reason}.", "stream"
        )
    last = _STARTING_AFTER.of(query)
    await call.hold_stream()
    return _stream(call, job, record, after=last, gone=None)


@routes.operation(
    "POST", "/v1/responses/{id}/cancel", Scope.JOBS_CANCEL, answers=ResponseView, refuses=(400,)
)
async def cancel_response(call: Call[ResponseDeps]) -> Response:
    """Cancel a background response. Idempotent: the answer is the response as it is."""
    job, record = await _own(call)
    if not record["background"]:
        raise WrongState("only a response that was created with background=true can be cancelled")
    return json_response(response_view(await cancelled(call.deps.held.store, job), record))


@routes.operation("DELETE", "/v1/responses/{id}", Scope.JOBS_WRITE, answers=Deleted)
async def delete_response(call: Call[ResponseDeps]) -> Response:
    """Delete a response, cancelling it first if it runs."""
    job, _ = await _own(call, with_result=False)
    await cancelled(call.deps.held.store, job)
    await call.deps.held.store.delete(job.id)
    return json_response({"id": response_id(job.id), "object": "response", "deleted": True})


@routes.operation(
    "GET",
    "/v1/responses/{id}/input_items",
    Scope.JOBS_READ,
    parameters=(LIMIT, ORDER, AFTER),
    answers=ItemList,
)
async def list_input_items(call: Call[ResponseDeps]) -> Response:
    """List the input of a response, including earlier responses of its conversation."""
    query = call.request.query_params
    limit, order = LIMIT.of(query), ORDER.of(query)
    items = await _all_items(call)
    if order == "desc":
        items.reverse()
    return json_response(page_of(items, query, limit, "an item of this response"))


async def _own(call: Call[ResponseDeps], *, with_result: bool = True) -> tuple[Job, dict[str, Any]]:
    """The tenant's response with that id. Raises `NotFound`."""
    response = call.request.path_params["id"]
    store = call.deps.held.store
    return await stored_response(store, call.principal, response, with_result=with_result)


async def _all_items(call: Call[ResponseDeps]) -> list[dict[str, Any]]:
    """Oldest first. A conversation whose beginning was deleted starts with what is left."""
    job, record = await _own(call)
    turns: list[list[dict[str, Any]]] = [named_items(job, record)]
    while (previous := record.get("previous_response_id")) and len(turns) < _CHAIN_LIMIT:
        try:
            job, record = await stored_response(call.deps.held.store, call.principal, previous)
        except NotFound:
            break
        turns.append([*named_items(job, record), *output_items(job, record)])
    return [item for turn in reversed(turns) for item in turn]


def _stream(
    call: Call[ResponseDeps],
    job: Job,
    record: Mapping[str, Any],
    *,
    after: int,
    gone: Callable[[], Awaitable[None]] | None,
) -> Response:
    translator = Translator(job, record)
    frames = _frames(
        call, job, translator, _Dump(after, has_short_lines=_reads_short(call.request))
    )

    def error_frame(error: TorporError) -> bytes:
        return _error_frame(translator, error)

    return stream_of(call.deps.held, job, frames, gone=gone, error_frame=error_frame)


def _reads_short(request: Request) -> bool:
    """Whether the reader of a stream can not take long lines: aiohttp's own (128 KiB), or one that says so."""
    preferred = preferences(request)
    is_limited = "aiohttp/" in request.headers.get("user-agent", "").lower()
    return "return=minimal" in preferred or (
        is_limited and "return=representation" not in preferred
    )


async def _frames(
    call: Call[ResponseDeps], job: Job, translator: Translator, dump: "_Dump"
) -> AsyncGenerator[bytes, None]:
    """The events. The whole stream is read each time, since readers are known by event numbers only."""

    def render(entry: StreamEntry) -> bytes:
        return dump(translator.feed(entry))

    writer = writer_of(call.request.scope)
    on_tokens = write_directly(writer, lambda tokens: render(tokens.parsed()))
    yield dump(translator.begin())
    try:
        async for moment in moments(call.deps.held.live, job, "", on_tokens):
            if moment.fault is not None:
                raise StreamBroken(moment.fault, job)
            if translator.needs_record(moment.entries):
                translator.know(await job_now(call.deps.held.live, job, with_result=False))
            frames = b"".join(map(render, moment.entries))
            if moment.job is not None:
                frames += dump(translator.end(moment.job))
            if frames:
                yield frames
            await asyncio.sleep(0)  # a long stream that is read again must not hold up the others
    except TorporError as error:
        yield _error_frame(translator, error)


def _error_frame(translator: Translator, error: TorporError) -> bytes:
    return _frame(translator.error(openai_error(error)["error"]))


class _Dump:
    """Events numbered above `after` as frames. Of one that is too long for a line, the fields that only repeat the
    request are left out; for a reader of short lines, so is the text that the deltas before told.
    """

    def __init__(self, after: int, *, has_short_lines: bool) -> None:
        self._after = after
        self._has_short_lines = has_short_lines

    def __call__(self, events: Iterable[Event]) -> bytes:
        return b"".join(
            self._fitting(event) for event in events if event["sequence_number"] > self._after
        )

    def _fitting(self, event: Event) -> bytes:
        made = _frame(event)
        if len(made) > LINE_LIMIT_BYTES:
            made = _frame(without_repeats(event))
        if len(made) <= LINE_LIMIT_BYTES or not self._has_short_lines:
            return made
        shorter = without_text(event)
        return b"" if shorter is None else _frame(shorter)


def _frame(event: Event) -> bytes:
    return frame(event["type"], event, cursor=str(event["sequence_number"]))

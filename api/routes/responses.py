"""OpenAI's Responses: background, streamed, both or neither; look, go on, cancel, forget.

Called by `api.wiring`. A response is a chat job (`resp_x` is `job_x`); its stream is derived from the
job's token stream, so it outlives this process.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

from api.auth.principal import Scope
from api.http.problem import openai_error
from api.http.protocol import wire_of
from api.http.sse import LINE_LIMIT_BYTES, frame
from api.job.conversation import named_items, read_ask, stored_response, submit_response
from api.job.live import moments, write_directly
from api.job.stream_position import StreamBroken
from api.job.submission import SubmitDeps
from api.openapi import openai as docs
from api.routes.held import (
    HeldDeps,
    cancel_when_left,
    ended_job,
    job_of_repeat,
    stream_of,
)
from api.routes.jobs import cancelled, json_response, naming, whole_number
from api.routes.openai import prefers_async
from api.routes.route import Call, Routes
from api.view.outcome import CallRefused, failure_of
from api.view.response import (
    output_items,
    response_id,
    response_view,
)
from api.view.response_stream import Translator, without_repeats
from eventing.errors import BadRequest, NotFound, TorporError, WrongState
from eventing.job.job import Job
from eventing.job.store import StreamEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseDeps:
    """What `/v1/responses` needs."""

    submission: SubmitDeps
    held: HeldDeps


routes: Routes[ResponseDeps] = Routes()

_CHAIN_LIMIT: Final = 100


@routes.operation("POST", "/v1/responses", scope=Scope.JOBS_WRITE, doc=docs.CREATE_RESPONSE)
async def create_response(call: Call[ResponseDeps]) -> Response:
    """Create a response.

    As OpenAI's. `background: true` answers at once with a queued response; `stream: true` sends
    events, which a background response's reader can take up again after any break.
    """
    body = await call.read_object()
    is_async = prefers_async(call.request)
    if is_async:
        body["background"] = True
    ask = await read_ask(call.deps.submission, call.deps.held.store, call.principal, body)
    if ask.is_stream:
        call.check_stream_room()
    held, is_held = call.deps.held, not (ask.is_stream or ask.is_background)
    job = await job_of_repeat(held, call, body) if is_held else None
    job = job or await submit_response(
        call.deps.submission, call.principal, ask, body.get("metadata"), call.request.headers
    )
    if ask.is_stream and not is_async:
        gone = None if ask.is_background else cancel_when_left(held, call, job)
        return _stream(call, job, ask.record, after=-1, gone=gone)
    if ask.is_background:
        status = 202 if is_async else 200
        headers = {"location": f"/v1/responses/{response_id(job.id)}"}
        if is_async:
            headers["preference-applied"] = "respond-async"
        return json_response(response_view(job, ask.record), status=status, headers=headers)
    with naming(job):
        ended = await ended_job(held, call, body, job)
        if isinstance(failure := failure_of(ended), CallRefused):
            raise failure
    return json_response(response_view(ended, ask.record), headers={"torpor-job-id": job.id})


@routes.operation("GET", "/v1/responses/{id}", scope=Scope.JOBS_READ, doc=docs.GET_RESPONSE)
async def retrieve_response(call: Call[ResponseDeps]) -> Response:
    """Look at a response, or go on with its stream.

    `stream=true&starting_after=N` sends the events after number N, of a response that was created
    with `background` and `stream`.
    """
    query = call.request.query_params
    job, record = await _own(call)
    is_stream = query.get("stream", "false").lower()
    if is_stream not in ("true", "false"):
        raise BadRequest("stream must be true or false", "stream")
    if is_stream == "false":
        return json_response(response_view(job, record))
    if not (record["background"] and record["stream"]):
        reason = "background=true" if not record["background"] else "stream=true"
        raise BadRequest(
            f"This response cannot be streamed because it was not created with {reason}.", "stream"
        )
    last = whole_number(query, "starting_after", default=-1, least=0, most=999_999_999)
    call.check_stream_room()
    return _stream(call, job, record, after=last, gone=None)


@routes.operation(
    "POST", "/v1/responses/{id}/cancel", scope=Scope.JOBS_CANCEL, doc=docs.CANCEL_RESPONSE
)
async def cancel_response(call: Call[ResponseDeps]) -> Response:
    """Cancel a background response. Idempotent: the answer is the response as it is."""
    job, record = await _own(call)
    if not record["background"]:
        raise WrongState("only a response that was created with background=true can be cancelled")
    return json_response(response_view(await cancelled(call.deps.held.store, job), record))


@routes.operation("DELETE", "/v1/responses/{id}", scope=Scope.JOBS_WRITE, doc=docs.DELETE_RESPONSE)
async def delete_response(call: Call[ResponseDeps]) -> Response:
    """Forget a response, cancelling it first if it runs."""
    job, _ = await _own(call)
    await cancelled(call.deps.held.store, job)
    await call.deps.held.store.delete(job.id)
    return json_response({"id": response_id(job.id), "object": "response", "deleted": True})


@routes.operation(
    "GET", "/v1/responses/{id}/input_items", scope=Scope.JOBS_READ, doc=docs.INPUT_ITEMS
)
async def list_input_items(call: Call[ResponseDeps]) -> Response:
    """List what a response was given, earlier responses of its conversation included."""
    query = call.request.query_params
    limit = whole_number(query, "limit", default=20, least=1, most=100)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("order must be asc or desc", "order")
    items = await _all_items(call)
    if order == "desc":
        items.reverse()
    if after := query.get("after"):
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise BadRequest("after must be the id of an item of this response", "after")
        items = items[places[0] + 1 :]
    page = items[:limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


async def _own(call: Call[ResponseDeps]) -> tuple[Job, dict[str, Any]]:
    """The tenant's response of that id. Raises `NotFound`."""
    return await stored_response(
        call.deps.held.store, call.principal, call.request.path_params["id"]
    )


async def _all_items(call: Call[ResponseDeps]) -> list[dict[str, Any]]:
    """Oldest first. A conversation whose beginning was forgotten starts where it is remembered."""
    job, record = await _own(call)
    turns: list[list[dict[str, Any]]] = [named_items(job, record)]
    while (previous := record.get("previous_response_id")) and len(turns) < _CHAIN_LIMIT:
        try:
            job, record = await stored_response(call.deps.held.store, call.principal, previous)
        except NotFound:
            break
        turns.append([*named_items(job, record), *output_items(job)])
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
    frames = _frames(call, job, translator, after=after)

    def error_frame(error: TorporError) -> bytes:
        return _error_frame(translator, error)

    return stream_of(call.deps.held, job, frames, gone=gone, error_frame=error_frame)


async def _frames(
    call: Call[ResponseDeps], job: Job, translator: Translator, *, after: int
) -> AsyncGenerator[bytes, None]:
    """Events numbered above `after`. The whole stream is read each time; only numbers tell what a
    reader has seen.
    """

    def render(entry: StreamEntry) -> bytes:
        return _dump(translator.feed(entry), after)

    on_tokens = write_directly(wire_of(call.request.scope), render)
    yield _dump(translator.begin(), after)
    try:
        async for moment in moments(call.deps.held.live, job, "", on_tokens):
            if moment.fault is not None:
                raise StreamBroken(moment.fault, job)
            frames = b"".join(map(render, moment.entries))
            if moment.job is not None:
                frames += _dump(translator.end(moment.job), after)
            if frames:
                yield frames
            await asyncio.sleep(0)  # a long stream that is read again must not hold up the others
    except TorporError as error:
        yield _error_frame(translator, error)


def _error_frame(translator: Translator, error: TorporError) -> bytes:
    return _dump([translator.error(openai_error(error)["error"])], -1)


def _dump(events: Iterable[dict[str, Any]], after: int) -> bytes:
    numbered = ((event["sequence_number"], event) for event in events)
    return b"".join(_event_frame(event, n) for n, event in numbered if n > after)


def _event_frame(event: dict[str, Any], number: int) -> bytes:
    """The event; one that is too long for a line leaves out what only repeats the request."""
    made = frame(event["type"], event, cursor=str(number))
    if len(made) > LINE_LIMIT_BYTES:
        made = frame(event["type"], without_repeats(event), cursor=str(number))
    return made

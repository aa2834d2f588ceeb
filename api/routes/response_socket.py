"""Responses over a WebSocket: `response.create` messages in, the events of streamed responses out.

Called by `api.wiring`. One response at a time, as in the Open Responses specification (WebSocket Transport); the
last response is remembered for as long as the connection lasts, so that responses that are not stored can be
continued.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
from fastapi import APIRouter
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.auth.principal import Principal, Scope
from api.http.body import parse_object
from api.http.problem import openai_error, openai_status
from api.http.shutdown import ShuttingDown
from api.job.conversation import chat_line, read_ask, said_in, submit_response
from api.job.live import job_now, moments
from api.job.response.request import Ask, flag
from api.job.stream_position import StreamBroken
from api.routes.held import cancel_if_possible
from api.routes.responses import ResponseDeps
from api.routes.route import Access
from api.routes.socket import REVOKED, caller_of, told_refusals
from api.view.response import response_id
from api.view.response_stream import Event, Translator, without_text
from eventing.errors import BadRequest, TorporError
from eventing.job.job import Job, JobState, new_job_id, parse_request
from eventing.process.body import BodyTooLarge
from eventing.store.conversation.messages import Message

PATH: Final = "/v1/responses"

_NORMAL: Final = 1000
_RESTARTING: Final = 1012
_TOO_MANY: Final = 1008
_WAITING: Final = 16
"""Calls that a client may send ahead; they are answered one by one."""
_LARGEST_BYTES: Final = 1000 * 1024
"""Longest message, where we can help it: default readers take 1 MiB (Python's `websockets`)."""


class LimitReached(BadRequest):
    """The connection was open for the longest time allowed."""

    code = "websocket_connection_limit_reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSocketDeps:
    """The dependencies of the WebSocket."""

    access: Access
    responses: ResponseDeps
    call_bytes: int
    longest_s: float


def router(deps: ResponseSocketDeps) -> APIRouter:
    """The WebSocket's route."""

    async def converse(socket: WebSocket) -> None:
        access = deps.access
        with ExitStack() as held:
            async with told_refusals(socket):
                principal = await caller_of(socket, access.authenticator, Scope.JOBS_WRITE)
                held.enter_context(access.streams.counted(principal))
                await access.streams.turn()
            held.enter_context(deps.responses.held.shutdown.farewell())
            await socket.accept()
            await _Connection(deps, socket, principal).run()

    return APIRouter(routes=[WebSocketRoute(PATH, converse)])


class _Connection:
    """One client's connection. `_last` is the newest response and the conversation up to its end."""

    def __init__(self, deps: ResponseSocketDeps, socket: WebSocket, principal: Principal) -> None:
        self._deps = deps
        self._socket = socket
        self._principal = principal
        self._calls: asyncio.Queue[bytes] = asyncio.Queue(_WAITING)
        self._last: tuple[str, Sequence[Message]] | None = None
        self._running: Job | None = None
        self._ends_s = asyncio.get_running_loop().time() + deps.longest_s

    async def run(self) -> None:
        """Serve until the client disconnects, its key is revoked, or this process shuts down."""
        held = self._deps.responses.held
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen())
            revoked = group.create_task(self._deps.access.streams.until_revoked(self._principal))
            ending = group.create_task(held.shutdown.wait())
            others = {group.create_task(self._serve()), revoked, ending}
            await asyncio.wait({listening, *others}, return_when=asyncio.FIRST_COMPLETED)
            is_ending, is_revoked, has_left = ending.done(), revoked.done(), listening.done()
            for task in others:
                task.cancel()
            with suppress(WebSocketDisconnect, RuntimeError):
                if is_ending:
                    await self._send(_error_event(ShuttingDown()))
                    await self._socket.close(_RESTARTING, "this process is shutting down")
                elif is_revoked:
                    await self._socket.close(REVOKED, "the key of this connection was revoked")
            listening.cancel()
        if has_left and not is_ending and self._running is not None:
            await cancel_if_possible(held, self._running)

    async def _listen(self) -> None:
        """Returns when the client has disconnected, or has sent too many calls ahead."""
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            data = message.get("bytes") or (message.get("text") or "").encode()
            try:
                self._calls.put_nowait(data)
            except asyncio.QueueFull:
                reason = f"{_WAITING} calls wait already; send one when the one before has ended"
                await self._socket.close(_TOO_MANY, reason)
                return

    async def _serve(self) -> None:
        try:
            while (call := await self._next()) is not None:
                await self._answer(call)
            seconds = f"{self._deps.longest_s:g} s"
            limit = LimitReached(f"a connection is served for {seconds}; open a new one", "type")
            await self._send(_error_event(limit))
            await self._socket.close(_NORMAL)
        except (WebSocketDisconnect, RuntimeError):
            return  # it left in the middle of a message

    async def _next(self) -> bytes | None:
        """The next call, or None once the connection's time is over."""
        if asyncio.get_running_loop().time() >= self._ends_s:
            return None
        try:
            async with asyncio.timeout_at(self._ends_s):
                return await self._calls.get()
        except TimeoutError:
            return None

    async def _answer(self, raw: bytes) -> None:
        """One turn. When it fails, the conversation is forgotten (specification, WebSocket Continuation)."""
        last, self._last = self._last, None
        previous = None
        try:
            body = _call_of(raw, self._deps.call_bytes)
            previous = body.get("previous_response_id")
            is_prepared = body.pop("generate", None) is False
            is_on = last is not None and last[0] == previous
            await self._deps.access.gate.enter(self._principal, "POST")
            ask = await self._ask(body, last[1] if last is not None and is_on else None)
            if is_prepared:
                ended = await self._prepared(ask)
                job = ended
            else:
                job = self._running = await self._submitted(ask, body)
                ended = await self._tell(job, ask)
                self._running = None
            if ended.state in (JobState.COMPLETED, JobState.INCOMPLETE):
                self._last = (response_id(job.id), said_in(ended, ask.record))
        except TorporError as error:
            self._running = None
            if last is not None and last[0] != previous:
                self._last = last
            await self._send(_error_event(error))

    async def _ask(self, body: Mapping[str, Any], said: Sequence[Message] | None) -> Ask:
        deps = self._deps.responses
        return await read_ask(deps.submission, deps.held.store, self._principal, body, said)

    async def _submitted(self, ask: Ask, body: Mapping[str, Any]) -> Job:
        headers = {
            name: text
            for name, text in self._socket.headers.items()
            if name in ("traceparent", "x-request-id")
        }
        deps = self._deps.responses
        return await submit_response(
            deps.submission, deps.held.store, self._principal, ask, body.get("metadata"), headers
        )

    async def _prepared(self, ask: Ask) -> Job:
        """A response without output (`generate: false`), to be continued on this connection; no predictor is used.
        Raises as a submit does.
        """
        submission = self._deps.responses.submission
        request = parse_request(chat_line(ask))
        await submission.catalog.check(request)
        now_ms = submission.clock.wall_ms()
        job = Job(id=new_job_id(), state=JobState.IN_PROGRESS, request=request, created_ms=now_ms)
        ended = replace(job, state=JobState.COMPLETED, finished_ms=now_ms)
        translator = Translator(job, ask.record)
        await self._send_all((*translator.begin(), *translator.end(ended)))
        return ended

    async def _tell(self, job: Job, ask: Ask) -> Job:
        """The ended job, after its events were sent. Raises the reason when they could not be sent."""
        translator, ended = Translator(job, ask.record), job
        await self._send_all(translator.begin())
        async for moment in moments(self._deps.responses.held.live, job, ""):
            if moment.fault is not None:
                raise StreamBroken(moment.fault, job)
            if translator.needs_record(moment.entries):
                live = self._deps.responses.held.live
                translator.know(await job_now(live, job, with_result=False))
            for entry in moment.entries:
                await self._send_all(translator.feed(entry))
            if moment.job is not None:
                ended = moment.job
                await self._send_all(translator.end(ended))
        return ended

    async def _send_all(self, events: Iterable[Event]) -> None:
        for event in events:
            await self._send(event)

    async def _send(self, event: Event) -> None:
        text = orjson.dumps(event)
        if len(text) > _LARGEST_BYTES:
            shorter = without_text(event)
            if shorter is None:
                return
            text = orjson.dumps(shorter)
        await self._socket.send_text(text.decode())


def _call_of(raw: bytes, most_bytes: int) -> dict[str, Any]:
    """The call in a message, as a streamed one. Raises `BadRequest` and its kin."""
    if len(raw) > most_bytes:
        raise BodyTooLarge(f"a message may have {most_bytes} bytes", "body")
    body = parse_object(raw)
    if body.pop("type", None) != "response.create":
        raise BadRequest("type must be response.create", "type")
    flag(body, "generate")
    for name, only in (("stream", True), ("background", False)):
        if body.pop(name, None) not in (None, only):
            raise BadRequest(f"{name} must be left out on a WebSocket", name)
    if body.pop("stream_id", None) is not None:
        raise BadRequest("stream_id: this connection answers one call at a time", "stream_id")
    return body | {"stream": True}


def _error_event(error: TorporError) -> Event:
    """The specification's error of a WebSocket."""
    return {"type": "error", "status": openai_status(error), **openai_error(error)}

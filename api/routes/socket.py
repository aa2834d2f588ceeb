"""A job's events over a WebSocket: the same as over SSE, for clients without SSE.

Called by `api.wiring`. Each message is one JSON object `{event, id, data}`; `?after=` takes the id of the last one
received. Must not know how tokens are made.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import orjson
from fastapi import APIRouter
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from api.auth.principal import Authenticator, Principal, Scope
from api.http.problem import error_response
from api.job.live import LiveDeps
from api.limit.open_streams import OpenStreams
from api.routes.jobs import own_job
from api.routes.stream import END, job_events, parse_cursor
from eventing.errors import Forbidden, NotFound, TorporError, Unavailable
from eventing.job.job import Job
from eventing.job.store import JobReader
from eventing.live.stream_multiplexer import ReaderCutOff

PATH = "/v1/jobs/{id}/ws"

_NORMAL: Final = 1000
"""Close code after the job's end; any other code means that the stream is incomplete."""
_TRY_AGAIN_LATER: Final = 1013
REVOKED: Final = 4401
_GONE: Final = 4404


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketDeps:
    """The dependencies of a job's WebSocket."""

    authenticator: Authenticator
    streams: OpenStreams
    store: JobReader
    live: LiveDeps


def router(deps: SocketDeps) -> APIRouter:
    """The WebSocket's route."""

    async def follow(socket: WebSocket) -> None:
        await follow_job_socket(deps, socket)

    return APIRouter(routes=[WebSocketRoute(PATH, follow)])


async def follow_job_socket(deps: SocketDeps, socket: WebSocket) -> None:
    """Send the job's events and close; messages from the client are ignored."""
    text = socket.query_params.get("after", "")
    with ExitStack() as held:
        async with told_refusals(socket):
            principal = await caller_of(socket, deps.authenticator, Scope.JOBS_READ)
            held.enter_context(deps.streams.counted(principal))
            await deps.streams.turn()
            after = parse_cursor(text)
            job = await own_job(deps.store, principal, socket.path_params["id"], with_result=False)
        await socket.accept()
        if text.endswith(END) and job.state.is_terminal:
            await socket.close(_NORMAL)
            return
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(_send(socket, deps.live, job, after))
            listening = group.create_task(_listen(socket))
            revoked = group.create_task(deps.streams.until_revoked(principal))
            tasks = {sending, listening, revoked}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if revoked.done():
                await socket.close(REVOKED, "the key of this stream was revoked")
            for task in tasks:
                task.cancel()


@asynccontextmanager
async def told_refusals(socket: WebSocket) -> AsyncIterator[None]:
    """A refusal inside is the answer to the handshake."""
    try:
        yield
    except TorporError as error:
        await socket.send_denial_response(error_response(socket.url.path, error))
        # uvicorn logs an error when the handler returns without accepting or closing.
        raise ClientDisconnected from None


async def caller_of(socket: WebSocket, authenticator: Authenticator, scope: Scope) -> Principal:
    """Who opens the socket. Raises why it may not."""
    _check_origin(socket)
    principal = await authenticator.principal_of(socket)
    principal.require(scope)
    return principal


async def _send(socket: WebSocket, deps: LiveDeps, job: Job, after: str) -> None:
    try:
        try:
            async for name, data, cursor in job_events(deps, job, after):
                message = {"event": name, "id": cursor or None, "data": data}
                await socket.send_text(orjson.dumps(message).decode())
        except NotFound:
            await socket.close(_GONE, "the job was deleted")
        except (ReaderCutOff, Unavailable) as error:
            await socket.close(_TRY_AGAIN_LATER, error.message)
        else:
            await socket.close(_NORMAL)
    except (WebSocketDisconnect, RuntimeError):
        return  # the client disconnected during a message


async def _listen(socket: WebSocket) -> None:
    """Returns when the client has disconnected."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        continue


def _check_origin(socket: WebSocket) -> None:
    """Browsers send the page's origin; where no key is required, another site's page must not read along."""
    origin = socket.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != socket.headers.get("host"):
        raise Forbidden("pages of another site may not open this socket")

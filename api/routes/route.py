"""Turns handlers into routes: authentication, limits and the OpenAPI entry.

Called by every module with handlers, which declares what its handlers need (`D`), and by `api.wiring`, which
provides it. FastAPI's own argument parsing is not used: it costs more than the whole submit, and its 422 bodies
have another format.
"""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from inspect import cleandoc
from typing import Any, Generic, Protocol, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Send
from starlette.types import Scope as ASGIScope

from api.auth.principal import Authenticator, Principal, Scope
from api.http.body import read_object
from api.http.idempotency import Replay
from api.http.parameter import IDEMPOTENCY_KEY, Parameter
from api.http.sse import Stream
from api.limit.open_streams import OpenStreams, StreamHold
from api.openapi.operation import SECURITY, Answers, Body, Doc
from eventing.process.body import BodyReader

D = TypeVar("D")


class Gate(Protocol):
    """The limits on calls: asked for every call, once the caller is known."""

    async def enter(self, principal: Principal, method: str) -> None:
        """Return to admit the call; raise the refusal otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The checks before every handler. Nothing here has a default: a route cannot be made without an authenticator."""

    authenticator: Authenticator
    gate: Gate
    replay: Replay
    bodies: BodyReader
    streams: OpenStreams


@dataclass(frozen=True, slots=True)
class Call(Generic[D]):
    """One authenticated call, and its handler's dependencies."""

    request: Request
    principal: Principal
    bodies: BodyReader
    streams: OpenStreams
    deps: D
    held: ExitStack

    async def hold_stream(self) -> None:
        """Count the stream that the response is going to be, and wait for its turn. Raises `RateLimited` when the
        tenant has the largest allowed number of open streams.
        """
        self.held.enter_context(self.streams.counted(self.principal))
        await self.streams.turn()

    async def read(self) -> bytes:
        """The body. Raises `BadRequest` and its subclasses."""
        return await self.bodies.read(self.request)

    async def read_object(self) -> dict[str, Any]:
        """The body as a JSON object. Raises `BadRequest` and its subclasses."""
        return await read_object(self.bodies, self.request)


Handler = Callable[[Call[D]], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation(Generic[D]):
    method: str
    path: str
    scope: Scope
    doc: Doc
    replays: bool
    is_public: bool
    handler: Handler[D]


class Routes(Generic[D]):
    """The operations of one module, whose handlers need `D`. `tag` is their heading in the OpenAPI document."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._operations: list[_Operation[D]] = []

    def operation(
        self,
        method: str,
        path: str,
        scope: Scope,
        *,
        answers: Answers,
        parameters: tuple[Parameter, ...] = (),
        body: Body | None = None,
        refuses: tuple[int, ...] = (),
        replays: bool = False,
        is_public: bool = True,
    ) -> Callable[[Handler[D]], Handler[D]]:
        """Registers the decorated handler for callers with `scope`; the other arguments are for the OpenAPI
        document (`Doc`). With `replays`, its response is stored and replayed for the same Idempotency-Key; without,
        the handler deals with the key.
        """
        parameters = (*parameters, IDEMPOTENCY_KEY) if replays else parameters
        doc = Doc(answers=answers, parameters=parameters, body=body, refuses=refuses)

        def register(handler: Handler[D]) -> Handler[D]:
            operation = _Operation(
                method=method,
                path=path,
                scope=scope,
                doc=doc,
                replays=replays,
                is_public=is_public,
                handler=handler,
            )
            self._operations.append(operation)
            return handler

        return register

    def router(self, access: Access, deps: D) -> APIRouter:
        """The operations as FastAPI's router, with their dependencies."""
        router = APIRouter(route_class=PlainRoute)
        for operation in self._operations:
            handler = operation.handler
            summary, _, more = (handler.__doc__ or "").partition("\n")
            described = operation.doc.operation(operation.path)
            router.add_api_route(
                operation.path,
                _endpoint(operation, access, deps),
                methods=[operation.method],
                name=handler.__name__,
                operation_id=handler.__name__,
                summary=summary.rstrip("."),
                description=cleandoc(more),
                tags=[self._tag],
                status_code=int(min(described["responses"])),
                openapi_extra=described | {"security": [{SECURITY: [operation.scope]}]},
                response_class=Response,
                include_in_schema=operation.is_public,
            )
        return router


class PlainRoute(APIRoute):
    """A route whose handler takes the request itself, without FastAPI's exit stacks and exception handling:
    exceptions go to the application's handlers.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = self._answer

    async def _answer(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def _endpoint(
    operation: _Operation[D], access: Access, deps: D
) -> Callable[[Request], Awaitable[Response]]:
    handler = operation.handler

    async def endpoint(request: Request) -> Response:
        principal = await access.authenticator.principal_of(request)
        principal.require(operation.scope)
        await access.gate.enter(principal, operation.method)
        with ExitStack() as held:
            call = Call(request, principal, access.bodies, access.streams, deps, held)
            if operation.replays:
                return await _once(access.replay, call, handler)
            answer = await handler(call)
            if isinstance(answer, Stream):
                answer.hold = StreamHold(access.streams, principal, held.pop_all())
            return answer

    return endpoint


async def _once(replay: Replay, call: Call[D], handler: Handler[D]) -> Response:
    """The handler's response, or the stored one of the same key."""
    request = call.request
    key = request.headers.get("idempotency-key", "")
    if not key:
        return await handler(call)
    raw = await call.read()

    async def again() -> Message:
        return {"type": "http.request", "body": raw, "more_body": False}

    read = replace(call, request=Request(request.scope, again))
    scope = f"{call.principal.tenant}\0{request.url.path}"
    query = request.url.query.encode()
    asked = raw + b"\0" + query if query else raw
    return await replay.once(scope, key, asked, lambda: handler(read))

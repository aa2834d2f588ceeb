"""How a handler becomes a route: who calls is settled first, what it takes is in the OpenAPI
document, and nothing else stands between the server and the handler.

Called by every module with handlers. FastAPI's own argument parsing is left out: it costs more than
the whole submit, and its 422 bodies are not ours.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Send
from starlette.types import Scope as ASGIScope

from api.auth.principal import Principal, Scope
from api.front import Front, front_of
from api.http.body import read_bytes


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated call."""

    request: Request
    front: Front
    principal: Principal


KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 255},
    "description": "The same key with the same body is the same call, and has the same answer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Doc:
    """What the OpenAPI document says of a call beyond its docstring."""

    tag: str
    parameters: tuple[dict[str, Any], ...] = ()
    body: dict[str, Any] | None = None
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)

    def extra(self) -> dict[str, Any]:
        """The `openapi_extra` of FastAPI."""
        extra: dict[str, Any] = {}
        if self.parameters:
            extra["parameters"] = list(self.parameters)
        if self.body is not None:
            extra["requestBody"] = self.body
        return extra


class PlainRoute(APIRoute):
    """A route whose handler takes the request as it is. Neither FastAPI's two exit stacks nor a
    second net for exceptions: what a handler raises goes to the application's one.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = self._answer

    async def _answer(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


Handler = Callable[[Call], Awaitable[Response]]


def operation(
    router: APIRouter, method: str, path: str, *, scope: Scope, doc: Doc, replays: bool = False
) -> Callable[[Handler], Handler]:
    """Registers the decorated handler for callers who have `scope`. With `replays`, an
    Idempotency-Key is kept beside its answer; without, it is the handler's own affair.
    """

    def register(handler: Handler) -> Handler:
        async def endpoint(request: Request) -> Response:
            front = front_of(request)
            principal = await front.authenticator.principal_of(request)
            principal.require(scope)
            await front.gate.enter(principal, method)
            call = Call(request, front, principal)
            return await (_once(call, handler) if replays else handler(call))

        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            name=handler.__name__,
            operation_id=handler.__name__,
            summary=(handler.__doc__ or "").split("\n")[0].rstrip("."),
            description=_description(handler),
            tags=[doc.tag],
            responses=dict(doc.answers.items()),
            status_code=min(doc.answers, default=200),
            openapi_extra=(doc_with_key(doc) if replays else doc).extra(),
            response_class=Response,
        )
        return handler

    return register


def doc_with_key(doc: Doc) -> Doc:
    """The same, with the header that makes a call safe to make again."""
    return replace(doc, parameters=(*doc.parameters, KEY))


async def _once(call: Call, handler: Handler) -> Response:
    """The handler's answer, or the one it gave to the same key."""
    request, replay = call.request, call.front.replay
    key = request.headers.get("idempotency-key", "")
    if not key or replay is None:
        return await handler(call)
    settings = call.front.settings
    raw = await read_bytes(
        request, limit=settings.body_limit_bytes, timeout_s=settings.body_timeout_s
    )

    async def again() -> Message:
        return {"type": "http.request", "body": raw, "more_body": False}

    read = replace(call, request=Request(request.scope, again))
    scope = f"{call.principal.tenant}\0{request.url.path}"
    query = request.url.query.encode()
    asked = raw + b"\0" + query if query else raw
    return await replay.once(scope, key, asked, lambda: handler(read))


def new_router() -> APIRouter:
    """An empty router of plain routes."""
    return APIRouter(route_class=PlainRoute)


def _description(handler: Handler) -> str:
    return "\n".join((handler.__doc__ or "").split("\n")[1:]).strip()

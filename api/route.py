"""How a handler becomes a route: who calls is settled first, what it takes is in the OpenAPI
document, and nothing else stands between the server and the handler.

Called by every module with handlers. FastAPI's own argument parsing is left out: it costs more than
the whole submit, and its 422 bodies are not ours.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from api.front import Front, front_of
from api.principal import Principal, Scope


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated call."""

    request: Request
    front: Front
    principal: Principal


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
    router: APIRouter, method: str, path: str, *, scope: Scope, doc: Doc
) -> Callable[[Handler], Handler]:
    """Registers the decorated handler for callers who have `scope`."""

    def register(handler: Handler) -> Handler:
        async def endpoint(request: Request) -> Response:
            front = front_of(request)
            principal = await front.authenticator.principal_of(request)
            principal.require(scope)
            await front.gate.enter(principal, method)
            return await handler(Call(request, front, principal))

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
            openapi_extra=doc.extra(),
            response_class=Response,
        )
        return handler

    return register


def new_router() -> APIRouter:
    """An empty router of plain routes."""
    return APIRouter(route_class=PlainRoute)


def _description(handler: Handler) -> str:
    return "\n".join((handler.__doc__ or "").split("\n")[1:]).strip()

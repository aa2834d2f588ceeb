"""The ASGI application around the routers: exception handlers and middleware.

Called by `api.__main__` and by tests. Must not know any route.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from api.http.compression import Compression
from api.http.methods import HeadAsGet, allowed_methods, path_meant
from api.http.middleware import RequestMiddleware
from api.http.problem import error_response
from api.limit.gate import RateHeaders
from api.openapi.document import document
from eventing.errors import TorporError

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    routers: Iterable[APIRouter], lifespan: Lifespan, cors_origins: Sequence[str] = ()
) -> FastAPI:
    """The application of `routers`. `lifespan` owns the background loops; pages of `cors_origins` may call it from
    a browser.
    """
    app = FastAPIOffline(
        title="Torpor",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        static_url="/docs/static",
    )
    for router in routers:
        app.include_router(router)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    app.add_exception_handler(TorporError, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(Compression)
    app.add_middleware(RateHeaders)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestMiddleware)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*", *_EXPOSED],
            max_age=600,
        )
    return app


_EXPOSED: Final = (
    "location",
    "preference-applied",
    "retry-after",
    "torpor-budget",
    "torpor-job-id",
    "x-request-id",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)
"""Named besides `*`, which has no special meaning in calls with credentials."""


class _NoRoute(TorporError):
    """There is no such path, or it does not have this method."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status  # type: ignore[misc]
        self.code = "not_found" if status == 404 else "method_not_allowed"  # type: ignore[misc]


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, TorporError)  # noqa: S101 (registered for nothing else)
    return error_response(request.url.path, error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for nothing else)
    routes, path = request.app.routes, request.url.path
    match error.status_code:
        case 404:
            meant = path_meant(routes, request.scope)
            hint = f"did you mean {meant}?" if meant else "/docs lists every route"
            words, path = f"nothing is served at {path[:200]}; {hint}", meant or path
            return error_response(path, _NoRoute(words, 404))
        case 405:
            allow = {"allow": ", ".join(allowed_methods(routes, request.scope))}
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=allow)
            answer = error_response(path, _NoRoute(f"this path takes {allow['allow']}", 405))
            answer.headers.update(allow)
            return answer
        case _:
            return error_response(path, _NoRoute(error.detail, error.status_code))

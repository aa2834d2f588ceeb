"""The ASGI application around the routers: how errors become answers, and what is outermost.

Called by `api.__main__` and by tests. Must not know any route.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api.http.middleware import Edge
from api.http.problem import error_response
from api.limit.gate import RateHeaders
from eventing.errors import TorporError

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(routers: Iterable[APIRouter], lifespan: Lifespan) -> FastAPI:
    """The application of `routers`. `lifespan` owns the background loops."""
    app = FastAPIOffline(
        title="Torpor",
        version="1",
        description="Answers that may take long, from hardware that sleeps when nobody asks.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        static_url="/docs/static",
    )
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(TorporError, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(RateHeaders)
    app.add_middleware(Edge)
    return app


class _NoRoute(TorporError):
    """No route of that path or method."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status  # type: ignore[misc]
        self.code = "not_found" if status == 404 else "method_not_allowed"  # type: ignore[misc]


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, TorporError)  # noqa: S101 (registered for nothing else)
    return error_response(request.url.path, error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for nothing else)
    refusal = _NoRoute(_advice(error), error.status_code)
    answer = error_response(request.url.path, refusal)
    answer.headers.update(error.headers or {})
    return answer


def _advice(error: HTTPException) -> str:
    match error.status_code:
        case 404:
            return "nothing is served at this path; /docs lists what is"
        case 405:
            return f"this path takes {(error.headers or {}).get('Allow', 'another method')}"
        case _:
            return error.detail

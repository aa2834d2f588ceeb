"""The outermost middleware of every request: its id, its metrics, and the 500 for an unexpected exception.

Called by `api.app` as ASGI middleware. Must not know any handler.
"""

import secrets
import time
import traceback
from typing import Final

import structlog
from prometheus_client import Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problem import error_response
from api.http.sse import RAW_SEND
from eventing.cloudevent.request_id import EXTENSION, checked, context_fields
from eventing.errors import TorporError
from eventing.telemetry.log import log_context
from eventing.telemetry.metric.series import labelled

_requests = Counter(
    "torpor_api_requests_total", "Requests answered.", ["method", "route", "status"]
)
_seconds = Histogram(
    "torpor_api_response_start_seconds",
    "Time to the first byte of an answer.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 30),
)
_METHODS: Final = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})
_log = structlog.get_logger()


class RequestMiddleware:
    """ASGI middleware; adds `x-request-id` to every response, the caller's own if it sent one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = _ids(scope)
        request_id = checked(asked.get("x-request-id", "")) or f"req_{secrets.token_hex(12)}"
        scope["torpor.request_id"] = request_id
        scope[RAW_SEND] = send
        started_s = time.perf_counter()

        is_begun = False

        async def send_on(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
                _count(scope, message["status"], time.perf_counter() - started_s)
            await send(message)

        with log_context(context_fields(asked | {EXTENSION: request_id})):
            try:
                await self._app(scope, receive, send_on)
            except Exception as error:
                _log_internal_error(error)
                if is_begun:
                    raise  # the server closes the connection, by which the client knows that the response is incomplete
                words = f"internal error; report request id {request_id}"
                answer = error_response(scope["path"], TorporError(words))
                await answer(scope, receive, send_on)


def _log_internal_error(error: Exception) -> None:
    """Logs type and place only: an exception's message could contain a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    _log.error("internal error", action="answer", error=type(error).__name__, place=place)


def _ids(scope: Scope) -> dict[str, str]:
    """The ids of the request that the caller knows."""
    return {
        name.decode(): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"x-request-id", b"traceparent")
    }


def _count(scope: Scope, status: int, seconds: float) -> None:
    """Counts by the route's pattern, never the path, so that the number of labels is bounded."""
    route = getattr(scope.get("route"), "path", "none")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    labelled(_requests, method, route, status).inc()
    labelled(_seconds, route).observe(seconds)
    if status >= 500:
        _log.warning(
            "request failed",
            action="answer",
            route=route,
            status=status,
            request_id=scope["torpor.request_id"],
        )

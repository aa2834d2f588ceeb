"""Our own routes on KServe's application: deliveries and probes.

Called by `predictor.server`. HTTP only; `predictor.delivery.delivery` decides the response to a delivery.
"""

from collections.abc import Callable
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from eventing.cloudevent.event import build_binary
from eventing.errors import TorporError
from eventing.process.body import BodyReader
from predictor.delivery.admission import Admission, AdmissionPhase
from predictor.delivery.answer import DeliveryResponse
from predictor.delivery.delivery import Deliveries
from predictor.serving.direct_access import carries, headers_of

_EVENT_PATHS: Final = frozenset({"/events", "/"})
"""The second path is for Triggers without one."""


class EventMiddleware:
    """ASGI middleware in front of everything: `POST /events` accepts one CloudEvent and is held until its job has
    ended. A route would stand behind KServe's twenty and FastAPI's layers, at a cost for every job.
    """

    def __init__(
        self, app: ASGIApp, *, deliveries: Deliveries, token: str, bodies: BodyReader
    ) -> None:
        self._app = app
        self._deliveries = deliveries
        self._token = token
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _EVENT_PATHS:
            answer = await self._take(Request(scope, receive))
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _take(self, request: Request) -> Response:
        headers = {
            name.decode("latin-1"): v.decode("latin-1") for name, v in request.scope["headers"]
        }
        if self._token and not carries(headers.get("authorization", ""), self._token):
            return _problem(401, "deliveries need the bearer token of TORPOR_DELIVERY_TOKEN")
        try:
            body = await self._bodies.read(request)
        except TorporError as error:
            return _problem(error.status, error.message, headers_of(error))
        return _response(await self._deliveries.handle(headers, body))


def add_probes(app: Starlette, admission: Admission, phase: Callable[[], str]) -> None:
    """`GET /healthz`: the process answers. `GET /readyz`: it can serve, else 503 with the phase; the same as
    `/health` (vLLM's) and `/ping` (SageMaker's).
    """

    async def alive(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(_: Request) -> Response:
        is_ready = admission.phase is AdmissionPhase.SERVING
        body = {"ready": is_ready, "state": admission.phase, "phase": phase()}
        return JSONResponse(body, status_code=200 if is_ready else 503)

    app.add_route("/healthz", alive, methods=["GET"])
    app.add_route("/readyz", ready, methods=["GET"])
    app.add_route("/health", ready, methods=["GET"])
    app.add_route("/ping", ready, methods=["GET", "POST"])


def add_error_handler(app: Starlette) -> None:
    """Our errors in KServe's own routes, in KServe's form."""

    async def explain(_: Request, error: Exception) -> Response:
        if not isinstance(error, TorporError):
            raise error
        return JSONResponse({"error": error.message}, error.status, headers_of(error))

    app.add_exception_handler(TorporError, explain)


def _response(answer: DeliveryResponse) -> Response:
    if answer.event is not None:
        headers, body = build_binary(answer.event)
        return Response(body, answer.status, headers={**answer.headers, **headers})
    if answer.problem:
        return _problem(answer.status, answer.problem, dict(answer.headers))
    return Response(status_code=answer.status, headers=dict(answer.headers))


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Problem details (RFC 9457)."""
    body = {"type": "about:blank", "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")

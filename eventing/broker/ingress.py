"""The broker's front: takes events over HTTP and answers 202 once every queue that wants them has
them.

Called by producers, the api and anything else that speaks CloudEvents. Keeps the Knative data-plane
contract for a Broker's ingress: POST only (405), unreadable events 400, batches 415, too large 413;
not durable is 503 and the sender tries again. An event that no trigger wants is taken and dropped,
as Knative does.
"""

from collections.abc import Sequence

import structlog
from prometheus_client import Counter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eventing import trace
from eventing.broker.queue import Queue
from eventing.broker.trigger import Trigger
from eventing.errors import BadRequest, Unavailable
from eventing.event import Event, parse_http
from eventing.job import Lane
from eventing.script import Call

_log = structlog.get_logger()
_offered = Counter(
    "torpor_broker_events_total",
    "Events offered to the broker, by what became of them.",
    ["outcome"],
)


class Router:
    """Knows which queues want an event."""

    def __init__(self, routes: Sequence[tuple[Trigger, Queue]]) -> None:
        self._routes = routes

    def put_calls(self, event: Event, *, is_reply: bool = False) -> list[Call]:
        """The calls that put the event into every queue that wants it; safe to send twice."""
        return [
            queue.put_call(
                event,
                lane=lane_of(event),
                tenant=event.extensions.get("tenant", ""),
                is_reply=is_reply,
            )
            for trigger, queue in self._routes
            if trigger.matches(event)
        ]

    async def route(self, event: Event) -> int:
        """How many queues hold the event now.

        Raises `StoreUnavailable` when one could not be reached; the sender offers it again, and a
        queue that has it already knows it by its identity.
        """
        calls = self.put_calls(event)
        if calls:
            await self._routes[0][1].send(calls)
        return len(calls)


class Ingress:
    """The HTTP endpoint over a `Router`."""

    def __init__(self, router: Router, *, body_limit_bytes: int) -> None:
        self._router = router
        self._limit = body_limit_bytes

    async def take(self, request: Request) -> Response:
        """Answer one POST."""
        try:
            body = await read_body(request, self._limit)
            event = parse_http(request.headers, body)
            parent = event.extensions.get("traceparent", "")
            with trace.span("enqueue", parent=parent, type=event.type):
                queues = await self._router.route(event)
        except BadRequest as error:
            _offered.labels("refused").inc()
            return _refusal(error.status, error.code, error.message)
        except Unavailable as error:
            _offered.labels("unavailable").inc()
            _log.warning("event not taken", action="ingress", reason=error.code)
            refusal = _refusal(error.status, error.code, error.message)
            refusal.headers["retry-after"] = f"{error.retry_after_s:.0f}"
            return refusal
        _offered.labels("queued" if queues else "unwanted").inc()
        return Response(status_code=202)


class BodyTooLarge(BadRequest):
    """The body is over the limit; it was not read to its end."""

    status = 413
    code = "body_too_large"


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The request's body. Raises `BodyTooLarge` as soon as it is known to be over the limit."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise BodyTooLarge(f"the body is over {limit_bytes} bytes", "body")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise BodyTooLarge(f"the body is over {limit_bytes} bytes", "body")
    return bytes(body)


def lane_of(event: Event) -> Lane:
    """The lane an event waits in; one that names no lane of ours waits in the default one."""
    named = event.extensions.get("priority", "")
    return Lane(named) if named in list(Lane) else Lane.DEFAULT


def _refusal(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"code": code, "message": message}, status_code=status)

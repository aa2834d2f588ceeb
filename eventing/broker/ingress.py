"""The broker's ingress: accepts events over HTTP and answers 202 once every matching queue holds them.

Called by producers, the api and any other CloudEvents sender. It keeps the Knative data-plane contract for a
Broker's ingress: POST only (405), unreadable event 400, batch 415, too large 413; 503 when the event could not be
stored, so that the sender retries. An event that matches no trigger is accepted and dropped, as Knative does.
"""

import math
from collections.abc import Awaitable, Callable, Collection

import structlog
from prometheus_client import Counter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eventing.broker.access import IngressAccess
from eventing.broker.intake import Intake
from eventing.broker.router import Router
from eventing.cloudevent.event import Event, parse_http
from eventing.cloudevent.job_event import (
    REQUEST_TYPES,
    REQUESTED,
    job_id_of,
    job_of,
    request_event,
    unreadable_job,
)
from eventing.cloudevent.webhook_handshake import handshake
from eventing.errors import (
    BadRequest,
    Forbidden,
    IdempotencyConflict,
    JobDeleted,
    NotCached,
    TorporError,
    Unauthorized,
    Unavailable,
)
from eventing.job.cache.cache import CacheRules
from eventing.job.job import API_SOURCE, JobError, JobId
from eventing.job.pipelines.fallback import NO_FALLBACKS, Fallbacks
from eventing.job.plan import NO_PIPELINES, Pipelines
from eventing.job.store import JobIntake
from eventing.job.tools.asked import raw_without_credentials
from eventing.job.tools.server import NO_TOOLS, ToolConfig
from eventing.process.body import BodyReader
from eventing.telemetry import trace

_log = structlog.get_logger()
_offered = Counter(
    "torpor_broker_events_total",
    "Events sent to the broker, by outcome.",
    ["outcome"],
)


class Ingress:
    """The HTTP endpoint over a `Router`."""

    def __init__(
        self,
        router: Router,
        store: JobIntake,
        access: IngressAccess,
        bodies: BodyReader,
        pipelines: Pipelines = NO_PIPELINES,
        cache_rules: CacheRules | None = None,
        fallbacks: Fallbacks = NO_FALLBACKS,
        tools: ToolConfig = NO_TOOLS,
    ) -> None:
        self._router = router
        self._store = store
        self._intake = Intake(
            store,
            router,
            pipelines=pipelines,
            cache_rules=cache_rules,
            fallbacks=fallbacks,
            tools=tools,
        )
        self._access = access
        self._bodies = bodies

    async def take(self, request: Request) -> Response:
        """Handle one POST."""
        try:
            is_trusted = self._access.is_trusted(request.headers)
            body = await self._bodies.read(request)
            event = parse_http(request.headers, body)
            if not is_trusted:
                self._access.check(event)
            parent = event.extensions.get("traceparent", "")
            job_id = job_id_of(event) if event.type in REQUEST_TYPES else None
            if self._is_job(event):
                outcome, job_id = await self._take_job(event)
            else:
                with trace.span("enqueue", parent=parent, type=event.type):
                    outcome = "queued" if await self._router.route(event) else "unwanted"
        except JobDeleted as error:
            _log.info("event of a deleted job", action="ingress", reason=error.code)
            outcome = "unwanted"
        except (BadRequest, Unauthorized, Forbidden) as error:
            _offered.labels("refused").inc()
            return _refusal(error)
        except Unavailable as error:
            _offered.labels("unavailable").inc()
            _log.debug("event not taken", action="ingress", reason=error.code)
            refusal = _refusal(error)
            refusal.headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
            return refusal
        _offered.labels(outcome).inc()
        if outcome == "unwanted":
            _log.info("no trigger wants the event", action="ingress", type=event.type[:80])
        return _accepted(job_id)

    def ask_to_send(self, origins: Collection[str]) -> Callable[[Request], Awaitable[Response]]:
        """The OPTIONS endpoint for senders of `origins` (CloudEvents' abuse protection)."""

        async def answer(request: Request) -> Response:
            allowed = handshake(request.headers, origins)
            return Response(headers={"allow": "OPTIONS, POST", **allowed})

        return answer

    def _is_job(self, event: Event) -> bool:
        """True when a producer other than our api requests a job; the api records its jobs before it sends their
        events.
        """
        is_request = event.type == REQUESTED and event.source != API_SOURCE
        return is_request and not self._router.is_relay

    async def _take_job(self, event: Event) -> tuple[str, JobId]:
        """Record a producer's job together with its queue entries, so that it is listed while it waits. A request
        that is not a valid job is recorded as failed and delivered to no predictor.
        """
        try:
            job, is_new = await self._intake.submit(job_of(event), event)
            if not is_new and not job.state.is_terminal and job.stream_id == job.id:
                # Recorded by an api that publishes through this broker, or sent again by a sweep: a queue that has
                # it knows it by its identity.
                # A job with a plan is sent to where it is now.
                await self._router.route(request_event(job) if job.plan else event)
        except IdempotencyConflict:
            raise
        except NotCached as error:
            reason = JobError(code=error.code, message=error.message)
            await self._store.reject(job_of(event), reason, event.data)
            return "rejected", job_id_of(event)
        except BadRequest as error:
            reason = JobError(code=error.code, message=error.message, field=error.field)
            raw = raw_without_credentials(event.data)
            await self._store.reject(unreadable_job(event), reason, raw)
            return "rejected", job_id_of(event)
        return "queued" if is_new else "repeated", job.id


def _accepted(job_id: JobId | None) -> Response:
    """The 202; for a request event with the id of its job."""
    if job_id is None:
        return Response(status_code=202)
    return JSONResponse({"id": job_id}, status_code=202, headers={"torpor-job-id": job_id})


def _refusal(error: TorporError) -> JSONResponse:
    body = {"code": error.code, "message": error.message}
    return JSONResponse(body, status_code=error.status, headers=dict(error.headers))

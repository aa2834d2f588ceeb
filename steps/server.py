"""Builds the steps process and runs it: an ASGI application whose `/events` takes the deliveries of every step.

Called by `python -m steps`.
"""

import asyncio
import hmac
import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eventing.broker.advance import Advance
from eventing.broker.intake import Intake
from eventing.broker.router import make_route
from eventing.clock import SystemClock
from eventing.cloudevent import request_id
from eventing.cloudevent.event import Event, build_binary, parse_http
from eventing.cloudevent.job_event import MINIMAL, PLANNED, REQUESTED, job_id_of
from eventing.cloudevent.result_event import result_event
from eventing.cloudevent.tool_event import CALLED
from eventing.errors import TorporError, Unavailable
from eventing.job.plan import PlannedStep
from eventing.outbox.publisher import OutboxPublisher
from eventing.process import gc as collector
from eventing.process.body import BodyReader, BodyRoom
from eventing.process.http_server import listen
from eventing.process.probe import ReadyOnceStarted, alive, metrics_page
from eventing.redis.connection import connect
from eventing.store.steps.redis_tool_lists import RedisToolLists
from eventing.store.steps.redis_tools import RedisToolStore
from eventing.store.vector_store.query import SEARCH_STEP
from eventing.telemetry import trace
from eventing.telemetry.log import log_context
from eventing.telemetry.span import followable
from steps.check import missing
from steps.embedding.embedder import open_embedder
from steps.handler import Handler
from steps.index.opening import open_index
from steps.runner.parts import Parts
from steps.runner.runner import Runner, RunnerDeps
from steps.settings import StepsSettings
from steps.table import EventHandler, event_handlers, handlers
from steps.tools.make import make_tools
from steps.tools.sidecar import ToolSidecar

_log = structlog.get_logger()
Table = Callable[[Parts], Mapping[str, Handler]]
_MAX_UNPUBLISHED: Final = 100_000
"""Notes above which no stranger's job is taken in; the api has its own limit."""
_PROBE_WAITS_S: Final = 0.4
"""Longest wait of a readiness probe for a run that is alone; probes have a second."""
_DRAIN_ENDS_S: Final = 2
"""Time for the answers of runs that were given up."""


class StepServer:
    """The routes of one process. `table` gives the handlers."""

    def __init__(self, settings: StepsSettings, table: Table = handlers) -> None:
        """Raises `BadRequest` when the triggers cannot be read."""
        self.settings = settings
        self._redis = connect(
            settings.redis_url.get_secret_value(), timeout_s=settings.store_timeout_s
        )
        self._store = RedisToolStore(self._redis, settings.lease, send_acks=settings.send_acks)
        self.route = make_route(settings, self._redis, max_unpublished=_MAX_UNPUBLISHED)
        clock = SystemClock()
        self._embedder, self._index = open_embedder(settings), open_index(settings, self._redis)
        self._parts = Parts(
            settings=settings,
            redis=self._redis,
            store=self._store,
            clock=clock,
            embedder=self._embedder,
            index=self._index,
            tools=(
                tools := make_tools(
                    settings, self._store, RedisToolLists(self._redis), self.route, clock
                )
            ),
        )
        self._parts.at_drain.append(tools.caller.drain)
        self._sidecar: ToolSidecar | None = None
        self._event_handlers: Mapping[str, EventHandler]
        if server := settings.tools.servers.get(settings.tool_server):
            self._sidecar = ToolSidecar(server, tools.caller)
            self._event_handlers, table = {CALLED: self._sidecar}, lambda _: {}
        else:
            self._event_handlers = event_handlers(self._parts)
        self.runner = Runner(
            RunnerDeps(
                store=self._store,
                intake=Intake(
                    self._store,
                    self.route,
                    clock,
                    settings.plans,
                    fallbacks=settings.fallbacks,
                    tools=settings.tools,
                ),
                advance=Advance(self._store, self.route, settings.fallbacks),
                publish_again=self.route.publish_again,
                handlers=table(self._parts),
                clock=clock,
                tool_calls=tools.calls,
            )
        )
        self._bodies = BodyReader(
            BodyRoom(), limit_bytes=settings.event_limit_bytes, timeout_s=settings.body_timeout_s
        )
        self._ready = ReadyOnceStarted(self._store, timeout_s=settings.store_timeout_s)

    def app(self) -> Starlette:
        """The ASGI application. The second path of deliveries is for Triggers without one."""
        return Starlette(
            routes=[
                Route("/healthz", alive),
                Route("/readyz", self._readiness),
                Route("/metrics", metrics_page),
                Route("/drained", self._drained),
                Route("/events", self._take, methods=["POST"]),
                Route("/", self._take, methods=["POST"]),
            ]
        )

    def _say_missing(self) -> None:
        """Log what the planned steps, and searches, need and is not installed: jobs that need it will fail."""
        planned = [step for plan in self.settings.plans.values() for step in plan.steps]
        steps = (*planned, PlannedStep(name=SEARCH_STEP))
        index_url = self.settings.index_url.get_secret_value()
        for name, needs in missing(steps, self.settings.embedding_url, index_url).items():
            for words in needs:
                _log.error("not installed", action="start", step=name, reason=words)

    async def run_background(self) -> None:
        """Run what steps run in the background, and publish the events of an external broker, until
        cancelled. Says first what is not installed.
        """
        loops: list[Callable[[], Awaitable[None]]] = list(self._parts.background)
        if self._sidecar is None:
            loops.append(partial(asyncio.to_thread, self._say_missing))
        if isinstance(self.route, OutboxPublisher):
            loops.append(partial(self.route.run, self._store))
        await asyncio.gather(*(run() for run in loops))

    async def drain(self) -> None:
        """Begin nothing more; what is under way ends within the grace, or is given up."""
        grace_s = self.settings.drain_grace_s
        await asyncio.gather(
            self.runner.drain(grace_s), *(drain(grace_s) for drain in self._parts.at_drain)
        )
        if self._sidecar:
            self._sidecar.drained.set()

    async def close(self) -> None:
        for close in self._parts.at_end:
            await close()
        await self.route.close()
        await self._embedder.aclose()
        await self._index.aclose()
        await self._redis.aclose()

    async def _readiness(self, _: Request) -> Response:
        # Pumps do not claim what would be refused; they learn at once that a run that was alone has ended.
        if not await self.runner.room.until_open(_PROBE_WAITS_S):
            return Response(status_code=503)
        if self._sidecar and not await self._sidecar.listens():
            return Response(status_code=503)
        return await self._ready.answer()

    async def _drained(self, _: Request) -> Response:
        """Answered when no call is under way any more: until then the tool beside this process must not end."""
        if self._sidecar:
            await self._sidecar.drained.wait()
        return Response(status_code=200)

    async def _take(self, request: Request) -> Response:
        """One delivery."""
        token = self.settings.delivery_token.get_secret_value()
        shown = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
            return JSONResponse({"detail": "deliveries need the token"}, 401)
        try:
            event = parse_http(request.headers, await self._bodies.read(request))
            parent = followable(request.headers.get("traceparent", "")) or event.extensions.get(
                "traceparent", ""
            )
            with (
                log_context(request_id.context_fields(event.extensions)),
                trace.span("receive", parent=parent),
            ):
                if handler := self._event_handlers.get(event.type):
                    return _answer(await handler(event))
                if await self._handle(event):
                    return Response(status_code=200)
                return await self._reply(request, event)
        except TorporError as error:
            return _problem(error)

    async def _handle(self, event: Event) -> bool:
        """True when the event's job has gone on, so that there is no result to tell of."""
        if event.type == PLANNED:
            return await self.runner.run(event)
        if event.type == REQUESTED:
            await self.runner.plan(event)
        else:
            _log.warning("event of another type", action="ignore", type=event.type[:100])
        return False

    async def _reply(self, request: Request, event: Event) -> Response:
        """200; with the result event where the job has ended and a subscriber may want that."""
        if event.type != PLANNED or MINIMAL in request.headers.get("prefer", ""):
            return Response(status_code=200)
        job = await self._store.get(job_id_of(event), with_result=False)
        if job is None or not job.state.is_terminal:
            return Response(status_code=200)
        whole = await self._store.get(job.id)
        return _answer(result_event(whole or job))


def _answer(reply: Event | None) -> Response:
    """200, with an event or without."""
    if reply is None:
        return Response(status_code=200)
    headers, body = build_binary(reply)
    return Response(body, headers=headers)


def _problem(error: TorporError) -> Response:
    """Problem details (RFC 9457)."""
    headers = dict(error.headers)
    if isinstance(error, Unavailable) and error.retry_after_s >= 1:
        headers["retry-after"] = str(round(error.retry_after_s))
    body = {"type": "about:blank", "status": error.status, "detail": error.message}
    return JSONResponse(body, error.status, headers, media_type="application/problem+json")


async def serve(server: StepServer) -> None:
    """Run until SIGTERM or SIGINT; then runs under way may end, and the others are given up."""
    settings = server.settings
    collector.freeze_gc_after_startup()
    stopping, drained = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    _log.info("started", action="start", host=settings.steps_host, port=settings.steps_port)
    listening = listen(
        server.app(),
        host=settings.steps_host,
        port=settings.steps_port,
        stopping=drained,
        grace_s=_DRAIN_ENDS_S,
    )
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(listening)
            background = group.create_task(server.run_background())
            await stopping.wait()
            await server.drain()
            background.cancel()
            drained.set()
    finally:
        await server.close()

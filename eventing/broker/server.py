"""Builds the broker from its settings and runs it: an ASGI application and its pumps.

Called by `python -m eventing.broker` and `python -m eventing.pump`.
"""

import asyncio
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eventing.broker.abandoned import AbandonedQueues
from eventing.broker.access import access_of
from eventing.broker.delivery.dead_letter import DeadLetterHandler
from eventing.broker.delivery.pump import CLAIM_IDLE_MS, LONGEST_BLOCK_S, Pump
from eventing.broker.ingress import Ingress
from eventing.broker.metric import QueueMetrics
from eventing.broker.queue.claim import ClaimRoom
from eventing.broker.queue.queue import Queue
from eventing.broker.router import Router
from eventing.broker.settings import BrokerSettings
from eventing.broker.trigger import Trigger
from eventing.errors import Unavailable
from eventing.job.prompt import SeenPrefixes
from eventing.process import gc as collector
from eventing.process.body import BodyReader, BodyRoom
from eventing.process.http_server import listen
from eventing.process.probe import ReadyOnceStarted, alive, metrics_page
from eventing.redis.connection import connect
from eventing.store.steps.redis_tools import RedisToolStore

_log = structlog.get_logger()
_BODIES_BYTES: Final = 32 * 1024 * 1024
"""Of events that are still arriving; with `ClaimRoom` as much again, it fits into the pod's 256 MiB."""
_ANSWER_S = 0.5
"""Time for the store's answer beyond the time that a command blocks."""


class Broker:
    """Ingress and pumps over one Redis."""

    def __init__(
        self,
        settings: BrokerSettings,
        triggers: Sequence[Trigger],
        *,
        drain_s: float = 0.0,
        is_beside_engine: bool = False,
    ) -> None:
        self._settings = settings
        self._redis = connect(
            settings.redis_url.get_secret_value(),
            timeout_s=max(settings.store_timeout_s, LONGEST_BLOCK_S + _ANSWER_S),
        )
        self._store = RedisToolStore(self._redis, settings.lease)
        self._started = ReadyOnceStarted(self._store, timeout_s=settings.store_timeout_s)
        consumer = f"{socket.gethostname()}-{id(self):x}"
        self._routes = [
            # Only a pump beside one engine knows what that engine has seen.
            (
                each,
                Queue(
                    self._redis,
                    each.name,
                    consumer,
                    seen=SeenPrefixes() if is_beside_engine else None,
                ),
            )
            for each in triggers
        ]
        self._router = Router(self._routes, settings.store_acks)
        self._queue_metrics = QueueMetrics(self._redis, [trigger.name for trigger in triggers])
        self.abandoned = AbandonedQueues(
            self._redis,
            self._router,
            [trigger.name for trigger in triggers],
            consumer=consumer,
            claim_idle_ms=CLAIM_IDLE_MS,
        )
        self._pumps = self._make_pumps(drain_s)

    def _make_pumps(self, drain_s: float) -> list[Pump]:
        """A pump for each trigger that this process delivers."""
        settings, room = self._settings, ClaimRoom()
        dead_letters = DeadLetterHandler(
            self._redis, self._store, self._router, settings.lease.lease_ms, settings.fallbacks
        )
        return [
            Pump(
                trigger,
                queue,
                self._router,
                dead_letters,
                token=settings.delivery_token.get_secret_value(),
                room=room,
                drain_s=drain_s,
            )
            for trigger, queue in self._routes
            if not settings.trigger or trigger.name in settings.trigger.split(",")
        ]

    def app(self) -> Starlette:
        """The ASGI application: `/` and Knative's `/{namespace}/{broker}` accept events."""
        bodies = BodyReader(
            BodyRoom(_BODIES_BYTES),
            limit_bytes=self._settings.event_limit_bytes,
            timeout_s=self._settings.body_timeout_s,
        )
        access, settings = access_of(self._settings), self._settings
        ingress = Ingress(
            self._router,
            self._store,
            access,
            bodies,
            settings.plans,
            settings.cache_rules,
            settings.fallbacks,
            settings.tools,
        )
        asked = ingress.ask_to_send(self._settings.event_origins)
        return Starlette(
            routes=[
                *self._shown(),
                Route("/", ingress.take, methods=["POST"]),
                Route("/{namespace}/{broker}", ingress.take, methods=["POST"]),
                Route("/", asked, methods=["OPTIONS"]),
                Route("/{namespace}/{broker}", asked, methods=["OPTIONS"]),
            ]
        )

    def side_app(self) -> Starlette:
        """The ASGI application of a pump process: probes and metrics only."""
        return Starlette(routes=self._shown())

    def _shown(self) -> list[Route]:
        return [
            Route("/healthz", alive),
            Route("/readyz", self._ready),
            Route("/metrics", self._metrics),
        ]

    async def pump(self, stopping: asyncio.Event) -> None:
        """Deliver until `stopping`; queues are created first, as soon as Redis answers."""
        while not stopping.is_set():
            with suppress(Unavailable):
                for _, queue in self._routes:
                    await queue.ensure()
                break
            await asyncio.sleep(0.5)
        async with asyncio.TaskGroup() as group:
            for pump in self._pumps:
                group.create_task(pump.run())
            await stopping.wait()
            for pump in self._pumps:
                pump.stop()

    async def close(self) -> None:
        await self._redis.aclose()

    async def _metrics(self, request: Request) -> Response:
        await self._queue_metrics.refresh()
        return metrics_page(request)

    async def _ready(self, _: Request) -> Response:
        return await self._started.answer()


async def serve(
    settings: BrokerSettings, triggers: Sequence[Trigger], *, with_ingress: bool
) -> None:
    """Run until SIGTERM or SIGINT; then stop listening and give back the events in flight, or, beside an engine,
    let them end first.
    """
    broker = Broker(
        settings,
        triggers,
        drain_s=0.0 if with_ingress else settings.drain_grace_s,
        is_beside_engine=not with_ingress,
    )
    collector.freeze_gc_after_startup()
    stopping, drained = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    served = settings.trigger or "all"
    where = {"host": settings.host, "port": settings.port} if with_ingress else {}
    _log.info("started", action="start", triggers=len(triggers), pumps=served, **where)
    async with asyncio.TaskGroup() as group:
        pumping = group.create_task(broker.pump(stopping))
        pumping.add_done_callback(lambda _: drained.set())
        if with_ingress:
            group.create_task(broker.abandoned.run(stopping))
            app = broker.app()
            group.create_task(
                listen(app, host=settings.host, port=settings.port, stopping=stopping)
            )
        elif settings.metrics_port:
            group.create_task(
                listen(
                    broker.side_app(),
                    host="0.0.0.0",  # noqa: S104 (Prometheus comes from outside the pod)
                    port=settings.metrics_port,
                    stopping=drained,
                )
            )
    await broker.close()

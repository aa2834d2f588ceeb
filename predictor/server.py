"""A predictor process from start to exit: builds its parts and runs them concurrently.

Called by `python -m predictor`. It makes no decisions about jobs.
"""

import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog
from kserve.model_server import app
from redis.asyncio import Redis

from eventing.clock import Clock, SystemClock
from eventing.job.store import Store
from eventing.process import gc as collector
from eventing.process.body import HELD_BYTES, BodyReader, BodyRoom
from eventing.redis.connection import connect
from eventing.replica import DRAINING, ReplicaDirectory
from eventing.store.memory_store import MemoryStore
from eventing.store.redis_store import RedisStore
from eventing.telemetry.metric.ledger import GpuAccount, Ledger
from eventing.telemetry.trace import SpanLinks
from predictor import metrics
from predictor.delivery.admission import Admission, AdmissionPhase
from predictor.delivery.delivery import Deliveries
from predictor.delivery.drain import Drain
from predictor.delivery.lease import LeaseKeeper
from predictor.engine.engine import ColdStartPhase, Engine
from predictor.errors import EngineStartError
from predictor.generation.generation import Interrupted
from predictor.heartbeat import Heartbeat
from predictor.serving.cancel_on_disconnect import CancelOnDisconnect
from predictor.serving.direct_access import DirectAccess, DirectRules
from predictor.serving.direct_call import DirectCalls
from predictor.serving.event_routes import EventMiddleware, add_error_handler, add_probes
from predictor.serving.kserve_server import PredictorServer
from predictor.serving.model import PredictorModel
from predictor.serving.openai_routes import add_openai_routes
from predictor.settings import EngineKind, PredictorSettings

_log = structlog.get_logger()

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_HEALTH_EVERY_S: Final = 0.5
_SETTLE_AFTER_DEATH_S: Final = 5.0
_KEPT_IN_MEMORY_S: Final = 900
"""Long enough for a broker's duplicates; results are not read from here."""
_TIDY_EVERY_S: Final = 10.0
_CONNECTIONS: Final = 1024
"""Opened as needed; a batch of 256 may flush all at once."""
_BODY_TIMEOUT_S: Final = 5.0
_EVENT_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""The largest event that a broker can be set to accept."""
_SIGN_OFF_S: Final = 1.0
_ENGINE_STOP_S: Final = 1.5
"""vLLM's core takes 2 to 5 s to stop on two cores; killing it does no harm."""


class Predictor:
    """One process with one engine. `run` blocks until the end and gives the exit code."""

    def __init__(
        self,
        settings: PredictorSettings,
        engine: Engine,
        listener: socket.socket,
        *,
        started_s: float,
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        """`prepare` is run in a thread before the engine starts: it may fetch or convert a model while the probes
        are answered.
        """
        self._settings = settings
        self._engine = engine
        self._prepare = prepare
        self._exit_code = 0
        clock = SystemClock()
        redis = _connect(settings)
        self._store = _open_store(redis, settings)
        self._links = SpanLinks(redis)
        self._account = GpuAccount(
            Ledger(redis) if redis else None,
            clock,
            model=settings.served_name,
            started_s=started_s,
            counters=metrics.kept_counters,
            has_gpu=settings.engine is not EngineKind.UPSTREAM,
        )
        self._admission = Admission(engine, self._account.load)
        metrics.IN_FLIGHT.set_function(lambda: self._admission.in_flight)
        self._keeper = LeaseKeeper(
            self._store,
            clock,
            lease_s=settings.lease_s,
            watch_s=settings.watch_ms / 1000,
            stall_s=settings.stall_s,
        )
        self._drain = Drain(self._admission, self._keeper, grace_s=settings.drain_grace_s)
        self._heartbeat = Heartbeat(
            ReplicaDirectory(redis) if redis else None,
            clock,
            model=settings.served_name,
            replica_id=settings.replica_id,
            started_s=started_s,
            revision=settings.revision,
        )
        self._server = PredictorServer(
            listener,
            grpc_address=settings.grpc_address if settings.serves_direct_routes else "",
            token=settings.direct_token.get_secret_value(),
        )
        self._add_routes(clock)

    def run(self) -> int:
        """Serve until drained or failed."""
        self._server.start([self._model(self._settings.served_name)])
        return self._exit_code

    def _model(self, name: str) -> PredictorModel:
        return PredictorModel(
            name,
            self._calls,
            is_ready=lambda: self._admission.phase is AdmissionPhase.SERVING,
            live=self._run_replica,
        )

    def _add_routes(self, clock: Clock) -> None:
        settings = self._settings
        self._calls = DirectCalls(self._engine, self._admission)
        deliveries = Deliveries(
            engine=self._engine,
            store=self._store,
            admission=self._admission,
            keeper=self._keeper,
            clock=clock,
            owner=settings.replica_id,
            lease_s=settings.lease_s,
            flush_s=settings.flush_ms / 1000,
            is_store_shared=bool(settings.redis_url.get_secret_value()),
            account=self._account,
            links=self._links,
        )
        add_openai_routes(app, self._calls)
        add_probes(app, self._admission, lambda: self._heartbeat.phase)
        add_error_handler(app)
        app.add_middleware(CancelOnDisconnect)
        rules = DirectRules(
            token=settings.direct_token.get_secret_value(),
            is_on=settings.serves_direct_routes,
        )
        direct = _body_reader(settings.direct_body_limit_bytes)
        app.add_middleware(DirectAccess, rules=rules, bodies=direct)
        token = settings.delivery_token.get_secret_value()
        events = _body_reader(_EVENT_LIMIT_BYTES)
        app.add_middleware(EventMiddleware, deliveries=deliveries, token=token, bodies=events)

    async def _run_replica(self) -> None:
        """Start the engine, serve, drain, end. The HTTP server runs from before the engine's start until after the
        last job is settled.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._begin_drain, signal.Signals(number).name)
        try:
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(self._keeper.run()),
                    group.create_task(self._heartbeat.run()),
                    group.create_task(self._tidy()),
                    group.create_task(self._account.run()),
                ]
                await self._start_and_serve()
                for task in beside:
                    task.cancel()
        finally:
            await self._end()

    def _begin_drain(self, reason: str) -> None:
        self._drain.begin(reason)
        if self._heartbeat.phase == ColdStartPhase.READY:  # one that loads exits at once
            self._heartbeat.enter(DRAINING)

    async def _tidy(self) -> None:
        """An in-memory store must be asked to drop expired jobs."""
        while isinstance(self._store, MemoryStore):
            await asyncio.sleep(_TIDY_EVERY_S)
            await self._store.prune(0)

    async def _start_and_serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(self._start())
            told_to_go = group.create_task(self._drain.wait_begun())
            await asyncio.wait((starting, told_to_go), return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and starting.result() and not told_to_go.done():
                await self._serve()
            else:
                if not starting.done():
                    await self._exit_while_loading()
            told_to_go.cancel()

    async def _exit_while_loading(self) -> None:
        """A load in progress cannot be stopped, and no job is running: sign off and exit."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SIGN_OFF_S):
                await self._heartbeat.end()
                await self._account.post()
        for child in multiprocessing.active_children():
            child.kill()
        _log.info("ended while loading", action="end", exit_code=0)
        os._exit(0)

    async def _start(self) -> bool:
        """True when the engine serves; otherwise the reason is logged in one line."""
        _log.info("loading", action="start", model=self._settings.served_name)
        try:
            await asyncio.to_thread(self._prepare)
            await self._engine.start(self._heartbeat.enter)
        except EngineStartError as error:
            _log.error("the engine did not start", action="start", reason=error.message)
            await self._heartbeat.failed(error.message)
            self._exit_code = 1
            return False
        for name in self._engine.model_names[1:]:  # LoRA adapters are models of their own
            self._server.register_model(self._model(name))
        self._heartbeat.device = self._engine.device
        collector.freeze_gc_after_startup()
        self._heartbeat.enter(ColdStartPhase.READY)
        self._admission.open()
        self._account.ready()
        metrics.ENGINE_UP.set(1)
        _log.info("ready", action="ready", model=self._settings.served_name)
        return True

    async def _serve(self) -> None:
        """Until drained, or until the engine dies."""
        async with asyncio.TaskGroup() as group:
            drained = group.create_task(self._drain.run())
            died = group.create_task(self._engine_death())
            await asyncio.wait((drained, died), return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                await self._shutdown_after_engine_failure()
            for task in (drained, died):
                task.cancel()

    async def _engine_death(self) -> None:
        while self._engine.is_healthy():  # noqa: ASYNC110 (an engine has no event to await)
            await asyncio.sleep(_HEALTH_EVERY_S)

    async def _shutdown_after_engine_failure(self) -> None:
        """Give the jobs back and end with an error; `healthy` has been false since the engine died."""
        _log.error("the engine died", action="engine_death", in_flight=self._admission.in_flight)
        metrics.ENGINE_UP.set(0)
        self._exit_code = 1
        self._keeper.interrupt_all(Interrupted.ENGINE_DEAD)
        await asyncio.wait(
            (asyncio.ensure_future(self._admission.wait_idle()),), timeout=_SETTLE_AFTER_DEATH_S
        )

    async def _end(self) -> None:
        metrics.ENGINE_UP.set(0)
        await self._server.stop_serving()
        await self._heartbeat.end()
        await self._account.post()
        await self._stop_engine()
        await self._store.close()
        _log.info("ended", action="end", exit_code=self._exit_code)

    async def _stop_engine(self) -> None:
        """Stop the engine cleanly if that is quick; no request is running any more."""
        stopping = asyncio.ensure_future(self._engine.stop())
        await asyncio.wait((stopping,), timeout=_ENGINE_STOP_S)
        if not stopping.done():
            for child in multiprocessing.active_children():
                child.kill()
        await stopping


def _connect(settings: PredictorSettings) -> Redis | None:
    """The shared store's client; None when jobs are kept in memory."""
    url = settings.redis_url.get_secret_value()
    if not url:
        return None
    return connect(url, timeout_s=settings.store_wait_s, max_connections=_CONNECTIONS)


def _open_store(redis: Redis | None, settings: PredictorSettings) -> Store:
    if redis is not None:
        return RedisStore(redis, settings.lease)
    kept = min(settings.retention_s, _KEPT_IN_MEMORY_S)
    return MemoryStore(replace(settings.lease, retention_s=kept, dead_letter_retention_s=kept))


def _body_reader(limit_bytes: int) -> BodyReader:
    """Reads bodies within a room that the largest of them fits in."""
    room = BodyRoom(max(HELD_BYTES, limit_bytes))
    return BodyReader(room, limit_bytes=limit_bytes, timeout_s=_BODY_TIMEOUT_S)

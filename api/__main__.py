"""`python -m api`: the front door as a process.

`--print-settings` shows what it would run with, secrets masked. Exit status: 0 after a clean end, 1
for a taken port, 2 for settings that cannot work.
"""

import os
import signal

if __name__ == "__main__":
    # Before the imports, which take a second: as PID 1 a process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from api.app import create_app
from api.assembly import Loop, furnish
from api.auth.rules import anonymous_access_warning, startup_error
from api.batch import runner as batch_runner
from api.batch.file_store import FileStore
from api.batch.store import BatchStore
from api.front import Front
from api.http.background import forever
from api.http.protocol import door_for
from api.job.catalog import Catalog
from api.job.waiting import QueueWaiting
from api.settings import ApiSettings
from eventing.broker.intake import DirectIntake
from eventing.broker.router import DirectPublisher
from eventing.broker.trigger import load_triggers
from eventing.clock import SystemClock
from eventing.cloudevent.publisher import HttpPublisher
from eventing.errors import BadRequest
from eventing.live.completion_notifier import CompletionNotifier
from eventing.live.stream_multiplexer import StreamMultiplexer
from eventing.outbox import outbox
from eventing.process import gc as collector
from eventing.redis.connection import connect
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.store.redis_store import RedisStore
from eventing.telemetry import log, trace
from eventing.telemetry.metric.job import JobMetrics
from eventing.telemetry.metric.ledger import Ledger
from eventing.telemetry.metric.live import LiveMetrics

_log = structlog.get_logger()


def main() -> int:
    """Run until SIGTERM or SIGINT."""
    try:
        settings = ApiSettings()
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            name = "_".join(str(part) for part in problem["loc"]).upper()
            sys.stderr.write(f"torpor api: TORPOR_{name}: {problem['msg']}\n")
        return 2
    if why := startup_error(settings):
        sys.stderr.write(f"torpor api: {why}\n")
        return 2
    if "--print-settings" in sys.argv[1:]:
        sys.stdout.write(settings.masked().decode() + "\n")
        return 0
    log.configure("api", level=settings.log_level)
    trace.configure("api")
    try:
        app = build(settings)
    except BadRequest as error:
        sys.stderr.write(f"torpor api: {error}\n")
        return 2
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=door_for(settings.open_connections),
        access_log=False,
        log_config=None,
        ws="websockets-sansio",
        server_header=False,
        backlog=2048,
        # Longer than clients and balancers keep a line (5 to 60 s): one that we close first is
        # reset under the call that they just sent on it.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    trace.close()
    return 0


def build(settings: ApiSettings) -> FastAPI:
    """The application with its real parts; connections open when first used. Raises `BadRequest`
    when the triggers cannot be read.
    """
    redis = connect(
        settings.redis_url.get_secret_value(),
        timeout_s=settings.store_timeout_s,
        max_connections=settings.max_connections,
    )
    parts = _parts(settings, redis)
    front, own_loops = furnish(parts.front, redis)
    parts = replace(parts, front=front)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _say_what_is_open(settings)
        async with asyncio.TaskGroup() as group:
            loops = {**_loops(parts, redis), **own_loops}
            running = [group.create_task(forever(name, loop)) for name, loop in loops.items()]
            gc.collect()
            collector.freeze_gc_after_startup()
            yield
            for loop in running:
                loop.cancel()
        await parts.close()

    return create_app(front, lifespan)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What has a life of its own, beside the front that is made of it."""

    front: Front
    store: RedisStore
    publisher: DirectPublisher | HttpPublisher
    hub: StreamMultiplexer
    bell: CompletionNotifier
    batches: BatchStore

    async def close(self) -> None:
        self.front.catalog.close()
        await self.front.published.clear(self.store)
        await self.publisher.close()
        await self.hub.close()
        await self.store.close()


def _parts(settings: ApiSettings, redis: SharedRedis) -> _Parts:
    store, bell, batches = RedisStore(redis), CompletionNotifier(redis), BatchStore(redis)
    hub = StreamMultiplexer(settings.redis_url.get_secret_value(), store, redis)
    publisher, clock, ledger = _publisher(settings, redis), SystemClock(), Ledger(redis)
    intake = None
    if isinstance(publisher, DirectPublisher):
        intake = DirectIntake(store, publisher, clock)
    front = Front(
        settings=settings,
        store=store,
        publisher=publisher,
        intake=intake,
        live=hub,
        ends=bell,
        catalog=Catalog(settings.models),
        waiting=QueueWaiting(redis, clock),
        files=FileStore(settings.files_url),
        batches=batches,
        clock=clock,
        listeners=(JobMetrics([card.name for card in settings.models], ledger),),
        ledger=ledger,
    )
    return _Parts(
        front=front, store=store, publisher=publisher, hub=hub, bell=bell, batches=batches
    )


def _loops(parts: _Parts, redis: SharedRedis) -> dict[str, Loop]:
    """What must run for the parts, by name."""
    settings = parts.front.settings
    models = [card.name for card in settings.models]
    return {
        "hub": parts.hub.run,
        "bell": parts.bell.run,
        "batches": lambda: batch_runner.run(parts.front, parts.batches),
        "metrics": LiveMetrics(redis, models, settings.price).run,
        "published": lambda: parts.front.published.run(parts.store),
        "sweep": lambda: outbox.run(parts.store, parts.publisher, settings.sweep_every_s),
    }


def _say_what_is_open(settings: ApiSettings) -> None:
    if not settings.models:
        _log.warning("no model: every job will be refused", action="start")
    if said := anonymous_access_warning(settings):
        _log.warning(said, action="start")


def _publisher(settings: ApiSettings, redis: SharedRedis) -> DirectPublisher | HttpPublisher:
    """The way to the broker. Raises `BadRequest` when the triggers cannot be read."""
    if settings.queue_triggers_file is not None:
        return DirectPublisher(redis, load_triggers(settings.queue_triggers_file))
    return HttpPublisher(
        settings.broker_url,
        timeout_s=settings.submit_timeout_s,
        token=settings.broker_token.get_secret_value(),
        token_file=settings.broker_token_file,
        ca_file=settings.broker_ca_file,
    )


if __name__ == "__main__":
    sys.exit(main())

"""`python -m api`: the api as a process.

`--print-settings` prints its settings with secrets masked. Exit status: 0 after a clean end, 1 when the port is
taken, 2 for invalid settings.
"""

import os
import signal

if __name__ == "__main__":
    # Before the imports, which take a second: as PID 1 a process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import structlog
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.auth.rules import anonymous_access_warning, startup_error
from api.http.background import forever
from api.http.protocol import protocol_class
from api.http.shutdown import Shutdown, ShutdownServer
from api.settings import ApiSettings
from api.wiring.background import loops
from api.wiring.parts import make_parts
from api.wiring.routers import routers
from eventing.errors import BadRequest
from eventing.process import gc as collector
from eventing.process.setting import WrongSetting, from_command_line
from eventing.redis.connection import connect
from eventing.telemetry import log, trace

_log = structlog.get_logger()


def main(arguments: Sequence[str] = ()) -> int:
    """Run until SIGTERM or SIGINT."""
    try:
        settings = from_command_line("python -m api", ApiSettings, arguments)
        if why := startup_error(settings):
            raise WrongSetting(why)
        log.configure("api", level=settings.log_level)
        trace.configure("api")
        app, shutdown = build(settings)
    except (WrongSetting, BadRequest) as error:
        sys.stderr.write(f"torpor api: {error}\n")
        return 2
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=protocol_class(settings.open_connections),
        access_log=False,
        log_config=None,
        ws="websockets-sansio",
        server_header=False,
        backlog=4096,
        # Longer than clients and balancers keep a connection (5 to 60 s): one that we close first is
        # reset under the call that they just sent on it.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    server = ShutdownServer(config, shutdown)
    with suppress(KeyboardInterrupt):
        server.run()
    trace.close()
    return 0 if server.started else 1


def build(settings: ApiSettings) -> tuple[FastAPI, Shutdown]:
    """The application and its shutdown signal. Raises `BadRequest` when the triggers or the keys cannot be read."""
    redis = connect(
        settings.redis_url.get_secret_value(),
        timeout_s=settings.store_timeout_s,
        max_connections=settings.max_connections,
    )
    parts = make_parts(settings, redis)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _log.info("started", action="start", host=settings.host, port=settings.port)
        _say_what_is_open(settings)
        async with asyncio.TaskGroup() as group:
            named = loops(parts).items()
            running = [group.create_task(forever(name, loop)) for name, loop in named]
            gc.collect()
            collector.freeze_gc_after_startup()
            yield
            for loop in running:
                loop.cancel()
        await parts.close()

    return create_app(routers(parts), lifespan, settings.cors_origins), parts.shutdown


def _say_what_is_open(settings: ApiSettings) -> None:
    if not settings.cards:
        _log.warning("no model: every job will be refused", action="start")
    if said := anonymous_access_warning(settings):
        _log.warning(said, action="start")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

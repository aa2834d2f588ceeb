"""`python -m knative.external_scaler`: serve the work-aware policy to KEDA."""

import os
import signal

if __name__ == "__main__":
    # Before the imports, which take a second: as PID 1 a process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress

import structlog

from eventing.clock import SystemClock
from eventing.process.setting import WrongSetting, from_command_line
from eventing.redis.connection import connect
from eventing.telemetry import log
from knative.external_scaler.queue_source import QueueSource
from knative.external_scaler.server import ScalerServer
from knative.external_scaler.settings import ExternalScalerSettings


def main(arguments: Sequence[str] = ()) -> int:
    """Exit status: 0 after a clean end, 2 for settings that cannot work."""
    program = "python -m knative.external_scaler"
    try:
        settings = from_command_line(program, ExternalScalerSettings, arguments)
    except WrongSetting as error:
        sys.stderr.write(f"torpor external scaler: {error}\n")
        return 2
    log.configure("external-scaler", level=settings.log_level)
    asyncio.run(_serve(settings))
    return 0


async def _serve(settings: ExternalScalerSettings) -> None:
    redis = connect(settings.redis_url.get_secret_value(), timeout_s=settings.store_timeout_s)
    source = QueueSource(redis)
    server = ScalerServer(
        source, SystemClock(), queue=settings.queue, model=settings.model, tick_s=settings.tick_s
    )

    def say(port: int) -> None:
        structlog.get_logger().info("listening", action="listen", port=port)

    serving = asyncio.ensure_future(server.run(f"{settings.host}:{settings.port}", say))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with suppress(asyncio.CancelledError):
        await serving
    await redis.aclose()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

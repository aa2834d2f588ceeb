"""`python -m eventing.broker`: the ingress and the pumps of every trigger in one process."""

import os
import signal

if __name__ == "__main__":
    # Before the imports, which take a second: as PID 1 a process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import sys

import uvloop
from pydantic import ValidationError

from eventing.broker.access import startup_error
from eventing.broker.server import serve
from eventing.broker.settings import BrokerSettings
from eventing.broker.trigger import load_triggers
from eventing.errors import BadRequest, first_of
from eventing.telemetry import log, trace


def main(*, with_ingress: bool = True) -> int:
    """Exit status: 0 after a clean end, 1 when the port is taken, 2 for invalid settings."""
    try:
        settings = BrokerSettings()
        triggers = load_triggers(settings.triggers_file)
    except (ValidationError, BadRequest) as error:
        sys.stderr.write(f"torpor broker: {error}\n")
        return 2
    if with_ingress and (why := startup_error(settings)):
        sys.stderr.write(f"torpor broker: {why}\n")
        return 2
    log.configure("broker" if with_ingress else "pump", level=settings.log_level)
    trace.configure("broker" if with_ingress else "pump")
    try:
        uvloop.run(serve(settings, triggers, with_ingress=with_ingress))
    except (OSError, ExceptionGroup) as failure:
        cause = first_of(failure)
        if not isinstance(cause, OSError):
            raise
        address = f"{settings.host}:{settings.port}"
        sys.stderr.write(f"torpor broker: cannot listen on {address}: {cause}\n")
        return 1
    trace.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

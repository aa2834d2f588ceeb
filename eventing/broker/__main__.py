"""`python -m eventing.broker`: the ingress and the pumps of every trigger in one process."""

import os
import signal

if __name__ == "__main__":
    # Before the imports, which take a second: as PID 1 a process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import sys
from collections.abc import Sequence

from eventing.broker.access import startup_error
from eventing.broker.server import serve
from eventing.broker.settings import BrokerSettings
from eventing.broker.trigger import load_triggers
from eventing.errors import BadRequest
from eventing.process.http_server import run
from eventing.process.setting import WrongSetting, from_command_line
from eventing.telemetry import log, trace


def main(arguments: Sequence[str] = (), *, with_ingress: bool = True) -> int:
    """Exit status: 0 after a clean end, 1 when the port is taken, 2 for invalid settings."""
    name = "broker" if with_ingress else "pump"
    program = "python -m eventing.broker" if with_ingress else "python -m eventing.pump"
    try:
        settings = from_command_line(program, BrokerSettings, arguments)
        triggers = load_triggers(settings.triggers_file)
        if with_ingress and (why := startup_error(settings)):
            raise WrongSetting(why)
        log.configure(name, level=settings.log_level)
        trace.configure(name)
    except (WrongSetting, BadRequest) as error:
        variable = "TORPOR_TRIGGERS_FILE: " if isinstance(error, BadRequest) else ""
        sys.stderr.write(f"torpor {name}: {variable}{error}\n")
        return 2
    serving = serve(settings, triggers, with_ingress=with_ingress)
    status = run(name, serving, host=settings.host, port=settings.port)
    trace.close()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m steps`: every step before the predictor in one process.

Exit status: 0 after a clean end, 1 when the port is taken, 2 for invalid settings.
"""

import os
import signal

if __name__ == "__main__":
    # Before the imports, which take a second: as PID 1 a process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import sys
from collections.abc import Sequence

from eventing.errors import BadRequest
from eventing.process.http_server import run
from eventing.process.setting import WrongSetting, from_command_line
from eventing.telemetry import log, trace
from steps.server import StepServer, Table, serve
from steps.settings import StepsSettings
from steps.table import handlers


def main(arguments: Sequence[str] = (), table: Table = handlers) -> int:
    """Run until SIGTERM or SIGINT."""
    try:
        settings = from_command_line("python -m steps", StepsSettings, arguments)
        log.configure("steps", level=settings.log_level)
        trace.configure("steps")
        server = StepServer(settings, table)
    except (WrongSetting, BadRequest) as error:
        sys.stderr.write(f"torpor steps: {error}\n")
        return 2
    status = run("steps", serve(server), host=settings.steps_host, port=settings.steps_port)
    trace.close()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

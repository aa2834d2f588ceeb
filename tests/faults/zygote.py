"""Starts our processes fast: imports them once, then forks one for each line on standard input.

Run as `python -m tests.faults.zygote` by `processes.py`. What is forked is the real program: its
own `main`, settings from its own environment, its own event loop; it can be killed, stopped and
continued like any other. 200 trials of kill -9 would otherwise be 200 times a second of imports.

A line: {"module", "argv", "env", "log", "skew"}; the answer is the pid. `skew` moves the wall clock
of that one process: [[after_s, offset_s], ...].
"""

import asyncio
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from tests.redis_server import die_with_parent

MODULES = (
    "api.__main__",
    "eventing.broker.__main__",
    "predictor.__main__",
    "predictor.server",
    "tests.faults.steps_program",
)


def main() -> None:
    """Until standard input ends."""
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(order)
        print(pid, flush=True)


def _become(order: dict[str, Any]) -> None:
    """The child: never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    signal.signal(signal.SIGUSR2, _tell_tasks)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = [order["module"], *order["argv"]]
    if order["skew"]:
        _skew(order["skew"])
    status = 1
    try:
        program = importlib.import_module(order["module"]).main
        takes_argv = program.__code__.co_argcount > 0
        status = program(order["argv"]) if takes_argv else program()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


def _tell_tasks(*_: object) -> None:
    """What every task of this process waits for, into its log: for a process that does not end."""
    for task in [each for each in gc.get_objects() if isinstance(each, asyncio.Task)]:
        if not task.done():
            task.print_stack(file=sys.stderr)
    sys.stderr.flush()


def _skew(steps: Sequence[tuple[float, float]]) -> None:
    """Move this process's wall clock; monotonic time stays right, as it does in a real jump."""
    began_s, wall_s, wall_ns = time.monotonic(), time.time, time.time_ns

    def offset_s() -> float:
        age_s = time.monotonic() - began_s
        return ([0.0] + [by_s for after_s, by_s in steps if age_s >= after_s])[-1]

    time.time = lambda: wall_s() + offset_s()
    time.time_ns = lambda: wall_ns() + int(offset_s() * 1e9)


if __name__ == "__main__":
    main()

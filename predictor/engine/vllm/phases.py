"""Reports the phases of vLLM's start from inside its worker.

`AsyncLLM`'s constructor does everything in one call, in processes of its own. `timed` names a subclass of vLLM's
worker that reports each step before it begins; `heard` receives the reports during that call. Used by
`predictor.engine.vllm.start` and `predictor.engine.vllm.engine`. Works with forked and spawned workers; of several
workers the first report counts. Import is fast.
"""

import asyncio
import importlib
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from predictor.engine.engine import ColdStartPhase, PhaseReporter

_ADDRESS: Final = "TORPOR_ENGINE_PHASES"
"""Variable with the name of the receiver's abstract socket; workers inherit it."""
_ORDER: Final = list(ColdStartPhase)


def timed(worker_cls: str) -> str:
    """The name of a subclass of the worker class `worker_cls` that reports its phases."""
    return worker_cls if "__" in worker_cls else f"{__name__}.{worker_cls.replace('.', '__')}"


def __getattr__(name: str) -> Any:
    """vLLM resolves the names that `timed` returns, in the worker's process."""
    module, _, attribute = name.replace("__", ".").rpartition(".")
    if name.startswith("__") or not module:
        raise AttributeError(name)
    return _timed(getattr(importlib.import_module(module), attribute))


def _timed(worker: Any) -> Any:
    class Timed(worker):  # type: ignore[misc]
        def load_model(self, *args: Any, **kwargs: Any) -> Any:
            _report(ColdStartPhase.WEIGHTS)
            return super().load_model(*args, **kwargs)

        def determine_available_memory(self) -> Any:
            _report(
                ColdStartPhase.COMPILE
            )  # the profiling run is the first to call what is compiled
            return super().determine_available_memory()

        def initialize_from_config(self, *args: Any, **kwargs: Any) -> Any:
            _report(ColdStartPhase.WARM_UP)
            return super().initialize_from_config(*args, **kwargs)

    return Timed


def _report(phase: ColdStartPhase) -> None:
    """Never delays or fails a start: without a receiver the report is lost."""
    address = os.environ.get(_ADDRESS, "")
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        line.sendto(phase.encode(), f"\0{address}")


def forward_only(report: PhaseReporter) -> PhaseReporter:
    """`report`, called once for each phase and never for an earlier one."""
    reached = -1

    def step(phase: ColdStartPhase) -> None:
        nonlocal reached
        if _ORDER.index(phase) > reached:
            reached = _ORDER.index(phase)
            report(phase)

    return step


@contextmanager
def heard(report: PhaseReporter) -> Iterator[None]:
    """Passes workers' reports on while the block runs; call it on the event loop."""
    loop = asyncio.get_running_loop()
    address = f"torpor-phases-{os.getpid()}-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        line.bind(f"\0{address}")
        os.environ[_ADDRESS] = address
        loop.add_reader(line, _take, line, report)
        try:
            yield
            _take(line, report)  # reports sent just before the end
        finally:
            loop.remove_reader(line)
            os.environ.pop(_ADDRESS, None)


def _take(line: socket.socket, report: PhaseReporter) -> None:
    with suppress(BlockingIOError):
        while phase_name := line.recv(64):
            report(ColdStartPhase(phase_name.decode()))

"""Where vLLM's start is, told by its worker as it gets there.

`AsyncLLM`'s constructor does everything in one call, in processes of its own. `timed` names a
worker class that is vLLM's own but for saying, before each step, which one begins; `heard` listens
to it beside that call. Used by `predictor.engine.vllm.start` and `predictor.engine.vllm.engine`. Works for forked
and spawned workers; several workers tell the same and the first one counts. Import is light.
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
"""Variable with the name of the listener's abstract socket; workers inherit it."""
_ORDER: Final = list(ColdStartPhase)


def timed(worker_cls: str) -> str:
    """The name of the worker class `worker_cls` that tells its phases."""
    return worker_cls if "__" in worker_cls else f"{__name__}.{worker_cls.replace('.', '__')}"


def __getattr__(name: str) -> Any:
    """vLLM resolves the names that `timed` gives, in whatever process its worker is."""
    module, _, attribute = name.replace("__", ".").rpartition(".")
    if name.startswith("__") or not module:
        raise AttributeError(name)
    return _timed(getattr(importlib.import_module(module), attribute))


def _timed(worker: Any) -> Any:
    class Timed(worker):  # type: ignore[misc]
        def load_model(self, *args: Any, **kwargs: Any) -> Any:
            _tell(ColdStartPhase.WEIGHTS)
            return super().load_model(*args, **kwargs)

        def determine_available_memory(self) -> Any:
            _tell(ColdStartPhase.COMPILE)  # the profiling run is the first to call what is compiled
            return super().determine_available_memory()

        def initialize_from_config(self, *args: Any, **kwargs: Any) -> Any:
            _tell(ColdStartPhase.WARM_UP)
            return super().initialize_from_config(*args, **kwargs)

    return Timed


def _tell(phase: ColdStartPhase) -> None:
    """Never in the way of a start: who does not listen hears nothing."""
    address = os.environ.get(_ADDRESS, "")
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        line.sendto(phase.encode(), f"\0{address}")


def forward_only(report: PhaseReporter) -> PhaseReporter:
    """`report`, told each phase once and none that lies behind."""
    reached = -1

    def step(phase: ColdStartPhase) -> None:
        nonlocal reached
        if _ORDER.index(phase) > reached:
            reached = _ORDER.index(phase)
            report(phase)

    return step


@contextmanager
def heard(report: PhaseReporter) -> Iterator[None]:
    """Report what workers tell for as long as this lasts; call it on the event loop."""
    loop = asyncio.get_running_loop()
    address = f"torpor-phases-{os.getpid()}-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        line.bind(f"\0{address}")
        os.environ[_ADDRESS] = address
        loop.add_reader(line, _take, line, report)
        try:
            yield
            _take(line, report)  # what was told just before the end
        finally:
            loop.remove_reader(line)
            os.environ.pop(_ADDRESS, None)


def _take(line: socket.socket, report: PhaseReporter) -> None:
    with suppress(BlockingIOError):
        while told := line.recv(64):
            report(ColdStartPhase(told.decode()))

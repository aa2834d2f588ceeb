"""Starts predictor processes: each on its own, or forked from a parent that has imported vLLM
already.

Called by the fleet. Both kinds give the same `Running`; the fleet does not know which it has.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import structlog

from knative.local.child import Child

_log = structlog.get_logger()
_PARENT_START_S: Final = 180.0


class Running(Protocol):
    """A predictor process."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int:
        """Its exit status, once it has ended."""

    async def stop(self, grace_s: float) -> int:
        """SIGTERM, SIGKILL after the grace."""


class Launcher(Protocol):
    """Starts predictors."""

    async def launch(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> Running: ...

    async def stop(self, grace_s: float) -> None: ...


class SpawnLauncher:
    """A fresh interpreter for every predictor."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir

    async def launch(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> Running:
        child = Child(
            name, [sys.executable, "-m", "predictor", *argv], env=env, log_dir=self._log_dir
        )
        await child.start()
        return child

    async def stop(self, grace_s: float) -> None:
        """Nothing of its own to stop."""

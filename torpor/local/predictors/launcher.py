"""Starts predictor processes: as new processes, or forked from a parent that has imported vLLM already.

Called by the fleet. Both kinds give a `RunningProcess`.
"""

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from torpor.local.child import Child, child_env, python_module
from torpor.local.errors import StackError

_log = structlog.get_logger()
_PARENT_START_S: Final = 180.0
_FORK_TIMEOUT_S: Final = 10.0
_COLD_ENDS_ALLOWED: Final = 3
"""Failures of the parent in a row before it was warm. The first start allows one: its cause was there when the user
started the stack.
"""


class RunningProcess(Protocol):
    """A predictor process."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int:
        """Its exit status, once it has ended."""

    async def stop(self, grace_s: float) -> int:
        """SIGTERM, SIGKILL after the grace."""


class Launcher(Protocol):
    """Starts predictors."""

    async def launch(
        self, name: str, argv: Sequence[str], env: Mapping[str, str]
    ) -> RunningProcess: ...

    async def stop(self, grace_s: float) -> None: ...


class SpawnLauncher:
    """A fresh interpreter for every one, which runs `module`."""

    def __init__(self, log_dir: Path, module: str = "predictor") -> None:
        self._log_dir = log_dir
        self._module = module

    async def launch(
        self, name: str, argv: Sequence[str], env: Mapping[str, str]
    ) -> RunningProcess:
        child = Child(name, python_module(self._module, *argv), env=env, log_dir=self._log_dir)
        await child.start()
        return child

    async def stop(self, grace_s: float) -> None:
        """Nothing of its own to stop."""


class ForkLauncher:
    """Predictors forked from one parent that imports vLLM once (`python -m predictor.process.parent`).

    A launch waits until the parent is warm; a parent that died is started again.
    """

    def __init__(self, parent: Child, socket_path: Path, log_dir: Path) -> None:
        self._parent = parent
        self._socket_path = socket_path
        self._log_dir = log_dir
        self._running: dict[int, _Forked] = {}
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None
        self._one_at_a_time = asyncio.Lock()
        self.warm = asyncio.Event()

    async def run(self) -> None:
        """Keep a warm parent until cancelled. Raises `StackError` with the reason when it cannot be started."""
        cold_ends, allowed = 0, 1
        while True:
            await self._parent.start()
            try:
                await self._converse()
            finally:
                was_warm = self.warm.is_set()
                self.warm.clear()
                for forked in self._running.values():
                    forked.end(-signal.SIGKILL)  # children die with their parent
                self._running.clear()
            await self._parent.wait()
            cold_ends, allowed = (0, _COLD_ENDS_ALLOWED) if was_warm else (cold_ends + 1, allowed)
            if cold_ends >= allowed:
                raise StackError(f"the engine does not start: {self._parent.failure()}")
            _log.warning("the warm parent ended", action="parent_lost")
            await asyncio.sleep(1)

    async def launch(
        self, name: str, argv: Sequence[str], env: Mapping[str, str]
    ) -> RunningProcess:
        await asyncio.wait_for(self.warm.wait(), _PARENT_START_S)
        log_path = str((self._log_dir / f"{name}.log").resolve())
        request = {"argv": list(argv), "env": child_env(env), "log_path": log_path}
        async with self._one_at_a_time:
            if self._writer is None:
                raise OSError("the warm parent is gone")
            self._writer.write(json.dumps(request).encode() + b"\n")
            answer = await asyncio.wait_for(self._answers.get(), _FORK_TIMEOUT_S)
        if "error" in answer:
            raise OSError(answer["error"])
        return self._running[answer["pid"]]

    async def stop(self, grace_s: float) -> None:
        """End the parent, and with it every predictor that still runs."""
        await self._parent.stop(grace_s)

    async def _converse(self) -> None:
        """Read the parent's messages until it ends."""
        with suppress(ConnectionError):
            reader, self._writer = await self._connect()
            await self._read(reader)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        assert self._writer is not None  # noqa: S101
        try:
            while line := await reader.readline():
                self._hear(json.loads(line))
        finally:
            self._writer.close()
            self._writer = None

    def _hear(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": True}:
                self.warm.set()
            case {"pid": pid, "exit_code": code}:
                if forked := self._running.pop(pid, None):
                    forked.end(code)
            case {"pid": pid}:
                # Recorded before the launch returns, since the child may end before that.
                self._running[pid] = _Forked(pid)
                self._answers.put_nowait(message)
            case _:
                self._answers.put_nowait(message)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._parent.is_running:
            with suppress(OSError):
                return await asyncio.open_unix_connection(str(self._socket_path), limit=1 << 20)
            await asyncio.sleep(0.05)
        raise ConnectionError("the parent ended before it listened")


class _Forked:
    """A predictor that the parent forked. It is not this process's child, so the parent reports its end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)

    async def wait(self) -> int:
        return await asyncio.shield(self._exit)

    async def stop(self, grace_s: float) -> int:
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _FORK_TIMEOUT_S)):
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
            with suppress(TimeoutError):
                return await asyncio.wait_for(self.wait(), wait_s)
        return -signal.SIGKILL

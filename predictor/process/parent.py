"""A process that has imported everything once and forks predictors, so that a cold start needs no imports.

Started by the local stack: `python -m predictor.process.parent --socket PATH
--preload predictor.engine.vllm.preload:preload=JSON`. Speaks JSON lines on a unix socket:

    <- {"ready": true, "preload_s": 8.1, "pid": 11}                 on connect, once preloaded
    -> {"argv": ["--port", "0"], "env": {"A": "b"}, "log_path": "/x.log"}
    <- {"pid": 12}                                                  or {"error": "..."}
    <- {"pid": 12, "exit_code": 0}                                  when it ends; -9 for SIGKILL

It stays single-threaded (a fork copies only one thread, and with it the locks of the others), so it
is one loop over a selector. Ends with its owner; its children end with it. Knows no model.
"""

import argparse
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from predictor.process.death_signal import adopt_orphans, die_with_parent
from predictor.process.gc import gc_disabled

Entry = Callable[[list[str]], int | None]
"""The function that a forked child runs with its argv; it returns the exit code."""

LINE_LIMIT: Final = 1 << 20
"""Largest request in bytes; an environment has some KiB."""

_OURS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
"""Signals that the parent handles and a child does not."""


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """A predictor to start. `env` is added to the parent's environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    log_path: str = os.devnull

    @classmethod
    def parse(cls, line: bytes) -> "ForkRequest":
        """Raises ValueError saying what is wrong."""
        data = json.loads(line)
        if not isinstance(data, dict) or not _is_texts(data.get("argv")):
            raise ValueError("argv must be a list of texts")
        env = data.get("env", {})
        if not isinstance(env, dict) or not _is_texts([*env, *env.values()]):
            raise ValueError("env must map texts to texts")
        return cls(tuple(data["argv"]), env, str(data.get("log_path", os.devnull)))


class Parent:
    """The event loop: connections, forks, exits of children, shutdown."""

    def __init__(
        self, listener: socket.socket, entry: Entry, hello: Mapping[str, Any], grace_s: float
    ) -> None:
        self._listener = listener
        self._entry = entry
        self._hello = hello
        self._grace_s = grace_s
        self._selector = selectors.DefaultSelector()
        self._lines: dict[socket.socket, bytes] = {}
        self._children: dict[int, socket.socket] = {}
        self._is_ending = False

    def serve(self) -> None:
        """Run until SIGTERM or SIGINT; every child has ended when this returns."""
        wake = _wake_on_signals(self._end)
        self._selector.register(wake, selectors.EVENT_READ, self._drain_wake)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        while not self._is_ending:
            self._turn(None)
        for pid in self._children:
            _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        while self._children and (left := deadline - time.monotonic()) > 0:
            self._turn(left)
        for pid in self._children:
            _signal(pid, signal.SIGKILL)
        while self._children:
            self._turn(0.05)

    def _end(self) -> None:
        self._is_ending = True

    def _turn(self, timeout_s: float | None) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data(key.fileobj)
        self._reap()

    def _drain_wake(self, wake: socket.socket) -> None:
        with suppress(BlockingIOError):
            wake.recv(4096)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        self._lines[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ, self._read)
        self._send(connection, self._hello)

    def _read(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(connection)
            return
        *lines, rest = (self._lines[connection] + data).split(b"\n")
        self._lines[connection] = rest
        for line in lines:
            self._answer(connection, line)
        if len(rest) > LINE_LIMIT:
            self._forget(connection)

    def _answer(self, connection: socket.socket, line: bytes) -> None:
        try:
            pid = self._fork(ForkRequest.parse(line))
        except (ValueError, OSError) as error:
            self._send(connection, {"error": str(error)})
            return
        self._children[pid] = connection
        self._send(connection, {"pid": pid})

    def _fork(self, request: ForkRequest) -> int:
        if self._is_ending:
            raise OSError("the parent is ending")
        log = os.open(request.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        parent_pid = os.getpid()
        # A signal that arrives before the child resets the handlers would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid:  # in this handler, or fork failed
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
                os.close(log)
        if pid:
            return pid
        code = 1
        try:
            self._let_go()
            _become_child(request, log, parent_pid)
            code = _run(self._entry, list(request.argv))
        except BaseException:  # the child must never return into the parent's loop
            traceback.print_exc()
        finally:
            _flush()
            os._exit(code)

    def _let_go(self) -> None:
        """In the child: close the parent's sockets and reset its signal handlers."""
        signal.set_wakeup_fd(-1)
        for number in _OURS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
        for open_socket in (self._listener, *self._lines):
            open_socket.close()
        self._selector.close()

    def _reap(self) -> None:
        """Reap ended children, and end their orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            connection = self._children.pop(pid, None)
            if connection is not None:
                exit_code = os.waitstatus_to_exitcode(status)
                self._send(connection, {"pid": pid, "exit_code": exit_code})
        for orphan in _children_of(os.getpid()) - self._children.keys():
            _signal(orphan, signal.SIGKILL)

    def _send(self, connection: socket.socket, message: Mapping[str, Any]) -> None:
        if connection not in self._lines:
            return
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # disconnected, or not reading: it must not stop the others
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        """A client that disconnects leaves its children running."""
        if self._lines.pop(connection, None) is not None:
            self._selector.unregister(connection)
            connection.close()


def _become_child(request: ForkRequest, log: int, parent_pid: int) -> None:
    os.setsid()  # a Ctrl-C in the terminal is for the stack's main process alone
    die_with_parent(parent_pid)
    _flush()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    os.environ.update(request.env)
    sys.argv = [sys.argv[0], *request.argv]


def _run(entry: Entry, argv: list[str]) -> int:
    try:
        return entry(argv) or 0
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
            return 1
        return end.code or 0


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def _wake_on_signals(on_end: Callable[[], None]) -> socket.socket:
    """Signals wake the selector: SIGCHLD to reap, SIGTERM and SIGINT to end."""
    receiver, sender = socket.socketpair()
    receiver.setblocking(False)
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: on_end())
    return receiver


def _children_of(pid: int) -> set[int]:
    """Process ids of our direct children (Linux: `/proc/PID/task/TID/children`)."""
    try:
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _load(target: str) -> Any:
    """`package.module:attribute`, imported. Raises ValueError for another form."""
    module, separator, name = target.partition(":")
    if not separator:
        raise ValueError(f"{target!r} is not of the form module:attribute")
    return getattr(importlib.import_module(module), name)


def _preload(targets: Sequence[str]) -> float:
    """Call each `module:function=JSON`; gives the seconds it took. Then all objects are frozen for the forks."""
    began = time.monotonic()
    with gc_disabled():
        for target in targets:
            name, _, argument = target.partition("=")
            _load(name)(json.loads(argument or "{}"))
    return time.monotonic() - began


def listen(path: Path) -> socket.socket:
    """A unix socket at `path`, accessible to its owner only; an old one is replaced.

    A client may connect as soon as the path exists, and a socket that is bound but not listening refuses, so it is
    renamed to `path` last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unnamed = path.with_name(f"{path.name}~")
    for earlier in (path, unnamed):
        earlier.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(unnamed))
    unnamed.chmod(0o600)
    listener.listen()
    unnamed.rename(path)
    return listener


def _say_why(reason: str) -> None:
    """Log why the process does not start, in the form that every process uses (`torpor.local.failure`)."""
    line = {"service": "parent", "level": "error", "action": "start", "reason": reason}
    sys.stderr.write(f"{json.dumps(line)}\n")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m predictor.process.parent`: listen, preload, then fork until stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m predictor.process.parent", description=main.__doc__
    )
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--entry", default="predictor.__main__:main", help="module:function(argv)")
    parser.add_argument("--preload", action="append", default=[], metavar="MODULE:FUNCTION[=JSON]")
    parser.add_argument("--grace-s", type=float, default=30.0, help="for children, after SIGTERM")
    args = parser.parse_args(argv)
    die_with_parent(os.getppid(), signal.SIGTERM)
    adopt_orphans()
    listener = listen(args.socket)
    try:
        preload_s = _preload(args.preload)
    except Exception as error:
        traceback.print_exc()
        _say_why(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        return 1
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        _say_why(f"{threads} threads after preloading; forks unsafe")
        return 1
    hello = {"ready": True, "preload_s": round(preload_s, 3), "pid": os.getpid()}
    try:
        Parent(listener, _load(args.entry), hello, args.grace_s).serve()
    finally:
        args.socket.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

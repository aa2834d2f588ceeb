"""The readers of `bench.api.load`, a process of their own: bare sockets and one epoll.

The parent says on standard input which streams to open, then `begin` and `end`; answers are lines of JSON. A token is
timed three times: in the client's hands, which counts the client's own wait for a core; when the kernel had it for the
client (SO_TIMESTAMPNS), which does not; and when the store took it, by the id of its entry.
"""

import json
import re
import select
import socket
import struct
import sys
import time
from collections import deque
from enum import StrEnum
from typing import Any, Final

from bench.report import quantile

SLOW_S: Final = 2.0
"""A slow reader reads what is there once in so long."""
_TOKEN: Final = re.compile(rb'id: (\d+)-\d+\nevent: tokens\ndata: [^\n]*"content":"(\d{19})"')
_SO_TIMESTAMPNS: Final = 35
_READ_BYTES: Final = 1 << 18
_TIMES: Final = ("hands_ms", "arrival_ms", "arrival_after_store_ms")


class Pace(StrEnum):
    """How a reader reads."""

    READING = "reading"
    SLOW = "slow"
    DEAF = "deaf"  #: nothing after the begin


def pace_of(share: float, slow: float, deaf: float) -> Pace:
    """The pace of the reader that so large a share of all readers stands before."""
    if share >= slow + deaf:
        return Pace.READING
    return Pace.SLOW if share < slow else Pace.DEAF


class Readers:
    """All readers; `times` holds what the reading ones saw, in nanoseconds."""

    def __init__(self, port: int, job_ids: list[str], slow: float, deaf: float) -> None:
        self.times: dict[str, list[int]] = {name: [] for name in _TIMES}
        self.cut_off = 0
        self._asleep: deque[tuple[float, int]] = deque()
        self._socks: dict[int, tuple[socket.socket, Pace]] = {}
        self._unopened: set[int] = set()
        self._epoll = select.epoll()
        for number, job_id in enumerate(job_ids):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            sock.connect(("127.0.0.1", port))
            sock.setblocking(False)
            sock.send(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
            self._socks[sock.fileno()] = sock, pace_of(number / len(job_ids), slow, deaf)
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            self._unopened.add(sock.fileno())

    def open(self) -> None:
        """Return once every stream has begun."""
        while self._unopened:
            self._turn()

    def read_until_said(self) -> str:
        """Read the streams until the parent says something."""
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        while not self._turn():
            continue
        self._epoll.unregister(sys.stdin.fileno())
        return sys.stdin.readline().strip()

    def _turn(self) -> bool:
        """What may be read now; True when the parent said something."""
        is_said = False
        for number, _ in self._epoll.poll(0.05):
            if number == sys.stdin.fileno():
                is_said = True
            else:
                self._read(number)
        while self._asleep and self._asleep[0][0] < time.monotonic():
            self._epoll.register(self._asleep.popleft()[1], select.EPOLLIN)
        return is_said

    def _read(self, number: int) -> None:
        sock, pace = self._socks[number]
        try:
            data, extra, _, _ = sock.recvmsg(_READ_BYTES, 64)
        except ConnectionResetError:
            data, extra = b"", []
        now_ns = time.time_ns()
        if not data:
            self.cut_off += 1
            self._epoll.unregister(number)
        elif number in self._unopened:
            assert data.startswith(b"HTTP/1.1 200"), data[:200]
            self._unopened.discard(number)
        if data and pace is Pace.READING:
            seconds, ns = struct.unpack("qq", extra[0][2]) if extra else divmod(now_ns, 10**9)
            self._note(data, now_ns, seconds * 10**9 + ns)
        elif data:
            self._epoll.unregister(number)
            if pace is Pace.SLOW:
                self._asleep.append((time.monotonic() + SLOW_S, number))

    def _note(self, data: bytes, now_ns: int, arrived_ns: int) -> None:
        """A token that is split between two reads is left out."""
        in_hands, arrived, after_store = self.times.values()
        for stored_ms, written_ns in _TOKEN.findall(data):
            in_hands.append(now_ns - int(written_ns))
            arrived.append(arrived_ns - int(written_ns))
            after_store.append(arrived_ns - int(stored_ms) * 10**6)


def summary(readers: Readers) -> dict[str, Any]:
    found: dict[str, Any] = {"cut_off": readers.cut_off}
    for name, times in readers.times.items():
        times.sort()
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        found[name] = {key: round(quantile(times, share) / 1e6, 1) for key, share in shares.items()}
    return found | {"tokens": len(readers.times["hands_ms"])}


def main() -> None:
    began_s = time.perf_counter()
    readers = Readers(**json.loads(sys.stdin.readline()))
    readers.open()
    print(json.dumps({"opened_s": round(time.perf_counter() - began_s, 2)}), flush=True)
    readers.read_until_said()
    for times in readers.times.values():
        times.clear()
    readers.read_until_said()
    print(json.dumps(summary(readers)), flush=True)


if __name__ == "__main__":
    main()

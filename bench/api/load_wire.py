"""HTTP over bare sockets, and the api's CPU time, for `bench.api.load`.

A client library would dominate the measurement.
"""

import asyncio
import time
from enum import StrEnum
from typing import Any, Final

import psutil

MARK: Final = b'"content":"'
STAMP_DIGITS: Final = 19


class Wire(asyncio.Protocol):
    """One kept-alive HTTP connection; one request at a time."""

    def __init__(self) -> None:
        self._got = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        head = self._got.find(b"\r\n\r\n")
        if head < 0 or self._answer is None:
            return
        lower = bytes(self._got[:head]).lower()
        length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(self._got) < head + 4 + length:
            return
        answer, self._answer = self._answer, None
        answer.set_result((int(lower[9:12]), bytes(self._got[head + 4 : head + 4 + length])))
        self._got.clear()

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer


SLOW_S: Final = 2.0
"""A slow reader reads what is there once in so long."""


class Pace(StrEnum):
    """How a reader reads."""

    READING = "reading"
    SLOW = "slow"
    DEAF = "deaf"  #: nothing after the begin


class Reader(asyncio.Protocol):
    """One SSE client; a reading one records how old each token is when it arrives. A stamp split between two reads is
    skipped.
    """

    def __init__(self, request: bytes, delays: list[int], pace: Pace = Pace.READING) -> None:
        self._request = request
        self._delays = delays
        self._pace = pace
        self._transport: Any = None
        self.is_open = False
        self.is_ended = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_ended = True

    def _wait(self) -> None:
        """Read nothing for a while, or never again."""
        self._transport.pause_reading()
        if self._pace is Pace.SLOW:
            asyncio.get_running_loop().call_later(SLOW_S, self._transport.resume_reading)

    def data_received(self, data: bytes) -> None:
        now_ns = time.time_ns()
        if not self.is_open:
            assert data.startswith(b"HTTP/1.1 200"), data[:200]
            self.is_open = True
        if self._pace is not Pace.READING:
            self._wait()
            return
        at = data.find(MARK)
        while at >= 0:
            start = at + len(MARK)
            stamp = data[start : start + STAMP_DIGITS]
            if len(stamp) == STAMP_DIGITS:
                self._delays.append(now_ns - int(stamp))
            at = data.find(MARK, start)


async def wires(port: int, count: int) -> list[Wire]:
    """Connections to the api, kept alive."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Wire, "127.0.0.1", port) for _ in range(count)]
    return [wire for _, wire in made]


def get(path: str) -> bytes:
    return _request("GET", path)


def delete(path: str) -> bytes:
    return _request("DELETE", path)


def post(path: str, body: bytes) -> bytes:
    head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return _request("POST", path, head) + body


def _request(method: str, path: str, head: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{head}\r\n".encode()


class Spent:
    """CPU time of a process from now on."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._started_s, self._before_s = time.perf_counter(), self._total_s()

    def cpu_s(self) -> float:
        """Seconds, so far."""
        return self._total_s() - self._before_s

    def share(self) -> float:
        """Of one core, so far."""
        return round(self.cpu_s() / (time.perf_counter() - self._started_s), 3)

    def _total_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

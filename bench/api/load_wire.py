"""HTTP over bare sockets, and the api's CPU time, for `bench.api.load`.

A client library would dominate the measurement.
"""

import asyncio
import time
from typing import Any

import psutil


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

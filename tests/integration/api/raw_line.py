"""A client that sends given bytes over one kept-alive connection.

For corpora: thousands of requests, some of which no proper client would send. A client library costs more than the
api does.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from tests.integration.api.conftest import Rig
from tests.time_limits import HANG_S


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    took_s: float

    def json(self) -> Any:
        return orjson.loads(self.body)


class RawLine:
    """One connection, made again whenever the server hung up."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._address = (host, int(port))
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, bytes] | None = None
    ) -> Answer:
        host = ":".join(map(str, self._address))
        fields = {"host": host.encode(), "content-length": b"%d" % len(body)} | dict(headers or {})
        head = b"".join(b"%b: %b\r\n" % (n.encode(), value) for n, value in fields.items())
        started_s = time.monotonic()
        if self._writer is None or self._writer.transport.is_closing():
            self._reader, self._writer = await asyncio.open_connection(*self._address)
        assert self._reader is not None
        self._writer.write(b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode(), path.encode(), head))
        self._writer.write(body)
        async with asyncio.timeout(HANG_S):
            status, answer = await self._answer(self._reader)
        return Answer(status, answer, time.monotonic() - started_s)

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length)) if length else b""
        # An answer without a length is a stream: nobody here wants it, so it is left.
        if b"connection: close" in head or b"transfer-encoding: chunked" in head:
            self.close()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@asynccontextmanager
async def raw_line(url: str) -> AsyncIterator[RawLine]:
    line = RawLine(url)
    try:
        yield line
    finally:
        line.close()


async def timed(rig: Rig, method: str, path: str, **more: Any) -> tuple[httpx.Response, float]:
    """The answer, and the seconds of CPU that client and api took, which are one process here."""
    started_s = time.process_time()
    answer = await rig.client.request(method, path, **more)
    return answer, time.process_time() - started_s

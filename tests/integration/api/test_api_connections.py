"""What a client may do with a connection before its first request, and streams that bypass the server's `send`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from api.http.protocol import HEAD_LIMIT_BYTES, BoundedHttpProtocol, ResponseWriter, writer_of
from api.http.shutdown import Shutdown
from api.http.sse import Stream
from tests.integration.api.fakes import serving
from tests.time_limits import HANG_S


class SmallProtocol(BoundedHttpProtocol):
    """Room for three, and time for a machine that stands still."""

    head_timeout_s = HANG_S
    connections_limit = 3


class HastyProtocol(SmallProtocol):
    head_timeout_s = 0.2


class StreamingApp:
    """An application with one stream that says when it has begun."""

    def __init__(self) -> None:
        self.wire: ResponseWriter | None = None
        self.go_on = asyncio.Event()
        self.app = FastAPI()
        self.app.add_api_route("/", self.hello)
        self.app.add_api_route("/stream", self.stream)
        self.app.add_api_route("/refuse", self.refuse, methods=["POST"])

    async def hello(self, request: Request) -> Response:
        return PlainTextResponse("hello")

    async def refuse(self, request: Request) -> Response:
        return PlainTextResponse("too much", 413, {"connection": "close"})

    async def stream(self, request: Request) -> Response:
        self.wire = writer_of(request.scope)
        return Stream(self._frames(), keep_alive_s=10, shutdown=Shutdown())

    async def _frames(self) -> AsyncGenerator[bytes, None]:
        yield b"first\n"
        await self.go_on.wait()
        yield b"last\n"


@pytest.fixture
async def streaming() -> StreamingApp:
    return StreamingApp()


@pytest.fixture
async def port(streaming: StreamingApp) -> AsyncIterator[int]:
    async with serving(streaming.app, SmallProtocol) as url:
        yield int(url.rsplit(":", 1)[1])


@pytest.fixture
async def hasty(streaming: StreamingApp) -> AsyncIterator[int]:
    """The port of a server that waits for headers a fifth of a second."""
    async with serving(streaming.app, HastyProtocol) as url:
        yield int(url.rsplit(":", 1)[1])


@asynccontextmanager
async def line(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.close()


async def test_headers_that_never_end_are_given_up(hasty: int) -> None:
    async with line(hasty) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n")
        await asyncio.sleep(0.12)
        writer.write(b"a: 1\r\n")  # a byte now and then does not help

        assert (await reader.read()).startswith(b"HTTP/1.1 408")


async def test_a_connection_that_says_nothing_is_given_up(hasty: int) -> None:
    async with line(hasty) as (reader, _):
        assert (await reader.read()).startswith(b"HTTP/1.1 408")


async def test_a_second_request_has_its_own_time(hasty: int) -> None:
    async with line(hasty) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"hello")
        await asyncio.sleep(0.25)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")

        await reader.readuntil(b"hello")
        writer.write(b"GET / HTTP/1.1\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 408")


async def test_headers_without_end_are_not_held(port: int) -> None:
    async with line(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nx: " + b"a" * HEAD_LIMIT_BYTES)

        assert (await reader.read()).startswith(b"HTTP/1.1 431")


async def test_headers_that_end_in_what_comes_at_once_are_measured_too(port: int) -> None:
    def head(size: int) -> bytes:
        rest = b"GET / HTTP/1.1\r\nhost: x\r\nx: \r\n\r\n"
        return rest[:-4] + b"a" * (size - len(rest)) + rest[-4:]

    async with line(port) as (reader, writer):
        writer.write(head(HEAD_LIMIT_BYTES) + head(100))
        await reader.readuntil(b"hello")
        await reader.readuntil(b"hello")
        writer.write(head(HEAD_LIMIT_BYTES + 1))

        assert (await reader.read()).startswith(b"HTTP/1.1 431")


async def test_a_client_that_sends_its_whole_body_first_can_read_the_refusal(port: int) -> None:
    async with line(port) as (reader, writer):
        writer.write(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n")
        answer = asyncio.create_task(reader.read())
        for _ in range(100):
            writer.write(b"x" * 100_000)
            await writer.drain()

        assert (await answer).endswith(b"too much")


async def test_a_client_that_keeps_sending_after_a_refusal_is_disconnected(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.http.protocol.PART_S", 0.1)
    async with line(port) as (_, writer):
        writer.write(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n")
        async with asyncio.timeout(60):
            while not writer.transport.is_closing():  # a reset closes it
                writer.write(b"x")
                await asyncio.sleep(0.01)


async def test_a_connection_over_the_limit_gets_503_with_retry_after(port: int) -> None:
    async with line(port) as (_, a), line(port) as (_, b), line(port) as (_, c):
        for writer in (a, b, c):
            writer.write(b"GET / HTTP/1.1\r\n")
            await writer.drain()
        async with line(port) as (reader, _):
            answer = await reader.read()

    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in answer


async def test_directly_written_bytes_are_part_of_the_response(
    port: int, streaming: StreamingApp
) -> None:
    async with line(port) as (reader, writer):
        writer.write(b"GET /stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await reader.readuntil(b"first\n")
        assert streaming.wire is not None

        assert streaming.wire.is_writable
        streaming.wire.write(b"second\n")
        streaming.wire.write(b"")  # nothing to say must not look like the end
        streaming.go_on.set()

        body = await reader.read()
        assert body == b"\r\n7\r\nsecond\n\r\n5\r\nlast\n\r\n0\r\n\r\n"
        assert not streaming.wire.is_writable


async def test_a_client_that_takes_nothing_shuts_the_wire(
    port: int, streaming: StreamingApp
) -> None:
    async with line(port) as (reader, writer):
        writer.write(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"first\n")
        assert streaming.wire is not None
        sent = 0
        while streaming.wire.is_writable and sent < 200:
            streaming.wire.write(b"x" * 65_536)
            sent += 1
            await asyncio.sleep(0)

        assert sent < 200
        streaming.go_on.set()

"""A request that offers HTTP/2 (`Upgrade: h2c`) is answered as without the offer, by every listener."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from api.http.protocol import BoundedHttpProtocol
from eventing.process.http_server import listen
from tests.integration.api.fakes import serving
from tests.redis_server import free_port

JAVA = (
    b"POST /echo HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n%bHost: localhost\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
    b"User-Agent: Java-http-client/17.0.10\r\nContent-Type: application/json\r\n\r\n"
)
"""What Java's HttpClient sends, byte for byte, but for its length."""
SIZED = JAVA % b"Content-Length: 5\r\n" + b"hello"
CHUNKED = JAVA % b"Transfer-encoding: chunked\r\n" + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


async def echo(request: Request) -> Response:
    return Response(await request.body(), headers={"method": request.method})


async def greet(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


APP = Starlette(routes=[Route("/echo", echo, methods=["POST"]), WebSocketRoute("/ws", greet)])


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    """The listener of the broker, the pump and the activator."""
    port, stopping = free_port(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(listen(APP, host="127.0.0.1", port=port, stopping=stopping))
        async with asyncio.timeout(60):
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    await asyncio.sleep(0.01)
        yield port
        stopping.set()


@pytest.fixture(params=["api", "broker"])
async def port(request: pytest.FixtureRequest) -> AsyncIterator[int]:
    if request.param == "broker":
        async with listening() as port:
            yield port
    else:
        async with serving(APP, BoundedHttpProtocol) as url:  # type: ignore[arg-type]
            yield int(url.rsplit(":", 1)[1])


async def answers(port: int, *sent: bytes, count: int) -> list[bytes]:
    """The bodies of the answers on one connection; what is sent comes in these pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in sent:
        writer.write(piece)
        await asyncio.sleep(0.02)
    found = []
    async with asyncio.timeout(60):
        for _ in range(count):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK"), head
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found.append(await reader.readexactly(length))
    writer.close()
    return found


@pytest.mark.parametrize("offer", [SIZED, CHUNKED], ids=["fixed length", "chunked"])
async def test_a_body_behind_an_offer_of_http2_is_read(port: int, offer: bytes) -> None:
    assert await answers(port, offer, count=1) == [b"hello"]


@pytest.mark.parametrize("offer", [SIZED, CHUNKED], ids=["fixed length", "chunked"])
async def test_a_body_behind_an_offer_may_come_in_pieces(port: int, offer: bytes) -> None:
    pieces = (offer[:40], offer[40:200], offer[200:-7], offer[-7:-2], offer[-2:])

    assert await answers(port, *pieces, count=1) == [b"hello"]


async def test_a_second_call_on_the_connection_works_with_and_without_an_offer(port: int) -> None:
    plain = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nbye"

    assert await answers(port, SIZED, plain, CHUNKED, count=3) == [b"hello", b"bye", b"hello"]
    assert await answers(port, SIZED + CHUNKED + plain, count=3) == [b"hello", b"hello", b"bye"]


async def test_a_post_that_offers_a_websocket_keeps_its_body(port: int) -> None:
    """Proxies that pass `Upgrade` on for every path send it; only a GET opens a WebSocket."""
    offer = SIZED.replace(b"Upgrade: h2c", b"Upgrade: websocket").replace(b", HTTP2-Settings", b"")

    assert await answers(port, offer, CHUNKED, count=2) == [b"hello", b"hello"]


async def test_curl_with_an_offer_of_http2_gets_its_answer(port: int) -> None:
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--http2", "-d", "hello", f"http://127.0.0.1:{port}/echo"),
        stdout=asyncio.subprocess.PIPE,
    )

    assert await curl.communicate() == (b"hello", None)


async def test_websockets_still_upgrade(port: int) -> None:
    async with connect(f"ws://127.0.0.1:{port}/ws") as line:
        assert await line.recv() == "hello"

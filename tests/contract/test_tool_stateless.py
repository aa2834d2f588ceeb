"""Calls of MCP servers without sessions: one connection a send, streams, and what refusals mean."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from eventing.clock import SystemClock
from eventing.job.tools.sealed import origin_of
from eventing.job.tools.tool_list import definition_digest, definition_of
from steps.tools.client.answer import InDoubt, NotSent, Outgoing, Result, Target
from steps.tools.client.mcp_client import McpClient
from steps.tools.targets import operators_own
from tests.contract.tool_process import COMPLETE, TOOL, RawMcp, listening

DIGEST = definition_digest(definition_of(TOOL))


def target_of(url: str) -> Target:
    return Target(label="a", url=url, origin=origin_of(url), allowed=operators_own(url))


def a_call() -> Outgoing:
    return Outgoing(tool="do", arguments={}, key="k", timeout_s=10.0, digest=DIGEST)


@asynccontextmanager
async def known(
    server: RawMcp, app: ASGIApp | None = None
) -> AsyncIterator[tuple[McpClient, Target]]:
    """A client that knows the server's era."""
    async with listening(app or server.app()) as url:
        client, target = McpClient(SystemClock()), target_of(f"{url}/mcp")
        await client.list_tools(target, 10.0)
        server.seen.clear()
        yield client, target


async def called(client: McpClient, target: Target, **more: Any) -> str:
    """The text that the call was answered with, or the name of what it raised."""
    try:
        answer = await client.call(target, a_call(), 1 << 20, **more)
    except (InDoubt, NotSent) as error:
        return type(error).__name__
    assert isinstance(answer, Result)
    return ("error: " if answer.is_error else "") + str(answer.content[0]["text"])


async def test_a_list_and_its_call_share_a_connection_that_no_other_send_gets() -> None:
    server, ports = RawMcp(), list[int]()
    inner = server.app()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            ports.append(scope["client"][1])
        await inner(scope, receive, send)

    async with known(server, app) as (client, target):
        ports.clear()
        assert [await called(client, target) for _ in range(2)] == ["done", "done"]

    assert [method for method, _, _ in server.seen] == ["tools/list", "tools/call"] * 2
    assert ports[0] == ports[1] != ports[2] == ports[3]


async def test_a_server_that_closes_after_each_answer_is_called_on_another_connection() -> None:
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        message = orjson.loads(await reader.readexactly(size))
        asked.append(message["method"])
        result = await RawMcp()._result(message["method"], {})
        body = orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
        start = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        writer.write(start.encode() + b"\r\n\r\n" + body)
        writer.close()  # and never said so

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        client, target = McpClient(SystemClock()), target_of(f"http://127.0.0.1:{port}/mcp")
        await client.list_tools(target, 10.0)

        assert {await called(client, target) for _ in range(20)} == {"done"}

    assert asked.count("tools/call") == 20


async def test_a_stream_says_how_far_the_call_is_and_then_its_result() -> None:
    server, heard = RawMcp(), list[Any]()

    def stream(params: dict[str, Any]) -> Response:
        token = params["_meta"]["progressToken"]
        progress = {"progressToken": token, "progress": 3, "total": 10, "message": "page 3"}
        other = {"progressToken": "another", "progress": 9}
        result = {**COMPLETE, "content": [{"type": "text", "text": "streamed"}]}
        messages = [
            {"method": "notifications/progress", "params": other},
            {"method": "notifications/progress", "params": progress},
            {"id": server.ids[-1], "result": result},
        ]
        lines = [b"event: ping\ndata: {}\n\n"]
        lines += [b"data: %b\n\n" % orjson.dumps({"jsonrpc": "2.0", **m}) for m in messages]
        return StreamingResponse(iter(lines), media_type="text/event-stream")

    server.methods["tools/call"] = stream
    async with known(server) as (client, target):
        said = await called(client, target, on_progress=lambda *each: heard.append(each))

    assert (said, heard) == ("streamed", [(3, 10, "page 3")])


REFUSED = "error: The tool server refused the call: "
RPC_ERROR = orjson.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": -32602, "message": "no"}})


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        pytest.param(
            Response(RPC_ERROR, 400, media_type="application/json"), REFUSED + "no", id="an error"
        ),
        pytest.param(Response("no", 404), REFUSED + "The server answered 404", id="404"),
        pytest.param(Response(status_code=202), REFUSED + "The server answered 202", id="202"),
        pytest.param(
            Response("{}", media_type="application/json"),
            REFUSED + "The answer can not be read",
            id="no message",
        ),
        pytest.param(
            Response("hi", media_type="text/html"),
            REFUSED + "Unexpected content type: text/html; charset=utf-8",
            id="a page",
        ),
        pytest.param(Response("no", 429), "NotSent", id="429"),
        pytest.param(Response("no", 503), "InDoubt", id="503"),
        pytest.param(
            Response("data: \n\n", media_type="text/event-stream"), "InDoubt", id="a stream's end"
        ),
    ],
)
async def test_what_an_answer_that_is_no_result_means(answer: Response, meaning: str) -> None:
    server = RawMcp()
    server.methods["tools/call"] = lambda _: answer

    async with known(server) as (client, target):
        assert await called(client, target) == meaning
    assert len(server.called()) == 1

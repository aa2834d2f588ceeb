"""Direct routes: what they show where they are off, and how they read bodies."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from eventing.process.body import BodyReader, BodyRoom
from predictor.serving.direct_access import DirectAccess, DirectRules


async def page(_: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def echo(request: Request) -> PlainTextResponse:
    told = (request.headers.get(name, "-") for name in ("content-encoding", "content-length"))
    return PlainTextResponse(" ".join([*told, (await request.body()).decode()]))


APP = Starlette(
    routes=[
        Route("/metrics", page),
        Route("/v1/models", page),
        Route("/v1/completions", echo, methods=["POST"]),
    ]
)


def reader(limit_bytes: int = 1024) -> BodyReader:
    return BodyReader(BodyRoom(), limit_bytes=limit_bytes, timeout_s=0.1)


async def sent(content: Any, **headers: str) -> httpx.Response:
    app = DirectAccess(APP, rules=DirectRules(), bodies=reader())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
        return await client.post("/v1/completions", content=content, headers=headers)


@pytest.mark.parametrize(
    ("address", "path", "status"),
    [
        ("10.0.0.7", "/metrics", 200),
        ("10.0.0.7", "/v1/models", 403),
        ("127.0.0.1", "/metrics", 403),  # queue-proxy's, for whoever came by the gateway
        ("::1", "/metrics", 403),
        ("::ffff:127.0.0.1", "/metrics", 403),
        ("", "/metrics", 403),
    ],
)
async def test_metrics_are_for_callers_that_did_not_pass_queue_proxy(
    address: str, path: str, status: int
) -> None:
    app = DirectAccess(APP, rules=DirectRules(is_on=False), bodies=reader())
    transport = httpx.ASGITransport(app=app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
        assert (await client.get(path)).status_code == status


async def test_a_body_that_stops_arriving_is_given_up() -> None:
    stopped = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield b"{"
        await stopped.wait()

    answer = await sent(half())
    stopped.set()

    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "body_too_slow")


async def test_an_encoded_body_reaches_the_route_decoded() -> None:
    answer = await sent(gzip.compress(b"hello"), **{"content-encoding": "gzip"})

    assert answer.text == "- 5 hello"


async def test_forty_bytes_that_decode_to_more_than_the_limit_are_refused() -> None:
    answer = await sent(gzip.compress(b" " * 100_000), **{"content-encoding": "gzip"})

    assert answer.status_code == 413


async def test_an_encoding_that_nobody_knows_is_refused_with_those_that_are() -> None:
    answer = await sent(b"x", **{"content-encoding": "lzma"})

    assert answer.status_code == 415
    assert "gzip" in answer.headers["accept-encoding"]

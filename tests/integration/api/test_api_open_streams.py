"""Open streams: the limit for each tenant, how many are opened at a time, and their end when a key is revoked."""

import asyncio
import socket
from contextlib import AsyncExitStack, ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
import uvloop
import websockets
from fastapi import FastAPI
from redis.asyncio import Redis

from api.http.protocol import BoundedHttpProtocol
from api.http.shutdown import Shutdown, ShutdownServer
from api.limit import open_streams
from eventing.api_key import RedisKeys
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import api_with_jobs, settings_for
from tests.integration.api.conftest import Rig, headers_of
from tests.redis_server import free_port


def key_id_of(headers: dict[str, str]) -> str:
    return headers["authorization"].split("_")[1]


async def test_a_tenant_may_have_so_many_streams_and_another_as_many(
    redis_url: str, store: RedisStore, redis: Redis, acme: dict[str, str], other: dict[str, str]
) -> None:
    settings = settings_for(redis_url, keys_source="redis", limit_open_streams=2)
    async with api_with_jobs(settings, store) as api, AsyncExitStack() as stack:
        path = f"/v1/jobs/{await api.submit(headers=acme)}/events"
        held = []  # an iterator that is let go closes its stream
        for _ in range(2):
            opened = await stack.enter_async_context(api.client.stream("GET", path, headers=acme))
            held.append(opened.aiter_lines())
            await anext(held[-1])
        chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        refused = [
            await api.client.get(path, headers=acme),
            await api.client.post("/v1/chat/completions", json=chat, headers=acme),
        ]
        others = f"/v1/jobs/{await api.submit(headers=other)}/events"
        async with api.client.stream("GET", others, headers=other) as served:
            assert served.status_code == 200

    assert [answer.status_code for answer in refused] == [429, 429]
    assert all("retry-after" in answer.headers for answer in refused)


async def test_a_stream_that_was_left_makes_room(
    redis_url: str, store: RedisStore, redis: Redis, acme: dict[str, str]
) -> None:
    settings = settings_for(redis_url, keys_source="redis", limit_open_streams=1)
    async with api_with_jobs(settings, store) as api:
        path = f"/v1/jobs/{await api.submit(headers=acme)}/events"
        async with api.client.stream("GET", path, headers=acme) as first:
            await anext(first.aiter_lines())
        async with asyncio.timeout(60):
            while True:
                async with api.client.stream("GET", path, headers=acme) as again:
                    if again.status_code == 200:
                        break


@pytest.mark.parametrize("way", ["events", "ws"])
async def test_a_revoked_key_ends_the_streams_that_it_opened(
    redis_url: str, store: RedisStore, redis: Redis, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(open_streams, "_LOOK_EVERY_S", 0.2)
    monkeypatch.setattr("api.auth.authenticator._REMEMBER_S", 0.1)
    keeper, revoked = [await headers_of(redis, "acme") for _ in range(2)]
    settings = settings_for(redis_url, keys_source="redis")
    async with api_with_jobs(settings, store) as api:
        job_id = await api.submit(headers=keeper)
        path = f"/v1/jobs/{job_id}/{way}"
        async with asyncio.timeout(60):
            said = await (_socket if way == "ws" else _events)(api, path, revoked, redis)

    assert "revoked" in said


async def _events(api: Any, path: str, headers: dict[str, str], redis: Redis) -> str:
    async with api.client.stream("GET", path, headers=headers) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        assert await RedisKeys(redis).remove(key_id_of(headers))
        return [line async for line in lines][-1]


async def _socket(api: Any, path: str, headers: dict[str, str], redis: Redis) -> str:
    url = f"{api.url}{path}".replace("http", "ws")
    async with websockets.connect(url, additional_headers=headers) as socket:
        await socket.recv()
        assert await RedisKeys(redis).remove(key_id_of(headers))
        await socket.wait_closed()
        assert socket.close_code == 4401
        return str(socket.close_reason)


async def test_a_call_is_answered_while_hundreds_of_streams_wait_to_be_opened(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, read, begun = await rig.submit(), RedisStore.get, 0

    async def noted(*asked: Any, **how: Any) -> Any:
        nonlocal begun
        begun += 1
        return await read(*asked, **how)

    monkeypatch.setattr(RedisStore, "get", noted)
    address = urlsplit(rig.url)
    host = f"host: {address.netloc}"
    lines = [await asyncio.open_connection(address.hostname, address.port) for _ in range(301)]
    *streams, call = (writer for _, writer in lines)
    try:
        for writer in streams:  # none of these waits, so the server finds them all at once
            writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\n{host}\r\n\r\n".encode())
        call.write(f"GET /healthz HTTP/1.1\r\n{host}\r\n\r\n".encode())
        assert b"200 OK" in await lines[-1][0].readline()
        begun_before = begun
        for reader, _ in lines[:-1]:
            assert b"200 OK" in await reader.readline()
    finally:
        for writer in (*streams, call):
            writer.transport.abort()

    assert begun_before < 40


def test_connections_are_accepted_many_at_a_time() -> None:
    """A health check is a new connection, and stands behind all that came before it."""
    accepted: list[int] = []

    class Noting(BoundedHttpProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            accepted.append(iterations)
            super().connection_made(transport)

    iterations = 0

    def count() -> None:
        nonlocal iterations
        iterations += 1
        asyncio.get_running_loop().call_soon(count)

    async def serve() -> None:
        port = free_port()
        config = uvicorn.Config(FastAPI(), port=port, http=Noting, log_config=None, lifespan="off")
        server = ShutdownServer(config, Shutdown())
        with ExitStack() as clients:
            async with asyncio.TaskGroup() as group:
                group.create_task(server.serve())
                while not server.started:
                    await asyncio.sleep(0.01)
                for _ in range(160):  # in the kernel's queue while the loop does something else
                    clients.enter_context(socket.create_connection(("127.0.0.1", port)))
                count()
                while len(accepted) < 160:
                    await asyncio.sleep(0)
                server.should_exit = True

    uvloop.run(serve())
    assert accepted[-1] - accepted[0] < 40

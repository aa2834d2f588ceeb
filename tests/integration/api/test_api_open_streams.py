"""Open streams: the limit for each tenant, and their end when a key is revoked."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
import websockets
from redis.asyncio import Redis

from api.limit import open_streams
from eventing.api_key import RedisKeys
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import api_with_jobs, settings_for
from tests.integration.api.conftest import headers_of


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
        async with asyncio.timeout(5):
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
        async with asyncio.timeout(8):
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

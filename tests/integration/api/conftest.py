"""The api on a real Valkey and real uvicorn, with a recording broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from api.app import create_app
from api.auth.principal import Scope
from api.settings import AnonymousAccess, ApiSettings
from api.wiring.background import loops
from api.wiring.parts import Parts, make_parts
from api.wiring.routers import routers
from eventing.api_key import RedisKeys, mint
from eventing.redis import keys
from eventing.settings import ModelCard
from eventing.store.redis_store import RedisStore
from tests import time_limits
from tests.integration.api.fakes import FakeBroker, FakeEngine, FakePredictor, serving

NOW_S = 1_764_000_000
"""When keys are made: a time long gone, since nothing may hang on it."""


@dataclass
class Served:
    """One running api, and what it stands on."""

    url: str
    client: httpx.AsyncClient
    parts: Parts
    store: RedisStore
    broker: FakeBroker

    async def submit(self, text: str = "hi", **line: Any) -> str:
        """A chat job's id."""
        headers = line.pop("headers", {})
        answer = await self.client.post("/v1/jobs", json=chat_line(text, **line), headers=headers)
        assert answer.status_code == 202, answer.text
        job_id = str(answer.json()["id"])
        if self.broker is not None:
            await self.broker.until_asked_for(job_id)
        return job_id

    async def until_told(self) -> None:
        """Return once every end so far has been told to every listener."""
        async with asyncio.timeout(60):
            while not await self._is_told():
                await asyncio.sleep(0.005)

    async def _is_told(self) -> bool:
        newest = await self.store.redis.xrevrange(keys.ENDED, count=1)
        groups = await self.store.redis.xinfo_groups(keys.ENDED) if newest else []
        return not newest or any(
            group["last-delivered-id"] == newest[0][0] and not group["pending"] for group in groups
        )


@dataclass
class Rig(Served):
    """For everybody who reaches it."""

    async def predictor(self, job_id: str) -> FakePredictor:
        return await FakePredictor(self.store, job_id).start()


def chat_line(text: str = "hi", *, model: str = "m", **line: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return {"url": "/v1/chat/completions", "body": body} | line


@pytest.fixture
def api_settings(redis_url: str, tmp_path: Path) -> ApiSettings:
    return ApiSettings(
        redis_url=redis_url,
        models=(ModelCard(name="m", context_tokens=64),),
        anonymous_access=AnonymousAccess.LOOPBACK,
        keep_alive_s=0.2,
        max_unpublished=100,
        files_url=f"file://{tmp_path}/files",
        **time_limits.API,
    )


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


UNASKED = (
    "approval_notices",
    "batches",
    "metrics",
    "sweep",
    "deadlines",
    "audits",
    "audit-figures",
)
"""Loops that a test runs itself when it wants them: they change what it looks at by the clock."""


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[None]:
    """The other loops of the api, while the block runs."""
    async with asyncio.TaskGroup() as group:
        named = loops(parts).items()
        tasks = [group.create_task(loop()) for name, loop in named if name not in UNASKED]
        yield
        for task in tasks:
            task.cancel()
    await parts.streams.close()


def app_over(parts: Parts) -> FastAPI:
    return create_app(routers(parts), lambda _: running(parts), parts.settings.cors_origins)


@asynccontextmanager
async def rig_over(
    settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> AsyncIterator[Rig]:
    """A rig; leaving it ends its api as a SIGTERM would."""
    parts = make_parts(settings, store.redis, broker)
    async with (
        serving(app_over(parts)) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        yield Rig(url, client, parts, store, broker)


@pytest.fixture
async def rig(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker, redis: Redis
) -> AsyncIterator[Rig]:
    async with rig_over(api_settings, store, broker) as made:
        yield made


async def headers_of(redis: Redis, tenant: str, *scopes: str) -> dict[str, str]:
    """Those of a request with a fresh key of the tenant; it may do everything that clients may,
    unless `scopes` say what.
    """
    every = [str(scope) for scope in Scope if scope is not Scope.RESULTS_WRITE]
    key, text = mint(tenant, now_s=NOW_S, scopes=scopes or every)
    await RedisKeys(redis).put(key)
    return {"authorization": f"Bearer {text}"}


@pytest.fixture
async def acme(redis: Redis) -> dict[str, str]:
    return await headers_of(redis, "acme")


@pytest.fixture
async def other(redis: Redis) -> dict[str, str]:
    return await headers_of(redis, "other")


@pytest.fixture
async def engine(rig: Rig) -> AsyncIterator[FakeEngine]:
    """Answers every job of the rig."""
    async with asyncio.TaskGroup() as group:
        yield FakeEngine(rig.store, rig.broker, group)

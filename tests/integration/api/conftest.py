"""The api over a real Valkey and a broker that remembers, served by a real uvicorn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.app import create_app
from api.assembly import Loop
from api.auth.principal import Scope
from api.batch.file_store import FileStore
from api.batch.store import BatchStore
from api.front import Front
from api.job.catalog import Catalog
from api.settings import ApiSettings, ModelCard
from eventing.api_key import RedisKeys, mint
from eventing.live.completion_notifier import CompletionNotifier
from eventing.live.stream_multiplexer import StreamMultiplexer
from eventing.store.redis_store import RedisStore
from tests.integration.api.fakes import FakeBroker, FakeEngine, FakePredictor, serving

NOW_S = 1_764_000_000
"""When keys are made: a time long gone, since nothing may hang on it."""


@dataclass
class Served:
    """One running api, and what it stands on."""

    url: str
    client: httpx.AsyncClient
    front: Front
    store: RedisStore
    broker: FakeBroker

    async def submit(self, text: str = "hi", **line: Any) -> str:
        """A chat job's id."""
        headers = line.pop("headers", {})
        answer = await self.client.post("/v1/jobs", json=chat_line(text, **line), headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


@dataclass
class Rig(Served):
    """Without doorkeepers and messengers; `tests.integration.api.furnished` has them."""

    hub: StreamMultiplexer

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
        body_timeout_s=0.5,
        keep_alive_s=0.2,
        files_url=f"file://{tmp_path}/files",
    )


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@dataclass(frozen=True)
class Parts:
    """A front, and those of its parts that must run."""

    front: Front
    hub: StreamMultiplexer
    bell: CompletionNotifier

    @classmethod
    def over(cls, settings: ApiSettings, store: RedisStore, broker: FakeBroker) -> "Parts":
        hub = StreamMultiplexer(settings.redis_url.get_secret_value(), store, store.redis)
        bell = CompletionNotifier(store.redis)
        front = Front(
            settings=settings,
            store=store,
            publisher=broker,
            live=hub,
            ends=bell,
            catalog=Catalog(settings.models),
            batches=BatchStore(store.redis),
        )
        return cls(front, hub, bell)

    @asynccontextmanager
    async def running(self, *loops: Loop) -> AsyncIterator[None]:
        """They, and `loops`, while the block runs."""
        async with asyncio.TaskGroup() as group:
            notes = partial(self.front.published.run, self.front.store)
            every = (self.hub.run, self.bell.run, notes, *loops)
            tasks = [group.create_task(loop()) for loop in every]
            yield
            for task in tasks:
                task.cancel()
        await self.hub.close()


@asynccontextmanager
async def rig_over(
    settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> AsyncIterator[Rig]:
    """A rig; leaving it ends its api as a SIGTERM would."""
    parts = Parts.over(settings, store, broker)
    front = replace(parts.front, files=FileStore(settings.files_url))
    async with (
        serving(create_app(front, lambda _: parts.running())) as url,
        httpx.AsyncClient(base_url=url, timeout=5) as client,
    ):
        yield Rig(url, client, front, store, broker, parts.hub)


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

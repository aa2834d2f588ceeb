"""The api over a real Valkey and a broker that remembers, served by a real uvicorn."""

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
from api.batch_store import BatchStore
from api.catalog import Catalog
from api.file_store import FileStore
from api.front import Front
from api.settings import ApiSettings, ModelCard
from eventing.end_bell import EndBell
from eventing.redis_store import RedisStore
from eventing.token_hub import TokenHub
from tests.integration.api.fakes import FakeBroker, FakeEngine, FakePredictor, serving


@dataclass
class Rig:
    """One running api and what stands around it."""

    url: str
    client: httpx.AsyncClient
    front: Front
    store: RedisStore
    broker: FakeBroker
    hub: TokenHub

    async def submit(self, text: str = "hi", **line: Any) -> str:
        """A chat job's id."""
        headers = line.pop("headers", {})
        answer = await self.client.post("/v1/jobs", json=chat_line(text, **line), headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

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


@asynccontextmanager
async def rig_over(
    settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> AsyncIterator[Rig]:
    """A rig; leaving it ends its api as a SIGTERM would."""
    hub = TokenHub(settings.redis_url.get_secret_value(), store, store.redis)
    bell = EndBell(store.redis)
    front = Front(
        settings=settings,
        store=store,
        publisher=broker,
        live=hub,
        ends=bell,
        catalog=Catalog(settings.models),
        files=FileStore(settings.files_url),
        batches=BatchStore(store.redis),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            loops = [group.create_task(hub.run()), group.create_task(bell.run())]
            yield
            for loop in loops:
                loop.cancel()
        await hub.close()

    async with (
        serving(create_app(front, lifespan)) as url,
        httpx.AsyncClient(base_url=url, timeout=5) as client,
    ):
        yield Rig(url=url, client=client, front=front, store=store, broker=broker, hub=hub)


@pytest.fixture
async def rig(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker, redis: Redis
) -> AsyncIterator[Rig]:
    async with rig_over(api_settings, store, broker) as made:
        yield made


@pytest.fixture
async def engine(rig: Rig) -> AsyncIterator[FakeEngine]:
    """Answers every job of the rig."""
    async with asyncio.TaskGroup() as group:
        yield FakeEngine(rig.store, rig.broker, group)

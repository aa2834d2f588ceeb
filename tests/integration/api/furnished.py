"""An api with its doorkeepers and messengers (`api.assembly`) over a real Valkey and socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from api.app import create_app
from api.assembly import furnish
from api.batch_store import BatchStore
from api.catalog import Catalog
from api.front import Front
from api.settings import ApiSettings, ModelCard
from eventing.end_bell import EndBell
from eventing.event import build_binary
from eventing.job import JobId
from eventing.job_event import result_event
from eventing.redis_store import RedisStore
from eventing.token_hub import TokenHub
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import FakeBroker, FakePredictor, chat_result, serving


@dataclass
class Furnished:
    """One running api."""

    url: str
    client: httpx.AsyncClient
    front: Front
    store: RedisStore
    broker: FakeBroker
    app: FastAPI | None = None

    async def submit(self, text: str = "hi", **line: Any) -> str:
        headers = line.pop("headers", {})
        answer = await self.client.post("/v1/jobs", json=chat_line(text, **line), headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def answer(self, job_id: str, text: str = "four") -> None:
        """A predictor answers, and the broker delivers the result event."""
        predictor = await FakePredictor(self.store, job_id).start()
        await predictor.finish(chat_result(text))
        assert (await self.deliver(job_id)).status_code == 202

    async def deliver(self, job_id: str, token: str = "") -> httpx.Response:
        job = await self.store.get(JobId(job_id))
        assert job is not None
        headers, body = build_binary(result_event(job))
        if token:
            headers["authorization"] = f"Bearer {token}"
        return await self.client.post("/internal/events", content=body, headers=headers)


def settings_for(redis_url: str, **fields: Any) -> ApiSettings:
    defaults: dict[str, Any] = {
        "redis_url": redis_url,
        "models": (ModelCard(name="m", context_tokens=64),),
        "webhook_allow": ("127.0.0.0/8",),
        "webhook_timeout_s": 1.0,
    }
    return ApiSettings(**defaults | fields)


@asynccontextmanager
async def furnished(settings: ApiSettings, store: RedisStore) -> AsyncIterator[Furnished]:
    """The api while the block runs."""
    broker = FakeBroker()
    hub = TokenHub(settings.redis_url.get_secret_value(), store, store.redis)
    bell = EndBell(store.redis)
    bare = Front(
        settings=settings,
        store=store,
        publisher=broker,
        live=hub,
        ends=bell,
        catalog=Catalog(settings.models),
        batches=BatchStore(store.redis),
    )
    front, loops = furnish(bare, store.redis)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(loop()) for loop in (hub.run, bell.run, *loops.values())]
            yield
            for task in running:
                task.cancel()
        await hub.close()

    app = create_app(front, lifespan)
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, timeout=5) as client,
    ):
        yield Furnished(url, client, front, store, broker, app)

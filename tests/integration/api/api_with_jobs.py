"""An api whose jobs a test can end as predictor and broker do, over a real Valkey and socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from api.settings import AnonymousAccess, ApiSettings
from api.wiring.parts import make_parts
from eventing.cloudevent.event import build_binary
from eventing.cloudevent.result_event import result_event
from eventing.job.job import JobId
from eventing.settings import ModelCard
from eventing.store.redis_store import RedisStore
from tests import time_limits
from tests.integration.api.conftest import Served, app_over
from tests.integration.api.fakes import FakeBroker, FakePredictor, chat_result, serving


@dataclass
class ApiWithJobs(Served):
    """One running api."""

    app: FastAPI | None = None

    async def answer(self, job_id: str, text: str = "four") -> None:
        """A predictor answers, and everybody has been told."""
        predictor = await FakePredictor(self.store, job_id).start()
        await predictor.finish(chat_result(text))
        await self.until_told()

    async def deliver(self, job_id: str, token: str = "") -> httpx.Response:
        job = await self.store.get(JobId(job_id))
        assert job is not None
        headers, body = build_binary(result_event(job))
        if token:
            headers["authorization"] = f"Bearer {token}"
        answer = await self.client.post("/internal/events", content=body, headers=headers)
        await self.until_told()
        return answer


def settings_for(redis_url: str, **fields: Any) -> ApiSettings:
    defaults: dict[str, Any] = {
        "redis_url": redis_url,
        "models": (ModelCard(name="m", context_tokens=64),),
        "anonymous_access": AnonymousAccess.LOOPBACK,
        "webhook_allow": ("127.0.0.0/8",),
        "max_unpublished": 100,
        **time_limits.API,
    }
    return ApiSettings(**defaults | fields)


@asynccontextmanager
async def api_with_jobs(settings: ApiSettings, store: RedisStore) -> AsyncIterator[ApiWithJobs]:
    """The api while the block runs."""
    broker = FakeBroker()
    parts = make_parts(settings, store.redis, broker)
    app = app_over(parts)
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        yield ApiWithJobs(url, client, parts, store, broker, app)

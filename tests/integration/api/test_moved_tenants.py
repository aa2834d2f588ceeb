"""A tenant whose new jobs another cell takes: nothing new is accepted here, and what was accepted is still served."""

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, InternalServerError
from redis.asyncio import Redis

from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import FakePredictor, chat_result
from tests.integration.api.test_batch_limits import (
    ended,
    lines,
    running,
    start,
)

OTHER = "https://b.example.com"
KEY = {"idempotency-key": "order-17"}


@pytest.fixture
def cell(redis_url: str, store: RedisStore, redis: Redis, tmp_path: Path) -> Any:
    def make(**moved: str) -> AbstractAsyncContextManager[ApiWithJobs]:
        files = f"file://{tmp_path}"
        return api_with_jobs(settings_for(redis_url, files_url=files, moved_tenants=moved), store)

    return make


@pytest.mark.parametrize("moved", [{"default": OTHER}, {"*": OTHER, "acme": "https://c.example"}])
async def test_new_jobs_of_a_moved_tenant_are_refused_with_the_other_cells_address(
    cell: Any, moved: dict[str, str]
) -> None:
    async with cell(**moved) as api:
        plain = await api.client.post("/v1/jobs", json=chat_line())
        keyed = await api.client.post("/v1/jobs", json=chat_line(), headers=KEY)
        listed = (await api.client.get("/v1/jobs")).json()["data"]

    for refused in (plain, keyed):
        assert (refused.status_code, refused.json()["code"]) == (503, "tenant_moved")
        assert OTHER in refused.json()["detail"]
        assert refused.headers["retry-after"] == "60"
    assert listed == []


async def test_the_jobs_of_other_tenants_are_accepted(cell: Any) -> None:
    async with cell(acme=OTHER) as api:
        answer = await api.client.post("/v1/jobs", json=chat_line())

    assert answer.status_code == 202


async def test_openais_client_is_told_where_to_go(cell: Any) -> None:
    async with (
        cell(default=OTHER) as api,
        AsyncOpenAI(base_url=f"{api.url}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(InternalServerError) as refused:
            await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}]
            )

    assert (refused.value.status_code, refused.value.code) == (503, "tenant_moved")
    assert OTHER in refused.value.message


async def test_a_job_that_was_accepted_before_runs_and_is_found_again(cell: Any) -> None:
    async with cell() as before:
        accepted = (await before.client.post("/v1/jobs", json=chat_line(), headers=KEY)).json()
    async with cell(default=OTHER) as api:
        again = await api.client.post("/v1/jobs", json=chat_line(), headers=KEY)
        await (await FakePredictor(api.store, accepted["id"]).start()).finish(chat_result("four"))
        seen = (await api.client.get(f"/v1/jobs/{accepted['id']}")).json()

    assert (again.status_code, again.json()["id"]) == (202, accepted["id"])
    assert seen["state"] == "completed"


async def test_a_batch_that_was_accepted_before_runs_to_its_end_and_a_new_one_is_refused(
    cell: Any,
) -> None:
    async with cell() as before:
        batch_id = await start(before, lines(3))
        batch = (await before.client.get(f"/v1/batches/{batch_id}")).json()
    async with cell(default=OTHER) as api, running(api), asyncio.TaskGroup() as group:

        async def answer(job_id: str) -> None:
            await (await FakePredictor(api.store, job_id).start()).finish(chat_result("four"))

        api.broker.on_event = lambda event: group.create_task(answer(event.subject)) and None
        seen = await ended(api, batch_id)
        call = {name: batch[name] for name in ("input_file_id", "endpoint", "completion_window")}
        refused = await api.client.post("/v1/batches", json=call)

    assert (seen["status"], seen["request_counts"]["completed"]) == ("completed", 3)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "tenant_moved")


async def test_a_repeat_of_an_accepted_batch_finds_it(cell: Any) -> None:
    async with cell() as before:
        form = {"file": ("in.jsonl", lines(1)), "purpose": (None, "batch")}
        file_id = (await before.client.post("/v1/files", files=form)).json()["id"]
        call = {"input_file_id": file_id, "completion_window": "24h"}
        call |= {"endpoint": "/v1/chat/completions"}
        first = await before.client.post("/v1/batches", json=call, headers=KEY)
    async with cell(default=OTHER) as api:
        again = await api.client.post("/v1/batches", json=call, headers=KEY)

    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])

"""A batch of a tenant with limits: it gets there, and leaves room for calls."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from api.auth.principal import Principal
from api.batch import runner as batch_runner
from api.limit.limit import RateLimited, tokens_asked
from api.limit.window import LimitMeter, Windows
from api.webhook.webhook import BATCH
from eventing.job.job import JobRequest, new_job_id
from eventing.job.store import NewJob
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import FakePredictor, chat_result

TENANT = "default"
URL = "/v1/chat/completions"


def lines(count: int, max_tokens: int = 40) -> bytes:
    made = []
    for n in range(1, count + 1):
        line = chat_line("q", custom_id=f"c{n}")
        line["body"]["max_tokens"] = max_tokens
        made.append(orjson.dumps(line))
    return b"\n".join(made)


COST = tokens_asked(JobRequest(url=URL, body=orjson.loads(lines(1))["body"]), 64)


@asynccontextmanager
async def limited(
    redis_url: str, store: RedisStore, folder: Path, **limits: int
) -> AsyncIterator[ApiWithJobs]:
    settings = settings_for(redis_url, files_url=f"file://{folder}", **limits)
    async with api_with_jobs(settings, store) as api:
        yield api


@asynccontextmanager
async def running(api: ApiWithJobs) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(batch_runner.run(api.parts.batches, turn_s=0.02))
        yield
        task.cancel()


@asynccontextmanager
async def answering(api: ApiWithJobs) -> AsyncIterator[None]:
    """Every job is answered, and its result delivered."""

    async def work(job_id: str) -> None:
        predictor = await FakePredictor(api.store, job_id).start()
        await predictor.finish(chat_result("four"))
        await api.deliver(job_id)

    async with asyncio.TaskGroup() as group:
        api.broker.on_event = lambda event: group.create_task(work(event.subject)) and None
        yield


async def start(api: ApiWithJobs, body: bytes) -> str:
    form = {"file": ("in.jsonl", body), "purpose": (None, "batch")}
    file_id = (await api.client.post("/v1/files", files=form)).json()["id"]
    call = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}
    return str((await api.client.post("/v1/batches", json=call)).json()["id"])


async def look(api: ApiWithJobs, batch_id: str) -> dict[str, Any]:
    seen: dict[str, Any] = (await api.client.get(f"/v1/batches/{batch_id}")).json()
    return seen


async def ended(api: ApiWithJobs, batch_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (seen := await look(api, batch_id))["completed_at"] is None:
            await asyncio.sleep(0.05)
    return seen


async def until_used(api: ApiWithJobs, meter: LimitMeter, tokens: int) -> None:
    async with asyncio.timeout(60):
        while (await Windows(api.store.redis).look(meter)).used < tokens:
            await asyncio.sleep(0.02)


async def a_minute_passes(api: ApiWithJobs) -> None:
    """The windows of every limit start anew."""
    async for key in api.store.redis.scan_iter(f"{keys.LIMITS}*"):
        if b":charge:" not in key:
            await api.store.redis.delete(key)


async def test_a_batch_of_twenty_ends_where_four_may_be_in_flight(
    redis_url: str, store: RedisStore, tmp_path: Path
) -> None:
    async with (
        limited(redis_url, store, tmp_path, limit_jobs_in_flight=4) as api,
        answering(api),
        running(api),
    ):
        batch = await ended(api, await start(api, lines(20)))

    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert len({event.subject for event in api.broker.events}) == 20


async def test_a_batch_takes_half_of_a_minutes_tokens_and_goes_on_in_the_next(
    redis_url: str, store: RedisStore, tmp_path: Path
) -> None:
    """Lines that are not answered stay charged; so what is taken can be counted."""
    limit = 10 * COST
    meter = LimitMeter(name="tokens", tenant=TENANT, limit=limit)
    async with (
        limited(redis_url, store, tmp_path, limit_tokens_per_minute=limit) as api,
        running(api),
    ):
        batch_id = await start(api, lines(12))
        await until_used(api, meter, 5 * COST)
        await asyncio.sleep(0.5)  # time for more, if it took more
        first = (await Windows(store.redis).look(meter)).used
        call = await api.client.post("/v1/jobs", json=orjson.loads(lines(1)))
        accepted = len(api.broker.events)
        await a_minute_passes(api)
        await until_used(api, meter, 5 * COST)
        async with asyncio.timeout(60):  # a line is charged before it is submitted
            while len(api.broker.events) < 11:
                await asyncio.sleep(0.01)

    assert first == 5 * COST
    assert call.status_code == 202
    assert accepted == 6
    numbers = [orjson.loads(event.data).get("custom_id") for event in api.broker.events]
    assert len(numbers) == 11
    assert (await api.parts.batches.batches.get(batch_id)).failed == 0


async def test_lines_are_not_read_ahead_while_a_limit_is_waited_for(
    redis_url: str, store: RedisStore, tmp_path: Path
) -> None:
    limit = 8 * COST
    meter = LimitMeter(name="tokens", tenant=TENANT, limit=limit)
    async with (
        limited(redis_url, store, tmp_path, limit_tokens_per_minute=limit) as api,
        running(api),
    ):
        batch_id = await start(api, lines(50))
        await until_used(api, meter, 4 * COST)
        record = await api.parts.batches.batches.get(batch_id)

    assert record.line <= 8
    assert len(record.running) <= 4


async def test_a_line_that_is_more_than_half_the_limit_gets_its_turn(
    redis_url: str, store: RedisStore, tmp_path: Path
) -> None:
    limit = COST + COST // 2
    async with (
        limited(redis_url, store, tmp_path, limit_tokens_per_minute=limit) as api,
        answering(api),
        running(api),
    ):
        batch = await ended(api, await start(api, lines(2)))

    assert batch["request_counts"]["completed"] == 2


async def test_an_admission_that_is_cut_off_gives_everything_back(
    redis_url: str, store: RedisStore, tmp_path: Path
) -> None:
    draw = random.Random(1)
    limits = {"limit_tokens_per_minute": 100 * COST, "limit_jobs_in_flight": 100}
    meter = LimitMeter(name="tokens", tenant=TENANT, limit=100 * COST)
    request = JobRequest(url=URL, body=orjson.loads(lines(1))["body"])
    async with limited(redis_url, store, tmp_path, **limits) as api:
        for _ in range(60):
            job_id = new_job_id()
            new = NewJob(id=job_id, request=request, source="/x", event_id=job_id, tenant=TENANT)
            with suppress(TimeoutError):
                async with asyncio.timeout(draw.uniform(0, 0.003)):
                    await api.parts.gate.admit(Principal(tenant=TENANT), new)
                # It came to its end, and has something to give back.
                await api.parts.gate.on_rejected(new.tenant, new.id)
        await _until_nothing_is_taken(api, meter)


async def _until_nothing_is_taken(api: ApiWithJobs, meter: LimitMeter) -> None:
    async with asyncio.timeout(60):
        while (await Windows(api.store.redis).look(meter)).used:
            await asyncio.sleep(0.02)
        while await api.store.redis.zcard(keys.jobs_in_flight_of(TENANT)):
            await asyncio.sleep(0.02)


async def test_a_batchs_line_is_refused_at_half_and_a_call_is_not(
    redis_url: str, store: RedisStore, tmp_path: Path
) -> None:
    request = JobRequest(url=URL, body=orjson.loads(lines(1))["body"])

    def job(**metadata: str) -> NewJob:
        job_id = new_job_id()
        return NewJob(
            id=job_id,
            request=request,
            source="/x",
            event_id=job_id,
            tenant=TENANT,
            metadata=metadata,
        )

    async with limited(redis_url, store, tmp_path, limit_jobs_in_flight=2) as api:
        gate, who = api.parts.gate, Principal(tenant=TENANT)
        await gate.admit(who, job(**{BATCH: "b"}))
        with pytest.raises(RateLimited):
            await gate.admit(who, job(**{BATCH: "b"}))
        await gate.admit(who, job())

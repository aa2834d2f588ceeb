"""`Cache-Control: no-store` and `store: false`: once a job is gone, nothing of its prompt and its answer is anywhere.

Api, steps and caches over one real store and a folder of objects; time passes by moving what expires.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.settings import ApiSettings
from eventing.cloudevent.event import build_binary
from eventing.cloudevent.job_event import request_event
from eventing.job.job import Job, JobId, JobState
from eventing.redis import keys
from eventing.store import archive
from eventing.store.steps.redis_steps import RedisStepStore
from steps.server import StepServer
from steps.settings import StepsSettings
from tests.contract.broker.stack import Subscriber, says
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakePredictor, chat_result

PIPELINES = """
m:
  cache: {exact: {ttl_s: 86400}}
  steps:
    - {step: moderate-input, settings: {rules: [{words: [forbidden]}]}}
    - {step: semantic-cache, settings: {shadow: null, lookup_ms: 10000, ttl_s: 86400}}
    - {step: retrieve, settings: {vector_store_names: [docs]}}
    - {step: validate-output, settings: {mode: block, rules: [{words: [forbidden]}]}}
    - ground
chat:
  cache: {exact: {ttl_s: 86400}}
  steps: [{step: semantic-cache, settings: {shadow: null, lookup_ms: 10000, ttl_s: 86400}}]
talk:
  steps: [{step: memory, settings: {recall_k: 2, summarise_every_messages: 1}}]
"""
CANARY = "zanzibarine"
NO_STORE = {"cache-control": "no-store"}
DAY_MS = 86_400_000


@dataclass
class Whole:
    """Everything that one installation has, but its engine."""

    rig: Rig
    steps: StepServer
    folder: Path
    seen: set[str] = field(default_factory=set)

    async def job(self, job_id: str) -> Job:
        found = await RedisStepStore(self.rig.store.redis).get(JobId(job_id))
        assert found is not None
        return found

    async def next_job(self) -> str:
        """The job of the call that was made last."""
        async with asyncio.timeout(60):
            while True:
                for event in self.rig.broker.events:
                    if event.subject.startswith("job_") and event.subject not in self.seen:
                        self.seen.add(event.subject)
                        return event.subject
                await asyncio.sleep(0.005)

    async def answer(self, text: str) -> Job:
        """Run the steps of the next job, and answer it."""
        job_id = await self.next_job()
        await self._step(job_id)
        if not (await self.job(job_id)).state.is_terminal:
            predictor = await FakePredictor(self.rig.store, job_id).start()
            await predictor.chat(text[:80])
            await predictor.chat(text[80:], "stop")
            await predictor.finish(chat_result(text))
            await self._step(job_id)
        await self._until_told()
        return await self.job(job_id)

    async def _until_told(self) -> None:
        """Return once the api and the writer of the semantic cache have seen every end."""
        redis = self.rig.store.redis
        async with asyncio.timeout(60):
            while True:
                ((newest, _),) = await redis.xrevrange(keys.ENDED, count=1)
                groups = await redis.xinfo_groups(keys.ENDED)
                behind = [each for each in groups if each["last-delivered-id"] != newest]
                if len(groups) == 2 and not behind and not any(g["pending"] for g in groups):
                    return
                await asyncio.sleep(0.01)

    async def _step(self, job_id: str) -> None:
        while (job := await self.job(job_id)).step and not job.state.is_terminal:
            await self.steps.runner.run(request_event(job))

    async def index(self) -> None:
        """Index what was added to vector stores."""
        transport = httpx.ASGITransport(app=self.steps.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://steps") as http:
            for event in self.rig.broker.events:
                if "vectorstore" in event.type:
                    headers, body = build_binary(event)
                    await http.post("/events", content=body, headers=headers)


@pytest.fixture
def api_settings(api_settings: ApiSettings, tmp_path: Path) -> ApiSettings:
    (tmp_path / "pipelines.yaml").write_text(PIPELINES)
    (card,) = api_settings.models
    models = tuple(
        card.model_copy(update={"name": name, "context_tokens": 8000})
        for name in ("m", "chat", "talk")
    )
    return api_settings.model_copy(
        update={"pipelines_file": tmp_path / "pipelines.yaml", "models": models}
    )


@asynccontextmanager
async def stepping(settings: ApiSettings, broker_url: str) -> AsyncIterator[StepServer]:
    server = StepServer(
        StepsSettings(
            redis_url=settings.redis_url,
            pipelines_file=settings.pipelines_file,
            files_url=settings.files_url,
            broker_url=broker_url,
        )
    )
    beside = asyncio.ensure_future(server.run_background())
    try:
        yield server
    finally:
        beside.cancel()
        with suppress(asyncio.CancelledError):
            await beside
        await server.close()


@pytest.fixture
async def whole(rig: Rig, api_settings: ApiSettings, tmp_path: Path) -> AsyncIterator[Whole]:
    broker = Subscriber(answers=[says(202)])
    async with broker.serving(), stepping(api_settings, broker.url) as steps:
        yield Whole(rig, steps, tmp_path / "files")


async def values_of(redis: Redis, key: bytes) -> list[bytes]:
    """Every value of a key, of whatever type."""
    match await redis.type(key):
        case b"string":
            return [await redis.get(key) or b""]
        case b"hash":
            return [each for pair in (await redis.hgetall(key)).items() for each in pair]
        case b"list":
            return list(await redis.lrange(key, 0, -1))
        case b"set":
            return list(await redis.smembers(key))
        case b"zset":
            return list(await redis.zrange(key, 0, -1))
        case b"stream":
            rows = await redis.xrange(key)
            return [each for _, pairs in rows for pair in pairs.items() for each in pair]
        case b"none":
            return []
        case other:
            raise AssertionError(f"{key!r} is of the type {other!r}")


async def places(whole: Whole) -> set[str]:
    """Where the canary is."""
    redis, canary = whole.rig.store.redis, CANARY.encode()
    found = set()
    async for key in redis.scan_iter(count=1000):
        values = [key, *await values_of(redis, key)]
        if any(canary in each.lower() for each in values):
            found.add(key.decode())
    for path in whole.folder.rglob("*"):
        if path.is_file() and (canary in path.name.encode() or canary in path.read_bytes().lower()):
            found.add(path.name)
    return found


async def kept_for_others(redis: Redis) -> list[str]:
    """Keys of caches, followers and conversations."""
    names = [key.decode() async for key in redis.scan_iter(count=1000)]
    kinds = ("torpor:cache:entry", "torpor:cache:index", "torpor:cache:vectors", ":semantic:")
    return [name for name in names if any(kind in name for kind in (*kinds, "followers", "{conv_"))]


async def pass_time(whole: Whole, ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lives shorter is gone, and the sweeps have run."""
    redis = whole.rig.store.redis
    async for key in redis.scan_iter(count=1000):
        left_ms = await redis.pttl(key)
        if left_ms > ms:
            await redis.pexpire(key, left_ms - ms)
        elif left_ms >= 0:
            await redis.delete(key)
    monkeypatch.setattr(archive, "_ORPHAN_AFTER_MS", -1)
    await whole.rig.parts.archive.sweep()


async def library(whole: Whole) -> None:
    """A vector store that the plan searches."""
    client = whole.rig.client
    file = await client.post(
        "/v1/files",
        files={"file": ("sky.md", b"The sky is blue because of Rayleigh.")},
        data={"purpose": "assistants"},
    )
    body = {"name": "docs", "file_ids": [file.json()["id"]]}
    assert (await client.post("/v1/vector_stores", json=body)).status_code == 200
    async with asyncio.timeout(60):
        while not any("vectorstore" in event.type for event in whole.rig.broker.events):
            await asyncio.sleep(0.005)
    await whole.index()


def chat(model: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


async def call(
    whole: Whole, path: str, body: dict[str, Any], answer: str, **headers: str
) -> tuple[httpx.Response, Job]:
    """A call that waits, and the job that answered it."""
    asking: Awaitable[httpx.Response] = asyncio.ensure_future(
        whole.rig.client.post(path, json=body, headers=headers, timeout=120)
    )
    job = await whole.answer(answer)
    return await asking, job


ANSWER = f"The sky is blue, says {CANARY}, because of Rayleigh."
ASK = f"Why is the sky blue, {CANARY}?"
LONG = f"{CANARY} " * 12_000


@pytest.mark.parametrize(
    ("model", "is_response", "answer"),
    [("m", False, ANSWER), ("chat", False, LONG), ("m", True, LONG), ("chat", True, ANSWER)],
    ids=[
        "no-store with retrieval",
        "no-store in an object",
        "store false with retrieval in an object",
        "store false",
    ],
)
async def test_a_job_that_is_not_to_be_stored_leaves_nothing(
    whole: Whole, model: str, is_response: bool, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await library(whole)

    if is_response:
        body = {"model": model, "input": ASK, "temperature": 0, "store": False}
        response, job = await call(whole, "/v1/responses", body, answer)
    else:
        body = chat(model, ASK, temperature=0)
        response, job = await call(whole, "/v1/chat/completions", body, answer, **NO_STORE)

    assert response.status_code == 200, response.text
    assert job.state is JobState.COMPLETED
    if answer is LONG:
        await _until_archived(whole, job.id)
    assert await places(whole) > {keys.job(job.id)}
    assert await kept_for_others(whole.rig.store.redis) == []
    await pass_time(whole, DAY_MS, monkeypatch)
    assert await places(whole) == set()


async def test_an_answer_that_is_not_to_be_stored_is_not_served_to_the_next_call(
    whole: Whole,
) -> None:
    """And one that may be stored is, so that the tests above look where something would be."""
    body = chat("chat", ASK, temperature=0)
    first, _ = await call(whole, "/v1/chat/completions", {**body, "store": False}, ANSWER)
    assert first.status_code == 200

    second, _ = await call(whole, "/v1/chat/completions", body, "Another answer.")

    assert second.json()["choices"][0]["message"]["content"] == "Another answer."
    third = await whole.rig.client.post("/v1/chat/completions", json=body)
    assert third.json()["choices"][0]["message"]["content"] == "Another answer."
    assert "hit" in third.headers["cache-status"]
    assert await kept_for_others(whole.rig.store.redis) != []


@pytest.mark.parametrize(
    ("fields", "headers"), [({"store": False}, {}), ({}, NO_STORE)], ids=["store false", "no-store"]
)
async def test_what_is_not_to_be_stored_is_not_added_to_a_conversation(
    whole: Whole, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    made = (await whole.rig.client.post("/v1/conversations", json={})).json()["id"]
    body = {"model": "talk", "input": ASK, "conversation": made, **fields}

    refused = await whole.rig.client.post("/v1/responses", json=body, headers=headers)

    assert refused.status_code in (400, 422)
    assert "not to be stored" in refused.text
    assert await places(whole) == set()


async def test_a_plan_with_memory_keeps_nothing_of_a_call_without_a_conversation(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "talk", "input": ASK, "store": False}

    response, job = await call(whole, "/v1/responses", body, ANSWER)

    assert (response.status_code, job.state) == (200, JobState.COMPLETED)
    assert await kept_for_others(whole.rig.store.redis) == []
    await pass_time(whole, DAY_MS, monkeypatch)
    assert await places(whole) == set()


async def _until_archived(whole: Whole, job_id: JobId) -> None:
    async with asyncio.timeout(60):
        while not await whole.rig.store.redis.hexists(keys.job(job_id), "object"):
            await asyncio.sleep(0.02)

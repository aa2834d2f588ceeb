"""The exact cache for events of other producers, at the broker's ingress."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from eventing.broker.intake import Intake
from eventing.broker.queue.view import QueueView
from eventing.broker.router import DirectPublisher
from eventing.broker.server import Broker
from eventing.broker.settings import BrokerSettings
from eventing.cloudevent.event import from_record
from eventing.cloudevent.job_event import REQUESTED
from eventing.cloudevent.result_event import COMPLETED
from eventing.job.cache.cache import CacheKind, CacheStatus, CacheUse
from eventing.job.job import Job, JobId, JobState, derive_job_id
from eventing.job.store import Ending
from eventing.outbox.followers import FollowerListener
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.contract.broker.stack import NAME, trigger
from tests.contract.rig import SETTINGS

SOURCE: Final = "/shop"
BODY: Final = {"model": "tiny", "messages": [{"role": "user", "content": "why?"}], "temperature": 0}
ANSWER: Final = Ending(
    state=JobState.COMPLETED,
    result={"id": "chatcmpl-1", "choices": [], "usage": {"total_tokens": 7}},
    usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
)


@pytest.fixture
async def client(redis_url: str, redis: Redis, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    rules = tmp_path / "pipelines.yaml"
    rules.write_text("tiny: {cache: {exact: {ttl_s: 600}}}")
    settings = BrokerSettings(redis_url=redis_url, triggers_file=Path("none"), pipelines_file=rules)
    broker = Broker(settings, [trigger("http://127.0.0.1:1/")])
    transport = httpx.ASGITransport(app=broker.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http
    await broker.close()


@pytest.fixture
def store(redis: Redis) -> RedisStore:
    return RedisStore(redis, SETTINGS)


async def send(
    client: httpx.AsyncClient, event_id: str, body: dict[str, Any] = BODY, **extensions: str
) -> str:
    """Send an event that asks for a job; the job's id."""
    headers = {"ce-specversion": "1.0", "ce-id": event_id, "ce-source": SOURCE}
    headers |= {"ce-type": REQUESTED, "content-type": "application/json"}
    headers |= {f"ce-{name}": value for name, value in extensions.items()}
    data = orjson.dumps({"url": "/v1/chat/completions", "body": body, "custom_id": event_id})
    answer = await client.post("/", content=data, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(derive_job_id(SOURCE, event_id, extensions.get("tenant", "")))


async def get(store: RedisStore, job_id: str) -> Job:
    job = await store.get(job_id)  # type: ignore[arg-type]
    assert job is not None
    return job


async def end(store: RedisStore, job_id: str, ending: Ending = ANSWER) -> None:
    taken = await store.acquire(job_id, "worker", can_resume=True)  # type: ignore[arg-type]
    await store.finish(taken.lease, ending)


async def waiting(redis: Redis) -> int:
    return (await QueueView(redis).depth(NAME)).total_waiting


async def test_an_event_is_answered_with_a_kept_answer_and_enters_no_queue(
    client: httpx.AsyncClient, store: RedisStore, redis: Redis
) -> None:
    first = await send(client, "1")
    await end(store, first)
    hit = await get(store, await send(client, "2"))
    assert (hit.state, hit.request.custom_id) == ("completed", "2")
    assert hit.cache is not None
    assert hit.cache.source_job == first
    assert await waiting(redis) == 1  # the first's, which no pump has settled here


async def test_the_same_event_of_other_ids_follows_and_a_repeat_of_it_enters_no_queue(
    client: httpx.AsyncClient, store: RedisStore, redis: Redis
) -> None:
    leader = await send(client, "1")
    follower = await send(client, "2")
    assert await send(client, "2") == follower
    assert (await get(store, follower)).follows == leader
    assert await waiting(redis) == 1


@pytest.mark.parametrize("directive", ["no-store", "no-cache", "max-age=0"])
async def test_the_extension_cachecontrol_is_the_callers_directive(
    client: httpx.AsyncClient, store: RedisStore, directive: str
) -> None:
    await end(store, await send(client, "1"))
    second = await get(store, await send(client, "2", cachecontrol=directive))
    assert (second.state, second.cache_control) == ("queued", directive)


async def test_only_if_cached_without_an_answer_is_a_failed_job(
    client: httpx.AsyncClient, store: RedisStore, redis: Redis
) -> None:
    job = await get(store, await send(client, "1", cachecontrol="only-if-cached"))
    assert job.error is not None
    assert (job.state, job.error.code) == ("failed", "not_cached")
    assert await waiting(redis) == 0


async def test_events_of_two_tenants_never_share(
    client: httpx.AsyncClient, store: RedisStore
) -> None:
    await end(store, await send(client, "1", tenant="a"))
    other = await get(store, await send(client, "1", tenant="b"))
    assert (other.state, other.follows) == ("queued", "")
    await end(store, other.id)
    third = await get(store, await send(client, "2", tenant="b"))
    assert third.cache is not None
    assert third.cache.source_job == other.id


async def test_an_orphan_is_queued_by_its_own_event_and_results_reach_who_wants_them(
    client: httpx.AsyncClient, store: RedisStore, redis: Redis
) -> None:
    leader = await send(client, "1")
    follower, last = await send(client, "2"), await send(client, "3")
    requests = replace(trigger("http://127.0.0.1:9/"), filters=({"exact": {"type": REQUESTED}},))
    results = replace(requests, name="results", filters=({"exact": {"type": COMPLETED}},))
    route = DirectPublisher(redis, [requests, results])
    listener = FollowerListener(store, store.answers, Intake(store, route), route)
    await store.cancel(leader)  # type: ignore[arg-type]
    await listener.ended(await get(store, leader))
    assert await waiting(redis) == 1
    (raw,) = await redis.hvals(keys.queue(NAME, "events"))
    event = from_record(raw.split(b" ", 1)[1])
    assert (event.id, event.source, event.subject) == ("2", SOURCE, follower)
    await end(store, follower)
    await listener.ended(await get(store, follower))
    await listener.ended(await get(store, last))
    (raw,) = await redis.hvals(keys.queue("results", "events"))
    result = from_record(raw.split(b" ", 1)[1])
    assert result.subject == last
    assert orjson.loads(result.data)["cache"]["kind"] == "coalesced"


async def test_followers_of_a_job_that_a_semantic_cache_answered_end_with_its_answer(
    client: httpx.AsyncClient, store: RedisStore, redis: Redis
) -> None:
    leader, follower = await send(client, "1"), await send(client, "2")
    await end(store, leader)
    use = CacheUse(status=CacheStatus.HIT, kind=CacheKind.SEMANTIC, source_job="job_1")
    await redis.hset(keys.job(JobId(leader)), "cache", use.to_json())
    route = DirectPublisher(redis, [trigger("http://127.0.0.1:9/")])
    listener = FollowerListener(store, store.answers, Intake(store, route), route)
    await listener.ended(await get(store, leader))
    assert (await get(store, follower)).state == "completed"

"""A store that the version before wrote is this version's store: nothing is migrated, nothing is lost.

`recorded/e188a83.json` is what commit e188a83 kept after `recorded/__main__.py`; the other way round, an older
process reads a newer record by leaving out what it does not know (`tests/unit/eventing/test_known_fields.py`), and
`tests/faults/test_deploy.py` runs both versions beside each other.
"""

import base64
import json
from pathlib import Path
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from api.batch.batch import BatchStatus
from api.batch.store import BatchStore
from api.webhook.store import WebhookStore
from eventing.api_key import RedisKeys
from eventing.broker.queue.queue import Queue
from eventing.broker.queue.view import QueueView
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import job_of
from eventing.job.job import Job, JobState
from eventing.job.store import AcquireStatus, LeaseStatus
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.contract.rig import ANSWER, finish, ids_of

RECORDED: Final = Path(__file__).parent / "recorded" / "e188a83.json"
QUEUE: Final = "requests-m"


def raw(text: str) -> bytes:
    return base64.b64decode(text)


async def put(redis: Redis, key: bytes, kind: str, content: Any) -> None:
    match kind:
        case "string":
            await redis.set(key, raw(content))
        case "hash":
            await redis.hset(key, mapping={raw(name): raw(value) for name, value in content})
        case "set":
            await redis.sadd(key, *map(raw, content))
        case "zset":
            await redis.zadd(key, {raw(member): score for member, score in content})
        case "stream":
            entries, groups = content
            for entry, fields in entries:
                await redis.xadd(key, {raw(name): raw(value) for name, value in fields}, id=entry)
            for group, pending in groups:
                await redis.xgroup_create(key, raw(group), id="0")
                if pending:
                    await redis.xreadgroup(raw(group), "dead", {key: ">"}, count=pending)


@pytest.fixture
async def before(redis: Redis) -> Redis:
    """The store as the version before left it, long ago: its leases have lapsed."""
    for key, (kind, content) in json.loads(RECORDED.read_text()).items():
        await put(redis, raw(key), kind, content)
    for job in (await RedisStore(redis).list_jobs("acme")).jobs:
        if job.state is JobState.IN_PROGRESS:
            await redis.hset(keys.job(job.id), "lease_until_ms", 1)
    return redis


@pytest.fixture
async def jobs(before: Redis) -> dict[str, Job]:
    """Every job of the list, by its event's id."""
    page = await RedisStore(before).list_jobs("acme")
    return {job.event_id: job for job in page.jobs}


async def deliver(store: RedisStore, event: Event) -> AcquireStatus:
    """As a predictor does; the job runs to its end."""
    job, _ = await store.submit(job_of(event))
    acquired = await store.acquire(job.id, "new", can_resume=True)
    if acquired.status is AcquireStatus.ACQUIRED:
        assert await finish(store, acquired.lease, ANSWER) is LeaseStatus.OK
    return acquired.status


async def test_every_job_is_listed_and_read_in_its_state(
    before: Redis, jobs: dict[str, Job]
) -> None:
    states = {
        "claimed": JobState.QUEUED,
        "waiting": JobState.QUEUED,
        "running": JobState.IN_PROGRESS,
        "completed": JobState.COMPLETED,
        "failed": JobState.FAILED,
        "cancelled": JobState.CANCELLED,
    }
    assert {name: job.state for name, job in jobs.items()} == states
    for job in jobs.values():
        assert await RedisStore(before).get(job.id) is not None
    whole = await RedisStore(before).get(jobs["completed"].id)
    assert whole is not None
    assert (whole.result, whole.usage) == ({"a": 1}, {"total_tokens": 3})


async def test_what_waits_is_delivered_and_ends_under_the_id_that_was_promised(
    before: Redis, jobs: dict[str, Job]
) -> None:
    store, pump = RedisStore(before), Queue(before, QUEUE, "new")
    await pump.ensure()
    before_ms = 1  # the dead pump has been silent for longer than a millisecond
    while claimed := await pump.claim(9, claim_idle_ms=before_ms):
        for each in claimed:
            await deliver(store, each.event)
            await pump.settle(each.ticket)

    assert (await QueueView(before).depth(QUEUE)).pending == 0
    for name in ("claimed", "waiting", "running"):
        ended = await store.get(jobs[name].id)
        assert ended is not None
        assert ended.state is JobState.COMPLETED


async def test_a_started_job_goes_on_from_its_tokens(before: Redis, jobs: dict[str, Job]) -> None:
    store = RedisStore(before)

    acquired = await store.acquire(jobs["running"].id, "new", can_resume=True)

    assert (acquired.status, acquired.token_count) == (AcquireStatus.ACQUIRED, 2)
    assert await ids_of(store, jobs["running"].id, 2) == [1, 2]


async def test_a_dead_letter_is_listed_and_redriven(before: Redis, jobs: dict[str, Job]) -> None:
    store = RedisStore(before)
    (dead,) = (await store.list_dead_letters("acme")).jobs

    assert dead.id == jobs["failed"].id
    assert await store.redrive(dead, None)
    assert (await store.acquire(dead.id, "new", can_resume=True)).status is AcquireStatus.ACQUIRED


async def test_an_event_that_its_producer_sends_again_is_the_same_job(
    before: Redis, jobs: dict[str, Job]
) -> None:
    store, waiting = RedisStore(before), jobs["waiting"]
    again = job_of(
        Event(
            id="waiting",
            source="/shop",
            type="t",
            extensions={"tenant": "acme"},
            data=(await store.get(waiting.id) or waiting).request.to_json(),
        )
    )

    job, is_new = await store.submit(again)

    assert (job.id, is_new) == (waiting.id, False)


async def test_batches_webhooks_and_keys_are_read(before: Redis) -> None:
    (batch,) = await BatchStore(before).list("acme")
    (endpoint,) = await WebhookStore(before).endpoints("acme")
    (key_id,) = await before.hkeys(f"{keys.PREFIX}:api-keys")
    key = await RedisKeys(before).find(key_id.decode())

    assert (batch.status, endpoint.url) == (BatchStatus.VALIDATING, "https://example.org/")
    assert key is not None
    assert key.tenant == "acme"
    ((claimed, epoch),) = await BatchStore(before).claim(9)
    assert claimed == "batch_1"
    assert epoch > 0

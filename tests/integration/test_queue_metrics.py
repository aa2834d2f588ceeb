"""What the broker shows of its queues, against a real Valkey: waiting is waiting, wherever."""

from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from eventing.broker.metric import QueueMetrics
from eventing.broker.queue.queue import Queue
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import REQUESTED
from eventing.job.job import JobId, JobRequest, Lane, new_job_id
from eventing.job.store import NewJob
from eventing.store.redis_store import RedisStore
from tests.redis_server import RedisServer

MODEL = "m"
QUEUE = f"requests-{MODEL}"


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def depth(lane: Lane) -> float | None:
    return value("torpor_queue_depth", model=MODEL, lane=str(lane))


async def put(redis: Redis, job_id: JobId, *, lane: Lane = Lane.DEFAULT, tenant: str = "t") -> None:
    event = Event(id=job_id, source="/torpor/api", type=REQUESTED, subject=job_id, data=b"{}")
    queue = Queue(redis, QUEUE, "p")
    await queue.ensure()
    await queue.send([queue.put_call(event, lane=lane, tenant=tenant)])


async def record(store: RedisStore, lane: Lane = Lane.DEFAULT) -> JobId:
    job_id = new_job_id()
    request = JobRequest(url="/v1/completions", body={"model": MODEL, "prompt": "x"})
    source = "/torpor/api"
    await store.submit(
        NewJob(id=job_id, request=request, source=source, event_id=job_id, lane=lane)
    )
    return job_id


async def test_jobs_are_counted_in_the_lane_they_wait_in(redis: Redis) -> None:
    await put(redis, new_job_id(), lane=Lane.BATCH)
    await put(redis, new_job_id(), lane=Lane.BATCH)
    await put(redis, new_job_id(), lane=Lane.INTERACTIVE)

    await QueueMetrics(redis, [QUEUE]).refresh()

    assert [depth(lane) for lane in Lane] == [1, 0, 2]


async def test_a_job_handed_to_a_starting_predictor_still_counts_as_waiting(
    redis: Redis, store: RedisStore
) -> None:
    job_id = await record(store, Lane.BATCH)
    await put(redis, job_id, lane=Lane.BATCH)
    await Queue(redis, QUEUE, "p").claim(1)

    await QueueMetrics(redis, [QUEUE]).refresh()

    assert depth(Lane.BATCH) == 1
    assert value("torpor_jobs_in_flight", model=MODEL) == 0


async def test_a_job_whose_attempt_runs_waits_no_more(redis: Redis, store: RedisStore) -> None:
    job_id = await record(store)
    await put(redis, job_id)
    await Queue(redis, QUEUE, "p").claim(1)
    await store.acquire(job_id, "somebody", can_resume=True)

    await QueueMetrics(redis, [QUEUE]).refresh()

    assert depth(Lane.DEFAULT) == 0
    assert value("torpor_jobs_in_flight", model=MODEL) == 1


async def test_the_oldest_is_found_behind_the_head_of_a_fair_queue(redis: Redis) -> None:
    """A newcomer of another tenant goes ahead of the second event of a busy one."""
    for _ in range(5):
        await put(redis, new_job_id(), tenant="busy")
    queue = Queue(redis, QUEUE, "p")
    (first,) = await queue.claim(1)
    await queue.send([queue.settle_call(first.ticket)])
    events = f"torpor:{{{QUEUE}}}:events"
    for member, kept in (await redis.hgetall(events)).items():
        _, rest = kept.split(b" ", 1)
        await redis.hset(events, member, b"1000 " + rest)
    await put(redis, new_job_id(), tenant="newcomer")

    await QueueMetrics(redis, [QUEUE]).refresh()

    age_s = value("torpor_queue_oldest_age_seconds", model=MODEL, lane="default")
    assert age_s is not None
    assert age_s > 365 * 24 * 3600


async def test_an_empty_queue_is_no_age_and_no_depth(redis: Redis) -> None:
    await QueueMetrics(redis, [QUEUE]).refresh()

    assert depth(Lane.DEFAULT) == 0
    assert value("torpor_queue_oldest_age_seconds", model=MODEL, lane="default") == 0


async def test_without_a_pace_there_is_no_expected_wait(redis: Redis) -> None:
    await put(redis, new_job_id())

    await QueueMetrics(redis, [QUEUE]).refresh()

    assert value("torpor_queue_expected_wait_seconds", model=MODEL, lane="default") is None


async def test_an_empty_queue_has_an_expected_wait_of_zero(redis: Redis) -> None:
    """A quiet hour's pace said a minute, beside an idle predictor."""
    queue = Queue(redis, QUEUE, "p")
    await put(redis, new_job_id(), lane=Lane.DEFAULT)
    (claimed,) = await queue.claim(1)
    await queue.send([queue.settle_call(claimed.ticket)])
    await put(redis, new_job_id(), lane=Lane.BATCH)

    await QueueMetrics(redis, [QUEUE]).refresh()

    waits = [
        value("torpor_queue_expected_wait_seconds", model=MODEL, lane=str(lane))
        for lane in (Lane.INTERACTIVE, Lane.DEFAULT, Lane.BATCH)
    ]
    assert waits[:2] == [0, 0]
    assert waits[2]


async def test_a_store_that_is_away_leaves_a_gap_and_not_a_zero(
    redis_server: Callable[[], RedisServer],
) -> None:
    from eventing.redis.connection import connect

    server = redis_server()
    server.start()
    client = connect(server.url, timeout_s=0.3)
    metrics = QueueMetrics(client, [QUEUE])
    server.kill()

    await metrics.refresh()
    await client.aclose()

    assert value("torpor_store_up") == 0
    assert depth(Lane.DEFAULT) is None


@pytest.mark.parametrize("queue", ["given-up", "strays"])
async def test_queues_without_jobs_show_events_only(redis: Redis, queue: str) -> None:
    await QueueMetrics(redis, [queue]).refresh()

    assert value("torpor_queue_events", queue=queue) == 0
    assert depth(Lane.DEFAULT) is None

"""The sweep: what was recorded but perhaps not told is told."""

import asyncio

import pytest
from redis.asyncio import Redis

from eventing.cloudevent.event import Event
from eventing.errors import BrokerUnavailable, EventRefused
from eventing.job.job import API_SOURCE, JobId, JobState, new_job_id, parse_request
from eventing.job.store import NewJob, Publication
from eventing.outbox.outbox import Swept, run, sweep_once
from eventing.outbox.publisher import OutboxPublisher
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import FakeBroker, FakePredictor


async def recorded(store: RedisStore) -> JobId:
    """A job whose api died right after the record."""
    job_id = new_job_id()
    await store.submit(
        NewJob(
            id=job_id, request=parse_request(chat_line()), source="/torpor/api", event_id=job_id
        ),
        Publication(max_unpublished=1000),
    )
    return job_id


async def make_due(redis: Redis, index: str) -> None:
    """As if the time until the sweep looks had passed."""
    for member in await redis.zrange(index, 0, -1):
        await redis.zadd(index, {member: 1})


async def test_a_job_whose_event_never_went_out_is_published(
    store: RedisStore, redis: Redis, broker: FakeBroker
) -> None:
    job_id = await recorded(store)
    await make_due(redis, keys.UNPUBLISHED)

    assert await sweep_once(store, broker) == Swept(requests=1)
    assert [event.subject for event in broker.events] == [job_id]


async def test_a_job_whose_event_a_broker_took_and_lost_is_published_again(
    store: RedisStore, redis: Redis, broker: FakeBroker
) -> None:
    job_id = await recorded(store)
    await store.mark_published(job_id)
    await make_due(redis, keys.UNSTARTED)

    assert await sweep_once(store, broker) == Swept(stranded=1)
    assert await sweep_once(store, broker) == Swept()
    assert [event.subject for event in broker.events] == [job_id]


async def test_a_long_backlog_is_not_published_again_at_one_go(
    store: RedisStore, redis: Redis, broker: FakeBroker
) -> None:
    for _ in range(501):
        await store.mark_published(await recorded(store))
    await make_due(redis, keys.UNSTARTED)

    assert await sweep_once(store, broker) == Swept(stranded=500)
    assert await sweep_once(store, broker) == Swept(stranded=1)


async def test_a_published_event_is_not_published_again(
    store: RedisStore, redis: Redis, broker: FakeBroker
) -> None:
    await recorded(store)
    await make_due(redis, keys.UNPUBLISHED)
    await sweep_once(store, broker)
    await make_due(redis, keys.UNPUBLISHED)

    assert await sweep_once(store, broker) == Swept()


async def test_a_fresh_record_is_left_to_its_writer(
    store: RedisStore, redis: Redis, broker: FakeBroker
) -> None:
    await recorded(store)

    assert await sweep_once(store, broker) == Swept()


async def test_a_job_that_runs_needs_no_second_event(
    store: RedisStore, redis: Redis, broker: FakeBroker
) -> None:
    await FakePredictor(store, await recorded(store)).start()
    await make_due(redis, keys.UNPUBLISHED)

    assert await sweep_once(store, broker) == Swept()


async def test_with_the_broker_away_nothing_is_marked(
    store: RedisStore, redis: Redis, broker: FakeBroker
) -> None:
    for _ in range(5):
        await recorded(store)
    await make_due(redis, keys.UNPUBLISHED)
    broker.is_down = True

    with pytest.raises(BrokerUnavailable):
        await sweep_once(store, broker)

    assert await redis.zcard(keys.UNPUBLISHED) == 5


class ChoosyBroker(FakeBroker):
    """Fails events of some jobs."""

    def __init__(self, failing: JobId, failure: Exception) -> None:
        super().__init__()
        self._failing = failing
        self._failure = failure

    async def publish(self, event: Event) -> None:
        if event.subject == self._failing:
            raise self._failure
        await super().publish(event)


async def test_an_event_that_fails_does_not_stop_those_behind_it(
    store: RedisStore, redis: Redis
) -> None:
    # One refused event stopped the outbox behind it for ever.
    failing, *others = [await recorded(store) for _ in range(5)]
    await make_due(redis, keys.UNPUBLISHED)
    broker = ChoosyBroker(failing, BrokerUnavailable("500"))

    assert await sweep_once(store, broker) == Swept(requests=4)

    assert {event.subject for event in broker.events} == set(others)
    assert await redis.zrange(keys.UNPUBLISHED, 0, -1) == [failing.encode()]


async def test_a_job_whose_event_the_broker_refuses_for_good_has_failed(
    store: RedisStore, redis: Redis
) -> None:
    refused = await recorded(store)
    await make_due(redis, keys.UNPUBLISHED)

    await sweep_once(store, ChoosyBroker(refused, EventRefused("refused with 413")))

    job = await store.get(refused)
    assert job is not None
    assert job.error is not None
    assert (job.state, job.is_dead_letter) == (JobState.FAILED, True)
    assert (job.error.code, job.error.message) == ("refused_by_broker", "refused with 413")
    assert await redis.zcard(keys.UNPUBLISHED) == 0


async def test_two_sweepers_share_the_work(
    store: RedisStore, redis: Redis, broker: FakeBroker
) -> None:
    for _ in range(20):
        await recorded(store)
    await make_due(redis, keys.UNPUBLISHED)

    swept = await asyncio.gather(sweep_once(store, broker), sweep_once(store, broker))

    assert sum(one.requests for one in swept) == 20
    assert len({event.subject for event in broker.events}) == len(broker.events) == 20


async def test_the_sweep_prunes_lists_of_jobs_that_are_no_longer_kept(
    store: RedisStore, redis: Redis, broker: FakeBroker
) -> None:
    job_id = await recorded(store)
    await store.cancel(job_id)
    await redis.delete(keys.job(job_id))  # as if it had expired
    await make_due(redis, keys.LEAVING)

    sweeping = asyncio.create_task(run(store, broker, 0.01))
    async with asyncio.timeout(60):
        while await redis.exists(keys.jobs_of("default"), keys.LEAVING):
            await asyncio.sleep(0.01)
    sweeping.cancel()
    await asyncio.wait([sweeping])


async def test_no_more_events_wait_for_a_broker_than_fit_and_the_others_are_left_to_the_sweep(
    store: RedisStore,
) -> None:
    largest = bytes(8 * 1024 * 1024)
    broker = FakeBroker()
    route = OutboxPublisher(broker, max_unpublished=1000)
    job_ids = [new_job_id() for _ in range(12)]

    def record(job_id: JobId) -> None:
        route.recorded(job_id, Event(id=job_id, source=API_SOURCE, type="t", data=largest))

    for job_id in job_ids:
        record(job_id)
    publishing = asyncio.create_task(route.run(store))
    try:
        async with asyncio.timeout(60):
            while job_ids[-1] not in {event.id for event in broker.events}:
                record(job_ids[-1])  # once there is room again
                await asyncio.sleep(0.01)
    finally:
        publishing.cancel()
        await asyncio.wait([publishing])

    assert {event.id for event in broker.events} == {*job_ids[:8], job_ids[-1]}

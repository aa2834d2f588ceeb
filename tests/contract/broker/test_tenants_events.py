"""Events of two tenants with the same `source` and `id` (CloudEvents' identity): neither replaces the other,
whatever the names are.
"""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from eventing.broker.intake import Intake
from eventing.broker.metric import QueueMetrics
from eventing.broker.queue.queue import Queue
from eventing.broker.router import DirectPublisher
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import REQUESTED, job_of, request_event
from eventing.job.job import JobState, Lane, derive_job_id
from eventing.job.store import AcquireStatus, Ending, NewJob
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.contract.broker.queue_rig import NAME, put, settle
from tests.contract.broker.stack import EVENT, Subscriber, build, pumping, says, trigger, until
from tests.contract.rig import FAULT, SETTINGS, new_job

_WORD = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
_TENANT = _WORD.map(lambda word: word[:16]) | st.sampled_from(["default", "active", "again:/s"])
FAILED = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)


def intake(redis: Redis) -> tuple[Intake, RedisStore]:
    store = RedisStore(redis, SETTINGS)
    return Intake(store, DirectPublisher(redis, [trigger("http://127.0.0.1:9/")])), store


def asked(source: str, event_id: str, tenant: str) -> NewJob:
    """The job that a producer's event asks for."""
    data = new_job().request.to_json()
    return job_of(
        Event(id=event_id, source=source, type=REQUESTED, data=data, extensions={"tenant": tenant})
    )


async def held(redis: Redis) -> int:
    """Events in the queue."""
    return int(await redis.hlen(keys.queue(NAME, "events")))


async def test_another_tenants_event_of_the_same_source_and_id_is_another_job(redis: Redis) -> None:
    takes, store = intake(redis)
    squatter, _ = await takes.submit(asked("/shop", "42", "mallory"))

    job, is_new = await takes.submit(asked("/shop", "42", "acme"))

    assert is_new
    assert job.id != squatter.id
    await store.cancel(squatter.id)
    pump = Queue(redis, NAME, "pump")
    await pump.ensure()
    (left,) = await pump.claim(9)
    assert left.event.extensions["tenant"] == "acme"


@given(source=_WORD.map("/{}".format), event_id=_WORD, tenants=st.sets(_TENANT, min_size=2))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_cancelled_job_removes_its_own_event_only_whatever_its_names(
    redis: Redis, source: str, event_id: str, tenants: set[str]
) -> None:
    await redis.flushall()
    takes, store = intake(redis)
    jobs = [(await takes.submit(asked(source, event_id, each)))[0] for each in sorted(tenants)]
    assert len({job.id for job in jobs}) == await held(redis) == len(tenants)

    for left, job in enumerate(reversed(jobs), 1):
        await store.cancel(job.id)

        assert await held(redis) == len(tenants) - left


async def test_a_redriven_job_waits_under_its_own_name(redis: Redis) -> None:
    takes, store = intake(redis)
    job, _ = await takes.submit(new_job())
    await store.conclude(job.id, FAILED)
    failed = await store.get(job.id)
    assert failed is not None

    assert await takes.redrive(failed, None)

    pump = Queue(redis, NAME, "pump")
    assert await put(pump, request_event(failed), tenant="acme") == [0]


async def test_a_tenants_job_that_runs_is_counted_as_running(redis: Redis) -> None:
    takes, store = intake(redis)
    pump = Queue(redis, NAME, "pump")
    await pump.ensure()
    job, _ = await takes.submit(new_job())
    await pump.claim(1)
    await store.acquire(job.id, "worker", can_resume=True)

    await QueueMetrics(redis, [NAME]).refresh()

    assert REGISTRY.get_sample_value("torpor_jobs_in_flight", {"model": "tiny"}) == 1


async def test_dead_letters_of_two_tenants_are_both_kept(redis: Redis) -> None:
    async with Subscriber([says(400)]).serving() as subscriber:
        (stack,) = build(redis, trigger(subscriber.url))
        async with pumping(stack):
            for tenant in ("acme", "mallory"):
                await stack.send(replace(EVENT, extensions={"tenant": tenant}))
            await until(stack.is_drained)

    assert await redis.hlen(keys.queue(NAME, "dead")) == 2


async def test_a_hostile_source_cannot_mark_anothers_event_as_sent_again(
    queue: Queue, redis: Redis
) -> None:
    # `again:/s` + id spelled the mark of `/s` + id in the same hash: the victim ran once more.
    victim = Event(id="1", source="/s", type="t")
    await put(queue, victim, replace(victim, source="again:/s"))
    claimed = await queue.claim(2)
    assert len(claimed) == 2

    await settle(queue, *[each for each in claimed if each.event.source == "/s"])

    assert await held(redis) == 1


async def test_a_job_recorded_by_an_earlier_version_is_found_by_its_event(redis: Redis) -> None:
    # Its id was made of source and id alone.
    takes, store = intake(redis)
    new = asked("/shop", "42", "acme")
    earlier = derive_job_id("/shop", "42")
    await takes.submit(replace(new, id=earlier))

    assert (await store.acquire(new.id, "w", can_resume=True)).status is AcquireStatus.MISSING
    job, is_new = await store.submit(new)

    assert (job.id, is_new) == (earlier, False)


async def test_an_earlier_record_of_another_tenant_is_unchanged(redis: Redis) -> None:
    takes, _ = intake(redis)
    await takes.submit(replace(asked("/shop", "42", "mallory"), id=derive_job_id("/shop", "42")))

    job, is_new = await takes.submit(asked("/shop", "42", "acme"))

    assert is_new
    assert (job.id, job.tenant) == (derive_job_id("/shop", "42", "acme"), "acme")


async def test_an_entry_that_an_earlier_version_queued_is_delivered(redis: Redis) -> None:
    async with Subscriber().serving() as subscriber:
        (stack,) = build(redis, trigger(subscriber.url))
        event = replace(EVENT, extensions={"tenant": "acme"})
        name, args, words = stack.queue.put_call(event, lane=Lane.DEFAULT, tenant="acme")
        prefix, lane, _, *rest = words
        async with pumping(stack):
            earlier = f"{event.source}\0{event.id}"
            await stack.queue.send([(name, args, [prefix, lane, earlier, *rest])])
            await until(stack.is_drained)

    assert [each.id for each in subscriber.got] == ["1"]

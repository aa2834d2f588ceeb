"""The predictor's side of the contract, under the delivery rules of real brokers and their traps.

Whatever the broker makes of an answer, a job ends in our own record: nothing may depend on a
broker's dead letters or on its patience. One system serves all tests; each has a source of its own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson
import pytest
import pytest_asyncio

from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import REQUESTED
from eventing.cloudevent.job_event import job_of as job_of_event
from eventing.cloudevent.publisher import HttpPublisher
from eventing.job.job import Job, JobState, derive_job_id
from knative.deploy.emit import document
from knative.deploy.render.broker import own_broker
from knative.deploy.timeouts import derive
from knative.deploy.values import Values
from tests.faults.client import body
from tests.faults.processes import System, running
from tests.faults.programs import Program, Zygote, port_of
from tests.faults.trap_broker import KAFKA, MT, RABBITMQ, REDIS_STREAM_SOURCE, Rules, TrapBroker
from tests.redis_server import free_port

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]
BROKERS = [MT, KAFKA, RABBITMQ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    async with running(zygote, tmp_path_factory.mktemp("traps")) as made:
        yield made


@pytest.fixture
def source(request: pytest.FixtureRequest) -> str:
    return f"/tests/traps/{derive_job_id('traps', request.node.name)}"


def request_of(source: str, data: bytes) -> Event:
    return Event(
        id="1", source=source, type=REQUESTED, datacontenttype="application/json", data=data
    )


def broker_of(rules: Rules, system: System) -> TrapBroker:
    return TrapBroker(rules, f"http://127.0.0.1:{port_of(system.predictor)}/")


async def job_of(system: System, source: str) -> Job | None:
    return await system.store.get(derive_job_id(source, "1"))


async def state_of(system: System, source: str) -> JobState | None:
    job = await job_of(system, source)
    return job.state if job else None


@pytest.mark.parametrize("rules", BROKERS, ids=lambda rules: rules.name)
async def test_a_job_is_done_and_its_result_rides_on_the_answer(
    system: System, source: str, rules: Rules
) -> None:
    broker = broker_of(rules, system)

    assert await broker.deliver(request_of(source, orjson.dumps(body(1)))) == [200]

    assert await state_of(system, source) is JobState.COMPLETED
    assert broker.replies == 1


@pytest.mark.parametrize("rules", BROKERS, ids=lambda rules: rules.name)
@pytest.mark.parametrize("data", [b"{no", b'{"url": 1}', b"\xff", b""], ids=repr)
async def test_trap_1_what_can_never_run_is_failed_and_answered_2xx(
    system: System, source: str, rules: Rules, data: bytes
) -> None:
    # A 4xx would be «delivered» to RabbitMQ: neither retried nor dead-lettered.
    broker = replace(broker_of(rules, system), is_sink_up=False)

    (status,) = await broker.deliver(request_of(source, data))

    assert 200 <= status < 300
    assert not broker.lost
    job = await job_of(system, source)
    assert job is not None
    assert (job.state, job.is_dead_letter) == (JobState.FAILED, True)
    listed = (await system.store.list_dead_letters("default", limit=100)).jobs
    assert [each.id for each in listed].count(job.id) == 1


@pytest.mark.parametrize("rules", BROKERS, ids=lambda rules: rules.name)
async def test_trap_1_what_fails_each_time_is_our_dead_letter_before_the_brokers(
    system: System, source: str, rules: Rules
) -> None:
    broker = replace(broker_of(rules, system), is_sink_up=False)

    statuses = await broker.deliver(request_of(source, orjson.dumps(body(1, fail_at=2))))

    assert statuses == [500, 500, 200]
    assert not broker.lost
    assert await state_of(system, source) is JobState.FAILED


async def test_trap_2_a_source_that_acks_failed_sends_loses_what_was_not_recorded(
    system: System, source: str
) -> None:
    # Why RedisStreamSource is not used: nothing on our side could save this event.
    broker = broker_of(REDIS_STREAM_SOURCE, system)
    await system.predictor.kill()

    assert await broker.deliver(request_of(source, orjson.dumps(body(1)))) == [0]

    assert len(broker.lost) == 1
    assert await state_of(system, source) is None
    await system.predictor.restart()


async def test_trap_3_the_default_retries_end_long_before_a_job_does_and_do_it_no_harm(
    system: System, source: str
) -> None:
    waited: list[float] = []
    broker = replace(broker_of(MT, system), passed=waited.append)
    event = request_of(source, orjson.dumps(body(1, tokens=15, tokens_per_s=10)))
    first = asyncio.ensure_future(broker.deliver(event))
    while await state_of(system, source) is not JobState.IN_PROGRESS:
        await asyncio.sleep(0.01)

    again = await broker.deliver(event)

    assert again == [409] * 11
    assert sum(waited) == pytest.approx(409.4)  # 0.2 x (2^11 - 1); the last wait ends in no try
    (dead,) = broker.dead_letters
    assert (dead.identity, dead.data) == (
        event.identity,
        event.data,
    )  # the broker gave up; the job did not
    assert await first == [200]
    assert await state_of(system, source) is JobState.COMPLETED


@pytest.mark.parametrize("rules", BROKERS, ids=lambda rules: rules.name)
async def test_a_duplicate_of_what_has_ended_is_answered_at_once(
    system: System, source: str, rules: Rules
) -> None:
    broker = broker_of(rules, system)
    event = request_of(source, orjson.dumps(body(1)))
    await broker.deliver(event)

    assert (await broker.deliver(event))[0] in (200, 202, 204)

    job = await job_of(system, source)
    assert job is not None
    assert len(job.history) == 1


@pytest.mark.parametrize("rules", [MT, KAFKA], ids=lambda rules: rules.name)
async def test_a_store_that_is_away_is_retried_by_brokers_that_retry(
    system: System, source: str, rules: Rules
) -> None:
    broker = replace(broker_of(rules, system), pause_s=0.05)
    system.predictor_redis.close()
    delivery = asyncio.ensure_future(broker.deliver(request_of(source, orjson.dumps(body(1)))))
    await asyncio.sleep(0.05)
    system.predictor_redis.heal()

    statuses = await delivery

    assert set(statuses[:-1]) <= {503}
    assert statuses[-1] == 200


@asynccontextmanager
async def a_sleeping_predictor() -> AsyncIterator[str]:
    """The address of somebody who takes a delivery and does not answer, as the activator does."""
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        for writer in held:
            writer.close()
        server.close()


@asynccontextmanager
async def a_relay(system: System) -> AsyncIterator[str]:
    """Our broker where Knative's dead letters arrive, with the trigger that is rendered for it."""
    port = free_port()
    rendered = own_broker.relay_triggers(Values(), derive(Values()))[0]
    rendered["spec"]["subscriber"]["uri"] = system.api.health
    triggers = system.folder / "relay.yaml"
    triggers.write_text(document(rendered))
    env = {
        "TORPOR_PORT": str(port),
        "TORPOR_REDIS_URL": system.server.url,
        "TORPOR_TRIGGERS_FILE": str(triggers),
    }
    relay = Program(
        system.zygote,
        "eventing.broker.__main__",
        "relay",
        system.folder,
        env,
        f"http://127.0.0.1:{port}/readyz",
    )
    relay.start()
    await relay.ready()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        await relay.kill()


async def test_trap_4_a_consumer_that_shuts_down_fails_no_waiting_job(
    system: System, source: str
) -> None:
    data = orjson.dumps(body(1))
    events = [replace(request_of(source, data), id=str(number)) for number in range(4)]
    job_ids = [derive_job_id(source, event.id) for event in events]
    async with a_sleeping_predictor() as activator, a_relay(system) as relay:
        broker = TrapBroker(RABBITMQ, activator)
        for event in events:
            await system.store.submit(job_of_event(event))
            await system.store.mark_published(derive_job_id(source, event.id))
            broker.hold(event)
        await broker.end()
        assert [dead.extensions["knativeerrorcode"] for dead in broker.dead_letters] == ["-1"] * 4
        publisher = HttpPublisher(relay, timeout_s=5)
        for dead in broker.dead_letters:
            await publisher.publish(dead)

        await system.ended(job_ids, within_s=60)
        await publisher.close()

    jobs = [await system.store.get(job_id) for job_id in job_ids]
    assert [(job.state, job.attempt) for job in jobs if job] == [(JobState.COMPLETED, 1)] * 4

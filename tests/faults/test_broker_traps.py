"""The predictor's side of the contract, under the delivery rules of real brokers and their traps.

Whatever the broker makes of an answer, a job ends in our own record: nothing may depend on a
broker's dead letters or on its patience.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from eventing.event import Event
from eventing.job import JobState, derive_job_id
from eventing.job_event import REQUESTED
from tests.faults.client import body
from tests.faults.processes import System, Tuning, Zygote, port_of, running
from tests.faults.trap_broker import KAFKA, MT, RABBITMQ, REDIS_STREAM_SOURCE, Rules, TrapBroker

pytestmark = pytest.mark.timeout(120)
BROKERS = [MT, KAFKA, RABBITMQ]
SOURCE = "/tests/traps"


def request(event_id: str, data: bytes) -> Event:
    return Event(
        id=event_id,
        source=SOURCE,
        type=REQUESTED,
        datacontenttype="application/json",
        data=data,
    )


def broker_of(rules: Rules, system: System) -> TrapBroker:
    return TrapBroker(rules, f"http://127.0.0.1:{port_of(system.predictor)}/")


async def state_of(system: System, event_id: str) -> JobState | None:
    job = await system.store.get(derive_job_id(SOURCE, event_id))
    return job.state if job else None


@pytest.mark.parametrize("rules", BROKERS, ids=lambda rules: rules.name)
async def test_a_job_is_done_and_its_result_rides_on_the_answer(
    zygote: Zygote, tmp_path: Path, rules: Rules
) -> None:
    async with running(zygote, tmp_path) as system:
        broker = broker_of(rules, system)

        assert await broker.deliver(request("1", orjson.dumps(body(1)))) == [200]

        assert await state_of(system, "1") is JobState.COMPLETED
        assert broker.replies == 1


@pytest.mark.parametrize("rules", BROKERS, ids=lambda rules: rules.name)
@pytest.mark.parametrize("data", [b"{no", b'{"url": 1}', b"\xff", b""], ids=repr)
async def test_trap_1_what_can_never_run_is_failed_and_answered_2xx(
    zygote: Zygote, tmp_path: Path, rules: Rules, data: bytes
) -> None:
    # A 4xx would be «delivered» to RabbitMQ: neither retried nor dead-lettered.
    async with running(zygote, tmp_path) as system:
        broker = replace(broker_of(rules, system), is_sink_up=False)

        (status,) = await broker.deliver(request("1", data))

        assert 200 <= status < 300
        assert not broker.lost
        assert await state_of(system, "1") is JobState.FAILED
        assert len((await system.store.list_dead_letters("default")).jobs) == 1


@pytest.mark.parametrize("rules", BROKERS, ids=lambda rules: rules.name)
async def test_trap_1_what_fails_each_time_is_our_dead_letter_before_the_brokers(
    zygote: Zygote, tmp_path: Path, rules: Rules
) -> None:
    async with running(zygote, tmp_path, Tuning(lease_s=0.5)) as system:
        broker = replace(broker_of(rules, system), is_sink_up=False)

        statuses = await broker.deliver(request("1", orjson.dumps(body(1, fail_at=2))))

        assert statuses == [500, 500, 200]
        assert not broker.lost
        assert await state_of(system, "1") is JobState.FAILED


async def test_trap_2_a_source_that_acks_failed_sends_loses_what_was_not_recorded(
    zygote: Zygote, tmp_path: Path
) -> None:
    # Why RedisStreamSource is not used: nothing on our side could save this event.
    async with running(zygote, tmp_path) as system:
        broker = broker_of(REDIS_STREAM_SOURCE, system)
        await system.predictor.kill()

        assert await broker.deliver(request("1", orjson.dumps(body(1)))) == [0]

        assert len(broker.lost) == 1
        assert await state_of(system, "1") is None


async def test_trap_3_the_default_retries_end_long_before_a_job_does_and_do_it_no_harm(
    zygote: Zygote, tmp_path: Path
) -> None:
    waited: list[float] = []
    async with running(zygote, tmp_path, Tuning(tokens_per_s=10)) as system:
        broker = replace(broker_of(MT, system), passed=waited.append)
        event = request("1", orjson.dumps(body(1, tokens=15)))
        first = asyncio.ensure_future(broker.deliver(event))
        while await state_of(system, "1") is not JobState.IN_PROGRESS:
            await asyncio.sleep(0.01)

        again = await broker.deliver(event)

        assert again == [409] * 11
        assert sum(waited) == pytest.approx(409.4)  # 0.2 x (2^11 - 1); the last wait ends in no try
        assert broker.dead_letters == [event]  # the broker gave up; the job did not
        assert await first == [200]
        assert await state_of(system, "1") is JobState.COMPLETED


@pytest.mark.parametrize("rules", BROKERS, ids=lambda rules: rules.name)
async def test_a_duplicate_of_what_has_ended_is_answered_at_once(
    zygote: Zygote, tmp_path: Path, rules: Rules
) -> None:
    async with running(zygote, tmp_path) as system:
        broker = broker_of(rules, system)
        event = request("1", orjson.dumps(body(1)))
        await broker.deliver(event)

        assert (await broker.deliver(event))[0] in (200, 202, 204)

        job = await system.store.get(derive_job_id(SOURCE, "1"))
        assert job is not None
        assert len(job.history) == 1


@pytest.mark.parametrize("rules", [MT, KAFKA], ids=lambda rules: rules.name)
async def test_a_store_that_is_away_is_retried_by_brokers_that_retry(
    zygote: Zygote, tmp_path: Path, rules: Rules
) -> None:
    async with running(zygote, tmp_path) as system:
        broker = replace(broker_of(rules, system), pause_s=0.05)
        system.predictor_redis.close()
        delivery = asyncio.ensure_future(broker.deliver(request("1", orjson.dumps(body(1)))))
        await asyncio.sleep(0.05)
        system.predictor_redis.heal()

        statuses = await delivery

        assert set(statuses[:-1]) <= {503}
        assert statuses[-1] == 200

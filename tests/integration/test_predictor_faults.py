"""Predictors that die, freeze, stall and are told to go, as real processes on a real Valkey.

Faults F02, F07, F08, F12, F13, F15, F16 of the reliability catalogue.
"""

import asyncio
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eventing.cloudevent.event import Event
from eventing.job.job import Job, JobState
from eventing.job.stream import EntryKind
from eventing.store.redis_store import RedisStore
from tests.awake import awake_s
from tests.integration.predictor_process import LEASE_S, predictors
from tests.redis_server import RedisServer
from tests.unit.predictor.harness import (
    asking,
    job_id_of,
    open_harness,
    read_ids,
    read_text,
    text_of,
)

THOUGHT = {"output_tokens": 60, "reasoning_tokens": 30}
LONG: dict[str, float] = {"output_tokens": 3000}


async def whole_answer(event: Event) -> str:
    """What an uninterrupted run says."""
    async with open_harness() as harness:
        return text_of(await harness.deliver(event))


async def job_of(store: RedisStore, event: Event) -> Job:
    job = await store.get(job_id_of(event))
    assert job is not None
    return job


async def wait_tokens(store: RedisStore, event: Event, count: int) -> None:
    while (job := await store.get(job_id_of(event))) is None or job.token_count < count:
        await asyncio.sleep(0.005)


async def test_a_thought_survives_kill_9(tmp_path: Path, store: RedisStore, redis_url: str) -> None:
    event = asking(seeded=THOUGHT)
    expected = await whole_answer(event)
    with predictors(tmp_path, 2, TORPOR_REDIS_URL=redis_url) as (first, second):
        delivery = asyncio.ensure_future(first.deliver(event))
        await wait_tokens(store, event, 20)
        first.signal(signal.SIGKILL)
        killed_at = awake_s()
        assert (await delivery).status == 0
        while (answer := await second.deliver(event)).status == 409:
            await asyncio.sleep(0.05)
        taken_after_s = awake_s() - killed_at
        entries = await store.read_stream(job_id_of(event))

        assert answer.text == expected
        assert len(read_ids(entries)) == 61
        assert read_text(entries) == expected
        assert [e.is_restart for e in entries if e.kind is EntryKind.ATTEMPT] == [False, False]
        assert second.metric("torpor_tokens_resumed_total") >= 20
        assert taken_after_s < LEASE_S + 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["sigterm", "preemption"])
async def test_a_predictor_hands_a_long_job_over_on_sigterm_and_exits_cleanly(
    tmp_path: Path, store: RedisStore, redis_url: str, number: int
) -> None:
    event = asking(seeded={"output_tokens": 400})
    expected = await whole_answer(event)
    with predictors(tmp_path, 2, TORPOR_REDIS_URL=redis_url, TORPOR_LEASE_S="30") as (a, b):
        delivery = asyncio.ensure_future(a.deliver(event))
        await wait_tokens(store, event, 20)
        a.signal(number)
        told_at = awake_s()
        while await asyncio.to_thread(a.is_ready):
            await asyncio.sleep(0.01)
        assert (await a.deliver(asking(event_id="late"))).status == 503
        assert (await delivery).status == 503
        handed_over_after_s = awake_s() - told_at
        answer = await b.deliver(event)

        assert a.wait() == 0
        assert handed_over_after_s < 5  # its lease would have lasted for 30
        assert answer.text == expected
        first, second = (await job_of(store, event)).history
        assert first.outcome == "handover"
        assert second.started_ms - first.ended_ms < 5000
        assert b.metric("torpor_tokens_resumed_total") >= 20


async def test_a_job_that_ends_within_the_grace_ends_where_it_is(
    tmp_path: Path, store: RedisStore, redis_url: str
) -> None:
    event = asking(seeded={"output_tokens": 60})
    with predictors(tmp_path, 1, TORPOR_REDIS_URL=redis_url) as (predictor,):
        delivery = asyncio.ensure_future(predictor.deliver(event))
        await wait_tokens(store, event, 5)
        predictor.signal(signal.SIGTERM)

        assert (await delivery).status == 200
        assert predictor.wait() == 0


async def test_a_zombie_writes_nothing(tmp_path: Path, store: RedisStore, redis_url: str) -> None:
    event = asking(seeded={"output_tokens": 100})
    expected = await whole_answer(event)
    with predictors(tmp_path, 2, TORPOR_REDIS_URL=redis_url) as (zombie, other):
        delivery = asyncio.ensure_future(zombie.deliver(event))
        await wait_tokens(store, event, 20)
        zombie.signal(signal.SIGSTOP)
        await asyncio.sleep(2 * LEASE_S)
        taken_over = asyncio.ensure_future(other.deliver(event))
        await wait_tokens(store, event, 70)
        zombie.signal(signal.SIGCONT)
        assert (await delivery).status in (409, 503)
        answer = await taken_over
        entries = await store.read_stream(job_id_of(event))

        assert answer.text == expected
        assert read_text(entries) == expected
        assert len(read_ids(entries)) == 101
        assert zombie.metric("torpor_predictor_in_flight") == 0


async def test_a_stalled_engine_is_given_up_and_the_attempt_counts(
    tmp_path: Path, store: RedisStore, redis_url: str
) -> None:
    event = asking(seeded={"stall_at": 5})
    with predictors(tmp_path, 1, TORPOR_REDIS_URL=redis_url, TORPOR_STALL_S="0.5") as (predictor,):
        started = awake_s()
        answer = await predictor.deliver(event)

        assert answer.status == 500
        assert awake_s() - started < 0.5 + 2
        assert (await job_of(store, event)).history[0].outcome == "failure"
        assert predictor.metric("torpor_predictor_in_flight") == 0


async def test_a_request_that_kills_every_process_becomes_a_dead_letter(
    tmp_path: Path, store: RedisStore, redis_url: str
) -> None:
    poison = asking(seeded={"output_tokens": 50, "process_dies_at": 4})
    fine = asking("a harmless one", event_id="e2", seeded={"output_tokens": 100})
    with predictors(tmp_path, 4, TORPOR_REDIS_URL=redis_url) as (first, second, third, last):
        beside = asyncio.ensure_future(first.deliver(fine))
        await wait_tokens(store, fine, 1)
        for victim in (first, second, third):
            while (await victim.deliver(poison)).status == 409:
                await asyncio.sleep(0.05)
            assert victim.wait() == -signal.SIGKILL
        while (answer := await last.deliver(poison)).status == 409:
            await asyncio.sleep(0.05)
        await beside

        assert answer.data["state"] == JobState.FAILED
        assert answer.data["error"]["code"] == "exhausted"  # type: ignore[index]
        dead = await job_of(store, poison)
        assert dead.is_dead_letter
        assert [a.outcome for a in dead.history] == ["lost", "lost", "lost"]
        assert (await last.deliver(fine)).text == await whole_answer(fine)


async def test_a_dead_engine_ends_its_process_and_costs_its_jobs_nothing(
    tmp_path: Path, store: RedisStore, redis_url: str
) -> None:
    killer = asking(event_id="k", seeded={"output_tokens": 300, "engine_dies_at": 30})
    other = asking("another", event_id="o", seeded={"output_tokens": 120})
    with predictors(tmp_path, 2, TORPOR_REDIS_URL=redis_url, TORPOR_LEASE_S="30") as (a, b):
        deliveries = [asyncio.ensure_future(a.deliver(event)) for event in (killer, other)]
        answers = await asyncio.gather(*deliveries)
        died_at = awake_s()
        assert [answer.status for answer in answers] == [503, 503]
        assert a.wait() == 1
        assert awake_s() - died_at < 2

        assert (await b.deliver(other)).text == await whole_answer(other)


async def test_a_store_out_of_reach_stops_the_engine_within_the_lease(
    tmp_path: Path, redis_server: Callable[..., RedisServer]
) -> None:
    server = redis_server()
    server.start()
    event = asking(seeded=LONG)
    with predictors(tmp_path, 1, TORPOR_REDIS_URL=server.url, TORPOR_LEASE_S="1") as (predictor,):
        delivery = asyncio.ensure_future(predictor.deliver(event))
        await asyncio.sleep(0.5)
        server.signal(signal.SIGSTOP)
        cut_at = awake_s()
        try:
            answer = await delivery
            assert answer.status == 503
            assert awake_s() - cut_at < 1 + 0.5  # the lease, and one try to say so
            assert (await predictor.deliver(asking(event_id="e2"))).status == 503
        finally:
            server.signal(signal.SIGCONT)


async def test_a_cancel_and_a_deadline_are_felt_within_a_second(
    tmp_path: Path, store: RedisStore, redis_url: str
) -> None:
    with predictors(tmp_path, 1, TORPOR_REDIS_URL=redis_url, TORPOR_LEASE_S="30") as (predictor,):
        slow = {"output_tokens": 5, "tokens_per_s": 0.1}  # as good as in prefill: writes nothing
        for number, knobs in enumerate((LONG, slow)):
            event = asking(event_id=f"c{number}", seeded=knobs)
            delivery = asyncio.ensure_future(predictor.deliver(event))
            while (job := await store.get(job_id_of(event))) is None or not job.attempt:
                await asyncio.sleep(0.01)
            await store.cancel(job_id_of(event))
            cancelled_at = awake_s()
            answer = await delivery

            assert answer.data["state"] == JobState.CANCELLED
            assert awake_s() - cancelled_at < 1
            assert predictor.metric("torpor_predictor_in_flight") == 0

        due = datetime.now(UTC) + timedelta(seconds=2)
        late = asking(event_id="late", seeded=LONG, extensions={"expirytime": due.isoformat()})
        answer = await predictor.deliver(late)
        assert answer.data["error"]["code"] == "expired"  # type: ignore[index]
        assert 0 <= (datetime.now(UTC) - due).total_seconds() < 1
        assert predictor.metric("torpor_predictor_in_flight") == 0

"""Attempts that are cut off, by a dead engine, process or store, and how the next goes on."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from eventing.job.job import JobState
from eventing.job.store import LeaseSettings, ReleaseReason
from eventing.job.stream import EntryKind
from predictor.delivery.settlement import release_after_engine_death
from tests.unit.predictor.harness import (
    LONG,
    TEN,
    UnreliableStore,
    asking,
    data_of,
    job_id_of,
    open_harness,
    read_ids,
    read_text,
    text_of,
)


async def test_a_dead_engine_gives_its_jobs_back_for_nothing_when_they_got_further() -> None:
    async with open_harness() as harness:
        event = asking(seeded={"engine_dies_at": 5})
        answer = await harness.deliver(event)

        assert answer.status == 503
        job = await harness.store.get(job_id_of(event))
        assert job is not None
        assert (job.state, job.history[0].outcome) == (JobState.QUEUED, "handover")


@pytest.mark.parametrize(
    ("new_tokens", "can_resume", "price"),
    [
        pytest.param(5, True, ReleaseReason.HANDOVER, id="got-further"),
        pytest.param(0, True, ReleaseReason.LOST, id="got-nowhere-twice-at-the-same-token"),
        pytest.param(5, False, ReleaseReason.LOST, id="starts-over-each-time"),
    ],
)
def test_a_job_that_may_be_what_kills_engines_pays_for_it(
    new_tokens: int, can_resume: bool, price: ReleaseReason
) -> None:
    assert release_after_engine_death(new_tokens=new_tokens, can_resume=can_resume) is price


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("cut", [1, 7, 39])
async def test_a_thought_goes_on_in_another_process(url: str, cut: int) -> None:
    knobs = {"output_tokens": 40, "reasoning_tokens": 20 if "chat" in url else 0}
    async with open_harness() as harness:
        whole = await harness.deliver(asking(url=url, seeded=knobs))
    store = UnreliableStore(LeaseSettings(lease_ms=200))
    event = asking(url=url, seeded=knobs)
    async with open_harness(store=store, lease_s=0.5) as harness:
        await store.create_and_make(event, cut)
        await asyncio.sleep(0.25)  # its lease lapses
        answer = await harness.deliver(event)
        entries = await harness.entries(event)

    assert text_of(answer) == text_of(whole)
    assert len(read_ids(entries)) == 41
    assert data_of(answer)["usage"] == data_of(whole)["usage"]
    assert [e.is_restart for e in entries if e.kind is EntryKind.ATTEMPT] == [False, False]
    shown = read_text(entries, "content") or read_text(entries, "text")
    assert shown == text_of(whole)


async def test_a_request_that_cannot_go_on_starts_over_and_says_so() -> None:
    knobs = {"output_tokens": 40, "resumable": False}
    store = UnreliableStore(LeaseSettings(lease_ms=200))
    event = asking(seeded=knobs)
    async with open_harness(store=store, lease_s=0.5) as harness:
        await store.create_and_make(event, 10)
        await asyncio.sleep(0.25)
        before = made_again()
        answer = await harness.deliver(event)
        entries = await harness.entries(event)

    assert made_again() - before == 10
    assert [e.is_restart for e in entries if e.kind is EntryKind.ATTEMPT] == [False, True]
    assert read_text(entries) == text_of(answer)


def made_again() -> float:
    return REGISTRY.get_sample_value("torpor_tokens_regenerated_total") or 0


async def test_the_recorded_request_counts_and_not_what_a_later_event_says() -> None:
    async with open_harness() as harness:
        event = asking(seeded=TEN)
        first = await harness.deliver(event)
        other = await harness.deliver(asking("something else", seeded=TEN))

        assert other == first


async def test_a_result_outlives_a_store_that_is_away_for_a_moment() -> None:
    async with open_harness(tokens_per_s=200) as harness:
        event = asking(seeded=TEN)
        running = asyncio.ensure_future(harness.deliver(event))
        await harness.wait_tokens(event, 1)
        harness.store.is_away = True
        await asyncio.sleep(0.3)
        harness.store.is_away = False
        answer = await running

        assert read_text(await harness.entries(event)) == text_of(answer)


async def test_a_write_whose_answer_was_lost_is_not_written_twice() -> None:
    async with open_harness(tokens_per_s=100) as harness:
        event = asking(seeded=TEN)
        harness.store.lost_answers = 2
        answer = await harness.deliver(event)
        entries = await harness.entries(event)

        assert len(read_ids(entries)) == 11
        assert read_text(entries) == text_of(answer)


async def test_an_answer_that_does_not_go_on_from_what_is_stored_does_not_end_its_job() -> None:
    async with open_harness() as harness:
        event = asking(seeded={"output_tokens": 1})
        harness.store.has_foreign_token = True  # what no writer of ours does
        answer = await harness.deliver(event)

        job = await harness.store.get(job_id_of(event))
        assert job is not None
        assert (answer.status, job.state, job.result) == (500, JobState.QUEUED, None)


async def test_a_store_away_for_longer_than_the_lease_stops_the_engine() -> None:
    async with open_harness(lease_s=0.5) as harness:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(harness.deliver(event))
        await harness.wait_tokens(event, 1)
        harness.store.is_away = True
        answer = await asyncio.wait_for(running, 10)

        assert answer.status == 503
        assert harness.engine.running == frozenset()


async def test_an_attempt_that_was_overtaken_writes_nothing_more() -> None:
    async with open_harness(lease_s=30) as harness:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(harness.deliver(event))
        await harness.wait_tokens(event, 1)
        await harness.store.overtake(event)
        answer = await asyncio.wait_for(running, 10)

        assert answer.status == 409
        job = await harness.store.get(job_id_of(event))
        assert job is not None
        assert (job.attempt, job.lease_owner) == (2, "another")


async def test_a_checkpoint_that_is_not_whole_makes_the_job_start_over() -> None:
    store = UnreliableStore(LeaseSettings(lease_ms=200))
    event = asking(seeded={"output_tokens": 40})
    async with open_harness(store=store, lease_s=0.5) as harness:
        await store.create_and_make(event, 10)
        store.evict_stream(event)
        await asyncio.sleep(0.25)
        answer = await harness.deliver(event)
        entries = await harness.entries(event)

    assert answer.status == 200
    assert read_text(entries) == text_of(answer)
    assert len(read_ids(entries)) == 41


async def test_a_whole_answer_waits_for_a_store_that_is_away() -> None:
    async with open_harness() as harness:
        harness.store.failing_ends = 2
        answer = await harness.deliver(asking(seeded=TEN))

        assert answer.status == 200
        assert data_of(answer)["attempt"] == 1

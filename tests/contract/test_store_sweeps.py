"""Sweeps find jobs whose event was lost, and jobs past their deadline."""

import asyncio

import pytest

from eventing.errors import BrokerUnavailable, IdempotencyConflict
from eventing.job.job import JobState
from eventing.job.store import AcquireStatus, LeaseStatus, Publication
from tests.contract.rig import (
    ANSWER,
    LEASE_MS,
    SETTINGS,
    Rig,
    dead,
    finish,
    job_id,
    new_job,
    redrive,
    started,
)

NOTED = Publication(max_unpublished=100)
"""The event is to be published on a broker that is not ours."""


class TestOutbox:
    async def test_an_unpublished_job_is_due_after_ten_seconds(self, rig: Rig) -> None:
        await rig.store.submit(new_job(), NOTED)

        assert await rig.store.take_unpublished(10) == []
        await rig.pass_time(10_001)

        assert await rig.store.take_unpublished(10) == [job_id()]

    async def test_a_published_job_is_not_due(self, rig: Rig) -> None:
        await rig.store.submit(new_job(), NOTED)
        await rig.store.mark_published(job_id())

        await rig.pass_time(60_000)

        assert await rig.store.take_unpublished(10) == []

    async def test_a_job_whose_event_came_from_the_broker_is_not_due(self, rig: Rig) -> None:
        await rig.store.submit(new_job())

        await rig.pass_time(60_000)

        assert await rig.store.take_unpublished(10) == []

    async def test_above_the_most_unpublished_notes_nothing_is_taken(self, rig: Rig) -> None:
        full = Publication(max_unpublished=2)
        await rig.store.submit(new_job("a"), full)
        await rig.store.submit(new_job("b"), full)

        with pytest.raises(BrokerUnavailable):
            await rig.store.submit(new_job("c"), full)

        assert await rig.store.get(job_id("c")) is None
        _, is_new = await rig.store.submit(new_job("a"), full)  # taken before, and a promise
        assert not is_new
        await rig.store.mark_published(job_id("a"))
        await rig.store.submit(new_job("c"), full)

    async def test_an_entry_reserved_by_one_sweeper_is_not_given_to_another(self, rig: Rig) -> None:
        await rig.store.submit(new_job(), NOTED)
        await rig.pass_time(10_001)

        assert await rig.store.take_unpublished(10) == [job_id()]
        assert await rig.store.take_unpublished(10) == []
        await rig.pass_time(15_001)

        assert await rig.store.take_unpublished(10) == [job_id()]

    async def test_many_sweepers_share_the_work(self, rig: Rig) -> None:
        for number in range(40):
            await rig.store.submit(new_job(str(number)), NOTED)
        await rig.pass_time(10_001)

        shares = await asyncio.gather(*(rig.store.take_unpublished(7) for _ in range(8)))

        taken = [job for share in shares for job in share]
        assert len(taken) == len(set(taken)) == 40

    async def test_a_started_job_without_a_lease_is_due_again(self, rig: Rig) -> None:
        # Its event may be gone: settled by a pump whose store forgot the end (docs/adr/0140).
        await started(rig)
        await rig.pass_time(LEASE_MS - 1000)
        assert await rig.store.claim_unstarted(10) == []

        await rig.pass_time(LEASE_MS + 1001)

        assert await rig.store.claim_unstarted(10) == [job_id()]

    async def test_a_started_job_that_is_held_or_has_ended_is_not_due(self, rig: Rig) -> None:
        held = await started(rig, "held")
        ended = await started(rig, "ended")
        await finish(rig.store, ended, ANSWER)
        await rig.pass_time(LEASE_MS * 2 + 1)
        await rig.store.renew([held], extend=True)

        assert await rig.store.claim_unstarted(10) == []

    async def test_a_job_that_is_not_started_is_due_again(self, rig: Rig) -> None:
        # The broker that took its event may have lost it (docs/adr/0140).
        await rig.store.submit(new_job())
        await rig.pass_time(SETTINGS.republish_after_s * 1000 - 1000)
        assert await rig.store.claim_unstarted(10) == []

        await rig.pass_time(1001)

        assert await rig.store.claim_unstarted(10) == [job_id()]

    async def test_a_redriven_job_that_is_not_started_is_due_again(self, rig: Rig) -> None:
        await dead(rig)
        await redrive(rig)
        await rig.pass_time(SETTINGS.republish_after_s * 1000 - 1000)
        assert await rig.store.claim_unstarted(10) == []

        await rig.pass_time(1001)

        assert await rig.store.claim_unstarted(10) == [job_id()]

    async def test_a_job_that_was_published_again_is_due_when_it_is_twice_as_old(
        self, rig: Rig
    ) -> None:
        await rig.store.submit(new_job())
        await rig.pass_time(3_600_000)
        await rig.store.claim_unstarted(10)
        await rig.store.look_later(job_id(), 3_600_000)

        await rig.pass_time(3_599_000)
        assert await rig.store.claim_unstarted(10) == []
        await rig.pass_time(1001)
        assert await rig.store.claim_unstarted(10) == [job_id()]

    async def test_a_job_that_ended_meanwhile_is_not_looked_at_later(self, rig: Rig) -> None:
        await rig.store.submit(new_job())
        await rig.store.cancel(job_id())

        await rig.store.look_later(job_id(), 1)

        await rig.pass_time(SETTINGS.republish_after_s * 1000 + 1)
        assert await rig.store.claim_unstarted(10) == []

    async def test_a_confirmation_that_comes_after_the_start_does_not_hide_the_job(
        self, rig: Rig
    ) -> None:
        await started(rig)

        await rig.store.mark_published(job_id())

        await rig.pass_time(LEASE_MS * 2 + 1)
        assert await rig.store.claim_unstarted(10) == [job_id()]

    async def test_many_confirmations_are_recorded_in_one_call(self, rig: Rig) -> None:
        for name in "abc":
            await rig.store.submit(new_job(name), NOTED)

        await rig.store.mark_published(job_id("a"), job_id("c"))

        await rig.pass_time(10_001)
        assert await rig.store.take_unpublished(10) == [job_id("b")]

    async def test_a_conflict_does_not_forget_the_first_event(self, rig: Rig) -> None:
        await rig.store.submit(new_job(), NOTED)
        with pytest.raises(IdempotencyConflict):
            await rig.store.submit(new_job(prompt="other"), NOTED)

        await rig.pass_time(10_001)

        assert await rig.store.take_unpublished(10) == [job_id()]

    async def test_an_end_takes_its_notes_along(self, rig: Rig) -> None:
        await rig.store.submit(new_job(), NOTED)
        await rig.store.cancel(job_id())

        await rig.pass_time(SETTINGS.republish_after_s * 1000 + 1)

        assert await rig.store.take_unpublished(10) == []
        assert await rig.store.claim_unstarted(10) == []

    async def test_a_redriven_job_is_due_for_publication(self, rig: Rig) -> None:
        await dead(rig)

        await redrive(rig, publication=NOTED)

        await rig.pass_time(10_001)
        assert await rig.store.take_unpublished(10) == [job_id()]

    async def test_marking_an_unknown_job_leaves_nothing_behind(self, rig: Rig) -> None:
        await rig.store.mark_published(job_id("nobody"))

        assert await rig.store.get(job_id("nobody")) is None


class TestDeadlines:
    async def test_a_waiting_job_past_its_deadline_is_failed_by_the_sweep(self, rig: Rig) -> None:
        await rig.store.submit(new_job("late", deadline_ms=await rig.now_ms() + 1000))
        await rig.store.submit(new_job("patient", deadline_ms=await rig.now_ms() + 60_000))
        await rig.store.submit(new_job("without"))
        assert await rig.store.expire(10) == []
        await rig.pass_time(1001)

        assert await rig.store.expire(10) == [job_id("late")]

        job = await rig.store.get(job_id("late"))
        assert job is not None
        assert job.error is not None
        assert (job.state, job.error.code, job.is_dead_letter) == (JobState.FAILED, "expired", True)
        assert await rig.store.expire(10) == []

    async def test_a_late_job_with_a_lease_is_left_to_its_owner(self, rig: Rig) -> None:
        lease = await started(rig, deadline_ms=await rig.now_ms() + 1000)
        await rig.pass_time(1001)

        assert await rig.store.expire(10) == []

        assert await rig.store.renew([lease], extend=False) == [LeaseStatus.EXPIRED]
        await rig.pass_time(LEASE_MS)
        assert await rig.store.expire(10) == [job_id()]  # who ran it is gone
        job = await rig.store.get(job_id())
        assert job is not None
        assert [attempt.outcome for attempt in job.history] == ["lost"]

    async def test_a_job_that_has_ended_is_not_failed(self, rig: Rig) -> None:
        lease = await started(rig, deadline_ms=await rig.now_ms() + 1000)
        await finish(rig.store, lease, ANSWER)
        await rig.pass_time(1001)

        assert await rig.store.expire(10) == []

    async def test_a_job_given_back_past_its_deadline_is_failed_by_the_sweep(
        self, rig: Rig
    ) -> None:
        await rig.store.submit(new_job(deadline_ms=await rig.now_ms() + 1000))
        await rig.pass_time(1001)
        await rig.store.expire(10)

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)

        assert taken.status is AcquireStatus.TERMINAL

    async def test_a_redriven_job_has_no_deadline(self, rig: Rig) -> None:
        await rig.store.submit(new_job(deadline_ms=await rig.now_ms() + 1000))
        await rig.pass_time(1001)
        await rig.store.expire(10)

        assert await redrive(rig)

        await rig.pass_time(60_000)
        assert await rig.store.expire(10) == []

"""Leases: who gets one, how long it lasts, and what a release or a loss costs."""

import asyncio
from dataclasses import replace

import pytest

from eventing.job.job import JobError, JobState
from eventing.job.store import (
    Acquired,
    AcquireStatus,
    Ending,
    LeaseStatus,
    ReleaseReason,
    TokenBatch,
)
from eventing.job.stream import EntryKind
from tests.contract.rig import (
    ANSWER,
    FAULT,
    LEASE_MS,
    NOBODYS,
    SETTINGS,
    TERMINAL,
    Rig,
    append,
    dead,
    finish,
    ids_of,
    job_id,
    new_job,
    redrive,
    started,
)


class TestLease:
    async def test_a_lease_with_the_same_attempt_and_another_id_writes_nothing(
        self, rig: Rig
    ) -> None:
        # After a failover to a lagging replica two workers hold the same attempt number.
        lease = await started(rig)
        twin = replace(lease, id="another")

        batch = TokenBatch(index=0, token_ids=(1,))
        assert await append(rig.store, twin, batch) is LeaseStatus.FENCED
        assert await rig.store.renew([twin], extend=True) == [LeaseStatus.FENCED]
        assert not await rig.store.release(twin, ReleaseReason.HANDOVER, FAULT)
        assert await finish(rig.store, twin, ANSWER) is LeaseStatus.FENCED

        assert await append(rig.store, lease, batch) is LeaseStatus.OK
        assert await finish(rig.store, lease, ANSWER) is LeaseStatus.OK
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.refused_writes == 3

    async def test_each_attempt_gets_a_lease_id_of_its_own(self, rig: Rig) -> None:
        first = await started(rig)
        await rig.pass_time(LEASE_MS + 1)

        second = (await rig.store.acquire(job_id(), "worker-2", can_resume=True)).lease

        assert second.attempt == 2
        assert second.id not in (first.id, "")


class TestAcquire:
    async def test_a_queued_job_is_started(self, rig: Rig) -> None:
        await rig.store.submit(new_job())

        taken = await rig.store.acquire(job_id(), "worker-1", can_resume=True)

        assert (taken.status, taken.lease.attempt, taken.token_count) == (
            AcquireStatus.ACQUIRED,
            1,
            0,
        )
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.lease_owner) == (JobState.IN_PROGRESS, "worker-1")
        assert job.lease_until_ms - job.started_ms == LEASE_MS
        assert [(a.attempt, a.owner, a.outcome) for a in job.history] == [(1, "worker-1", "")]

    async def test_a_running_job_is_held_and_says_for_how_long(self, rig: Rig) -> None:
        await started(rig)
        await rig.pass_time(10_000)

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert taken.status is AcquireStatus.HELD
        assert 0 < taken.lease_left_ms <= LEASE_MS - 10_000

    async def test_of_many_concurrent_acquires_one_gets_the_lease(self, rig: Rig) -> None:
        await rig.store.submit(new_job())

        answers = await asyncio.gather(
            *(rig.store.acquire(job_id(), f"worker-{n}", can_resume=True) for n in range(20))
        )

        statuses = [answer.status for answer in answers]
        assert statuses.count(AcquireStatus.ACQUIRED) == 1
        assert statuses.count(AcquireStatus.HELD) == 19

    async def test_a_lapsed_lease_is_taken_over_and_costs_an_attempt(self, rig: Rig) -> None:
        await started(rig)
        await rig.pass_time(LEASE_MS + 1)

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert (taken.status, taken.lease.attempt) == (AcquireStatus.ACQUIRED, 2)
        job = await rig.store.get(job_id())
        assert job is not None
        assert [a.outcome for a in job.history] == ["lost", ""]
        assert job.history[0].ended_ms > 0

    async def test_a_job_whose_attempts_were_all_lost_is_a_dead_letter(self, rig: Rig) -> None:
        await rig.store.submit(new_job())
        for number in range(1, SETTINGS.max_attempts + 1):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True, is_exclusive=True)
            assert (taken.status, taken.lease.attempt) == (AcquireStatus.ACQUIRED, number)
            await rig.pass_time(LEASE_MS + 1)

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)

        assert taken.status is AcquireStatus.EXHAUSTED
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.is_dead_letter) == (JobState.FAILED, True)
        assert job.error is not None
        assert job.error.code == "exhausted"
        assert [a.outcome for a in job.history] == ["lost"] * 3
        assert [j.id for j in (await rig.store.list_dead_letters("acme")).jobs] == [job_id()]

    async def test_the_last_attempt_after_a_lost_one_is_given_to_an_exclusive_owner_only(
        self, rig: Rig
    ) -> None:
        await rig.store.submit(new_job())
        for _ in range(SETTINGS.max_attempts - 1):
            await rig.store.acquire(job_id(), "worker", can_resume=True)
            await rig.pass_time(LEASE_MS + 1)
        before = await rig.store.get(job_id())

        refused = await rig.store.acquire(job_id(), "busy", can_resume=True)
        after = await rig.store.get(job_id())
        taken = await rig.store.acquire(job_id(), "idle", can_resume=True, is_exclusive=True)

        assert refused.status is AcquireStatus.ALONE
        assert after == before
        assert (taken.status, taken.lease.attempt) == (
            AcquireStatus.ACQUIRED,
            SETTINGS.max_attempts,
        )

    async def test_the_last_attempt_after_engine_deaths_needs_an_exclusive_owner_too(
        self, rig: Rig
    ) -> None:
        await rig.store.submit(new_job())
        for why in (ReleaseReason.LOST, ReleaseReason.FAILURE):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            await rig.store.release(taken.lease, why, FAULT)

        taken = await rig.store.acquire(job_id(), "busy", can_resume=True)

        assert taken.status is AcquireStatus.ALONE

    async def test_the_last_attempt_after_plain_failures_needs_no_exclusive_owner(
        self, rig: Rig
    ) -> None:
        await rig.store.submit(new_job())
        for _ in range(SETTINGS.max_attempts - 1):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            await rig.store.release(taken.lease, ReleaseReason.FAILURE, FAULT)

        taken = await rig.store.acquire(job_id(), "busy", can_resume=True)

        assert taken.status is AcquireStatus.ACQUIRED

    async def test_a_job_past_its_deadline_is_failed_and_not_started(self, rig: Rig) -> None:
        await rig.store.submit(new_job(deadline_ms=await rig.now_ms() + 60_000))
        await rig.pass_time(60_001)

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)

        assert taken.status is AcquireStatus.EXPIRED
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.error is not None
        assert (job.state, job.error.code, job.attempt) == (JobState.FAILED, "expired", 0)
        assert [j.id for j in (await rig.store.list_dead_letters("acme")).jobs] == [job_id()]

    @pytest.mark.parametrize("state", TERMINAL)
    async def test_an_ended_job_is_terminal(self, rig: Rig, state: JobState) -> None:
        lease = await started(rig)
        await finish(rig.store, lease, Ending(state=state, error=FAULT))

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert taken.status is AcquireStatus.TERMINAL

    async def test_an_unknown_job_is_missing(self, rig: Rig) -> None:
        taken = await rig.store.acquire(job_id("nobody"), "worker", can_resume=True)

        assert taken.status is AcquireStatus.MISSING

    async def test_stored_tokens_are_continued_by_an_attempt_that_can_resume(
        self, rig: Rig
    ) -> None:
        lease = await started(rig)
        await append(rig.store, lease, TokenBatch(index=0, token_ids=(5, 6, 7)))
        await rig.pass_time(LEASE_MS + 1)

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert taken.token_count == 3
        assert await ids_of(rig.store, job_id(), 3) == [5, 6, 7]
        entry = (await rig.store.read_stream(job_id()))[-1]
        assert (entry.kind, entry.attempt, entry.index) == (EntryKind.ATTEMPT, 2, 3)
        assert not entry.is_restart

    async def test_acquire_skips_the_read_when_the_event_matches_the_record(self, rig: Rig) -> None:
        await rig.store.submit(new_job())

        taken = await rig.store.acquire(job_id(), "w", can_resume=True, expected=new_job())

        assert (taken.status, taken.lease.attempt) == (AcquireStatus.ACQUIRED, 1)

    @pytest.mark.parametrize("other", [{"prompt": "other"}, {"tenant": "other"}], ids=str)
    async def test_acquire_with_another_expected_request_changes_nothing(
        self, rig: Rig, other: dict[str, str]
    ) -> None:
        await rig.store.submit(new_job())
        before = await rig.store.get(job_id())

        taken = await rig.store.acquire(job_id(), "w", can_resume=True, expected=new_job(**other))

        assert taken == Acquired(status=AcquireStatus.OTHER)
        assert await rig.store.get(job_id()) == before

    async def test_after_an_edited_redrive_the_first_event_no_longer_matches(
        self, rig: Rig
    ) -> None:
        await dead(rig)
        await redrive(rig, request=new_job(prompt="edited").request)

        first = await rig.store.acquire(job_id(), "w", can_resume=True, expected=new_job())
        second = await rig.store.acquire(
            job_id(), "w", can_resume=True, expected=new_job(prompt="edited")
        )

        assert [first.status, second.status] == [AcquireStatus.OTHER, AcquireStatus.ACQUIRED]

    async def test_an_attempt_that_starts_over_gets_the_number_of_void_tokens(
        self, rig: Rig
    ) -> None:
        lease = await started(rig)
        await append(rig.store, lease, TokenBatch(index=0, token_ids=(1, 2)))
        await rig.pass_time(LEASE_MS + 1)

        taken = await rig.store.acquire(job_id(), "w", can_resume=False)

        assert (taken.token_count, taken.void_count) == (0, 2)

    async def test_stored_tokens_are_void_for_an_attempt_that_cannot_resume(self, rig: Rig) -> None:
        lease = await started(rig)
        await append(rig.store, lease, TokenBatch(index=0, token_ids=(5, 6, 7)))
        await rig.pass_time(LEASE_MS + 1)

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=False)
        await append(rig.store, taken.lease, TokenBatch(index=0, token_ids=(8,)))

        assert taken.token_count == 0
        entry = (await rig.store.read_stream(job_id()))[-2]
        assert (entry.kind, entry.index, entry.is_restart) == (EntryKind.ATTEMPT, 0, True)
        assert await ids_of(rig.store, job_id(), 10) == [8]


class TestRenew:
    async def test_a_renewed_lease_lasts_longer(self, rig: Rig) -> None:
        lease = await started(rig)
        await rig.pass_time(20_000)

        assert await rig.store.renew([lease], extend=True) == [LeaseStatus.OK]

        await rig.pass_time(20_000)
        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        assert taken.status is AcquireStatus.HELD

    async def test_looking_does_not_lengthen_the_lease(self, rig: Rig) -> None:
        lease = await started(rig)
        await rig.pass_time(20_000)

        assert await rig.store.renew([lease], extend=False) == [LeaseStatus.OK]

        await rig.pass_time(20_000)
        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        assert taken.status is AcquireStatus.ACQUIRED

    async def test_a_lapsed_lease_that_was_not_taken_over_can_be_renewed(self, rig: Rig) -> None:
        lease = await started(rig)
        await rig.pass_time(LEASE_MS * 2)

        assert await rig.store.renew([lease], extend=True) == [LeaseStatus.OK]

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        assert taken.status is AcquireStatus.HELD

    async def test_each_lease_is_answered_in_order(self, rig: Rig) -> None:
        fine = await started(rig, "fine")
        overtaken = await started(rig, "overtaken")
        await rig.pass_time(LEASE_MS + 1)
        await rig.store.renew([fine], extend=True)
        await rig.store.acquire(job_id("overtaken"), "worker-2", can_resume=True)
        cancelled = await started(rig, "cancelled")
        await rig.store.cancel(job_id("cancelled"))
        late = await started(rig, "late", deadline_ms=await rig.now_ms() + 1000)
        given_back = await started(rig, "given back")
        await rig.store.release(given_back, ReleaseReason.HANDOVER, FAULT)
        await rig.pass_time(1001)

        answers = await rig.store.renew(
            [fine, overtaken, cancelled, late, given_back, NOBODYS], extend=True
        )

        assert answers == [
            LeaseStatus.OK,
            LeaseStatus.FENCED,
            LeaseStatus.TERMINAL,
            LeaseStatus.EXPIRED,
            LeaseStatus.FENCED,
            LeaseStatus.MISSING,
        ]

    async def test_no_leases_need_no_answer(self, rig: Rig) -> None:
        assert await rig.store.renew([], extend=True) == []


class TestRelease:
    async def test_a_job_given_back_starts_again_at_once(self, rig: Rig) -> None:
        lease = await started(rig)

        assert await rig.store.release(lease, ReleaseReason.HANDOVER, FAULT)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.lease_owner) == (JobState.QUEUED, "")
        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        assert (taken.status, taken.lease.attempt) == (AcquireStatus.ACQUIRED, 2)

    async def test_a_hand_over_costs_no_attempt(self, rig: Rig) -> None:
        await rig.store.submit(new_job())
        for _ in range(SETTINGS.max_attempts * 3):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            assert await rig.store.release(taken.lease, ReleaseReason.HANDOVER, FAULT)

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)

        assert taken.status is AcquireStatus.ACQUIRED

    async def test_failures_use_the_attempts_up_and_the_last_reason_stays(self, rig: Rig) -> None:
        await rig.store.submit(new_job())
        kept = []
        for number in range(SETTINGS.max_attempts):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            reason = JobError(code="engine_error", message=f"failure {number}")
            kept.append(await rig.store.release(taken.lease, ReleaseReason.FAILURE, reason))

        assert kept == [True, True, False]
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.is_dead_letter) == (JobState.FAILED, True)
        assert job.error == JobError(code="engine_error", message="failure 2")
        assert [a.outcome for a in job.history] == ["failure"] * 3
        assert [j.id for j in (await rig.store.list_dead_letters("acme")).jobs] == [job_id()]

    async def test_a_release_without_the_lease_is_refused_and_counted(self, rig: Rig) -> None:
        zombie = await started(rig)
        await rig.pass_time(LEASE_MS + 1)
        await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert not await rig.store.release(zombie, ReleaseReason.HANDOVER, FAULT)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.lease_owner) == (JobState.IN_PROGRESS, "worker-2")
        assert job.refused_writes == 1

    async def test_an_ended_or_unknown_job_is_not_given_back(self, rig: Rig) -> None:
        lease = await started(rig)
        await finish(rig.store, lease, ANSWER)

        assert not await rig.store.release(lease, ReleaseReason.FAILURE, FAULT)
        assert not await rig.store.release(NOBODYS, ReleaseReason.FAILURE, FAULT)

        job = await rig.store.get(job_id())
        assert job is not None
        assert job.state is JobState.COMPLETED

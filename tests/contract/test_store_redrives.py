"""Redrives of dead letters."""

import asyncio

from eventing.job.job import JobState
from eventing.job.store import AcquireStatus, Ending, LeaseStatus, ReleaseReason, TokenBatch
from tests.contract.rig import (
    ANSWER,
    FAULT,
    SETTINGS,
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


class TestRedrive:
    async def test_a_dead_letter_gets_a_new_attempt_under_its_id(self, rig: Rig) -> None:
        await dead(rig)

        assert await redrive(rig)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.error, job.is_dead_letter) == (JobState.QUEUED, None, False)
        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert (taken.status, taken.lease.attempt) == (AcquireStatus.ACQUIRED, 5)

    async def test_a_redriven_job_has_its_attempts_back(self, rig: Rig) -> None:
        await dead(rig)
        await redrive(rig)

        for _ in range(SETTINGS.max_attempts - 1):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            assert await rig.store.release(taken.lease, ReleaseReason.FAILURE, FAULT)

    async def test_a_redriven_job_is_no_longer_listed_as_dead(self, rig: Rig) -> None:
        await dead(rig)

        await redrive(rig)

        assert (await rig.store.list_dead_letters("acme")).jobs == ()

    async def test_a_redriven_job_outlives_the_retention_of_its_first_end(self, rig: Rig) -> None:
        await dead(rig)
        await redrive(rig)

        await rig.pass_time(SETTINGS.dead_letter_retention_s * 1000 * 2)

        assert await rig.store.get(job_id()) is not None
        assert await rig.store.read_stream(job_id()) != []

    async def test_a_job_past_its_deadline_can_run_after_a_redrive(self, rig: Rig) -> None:
        await rig.store.submit(new_job(deadline_ms=await rig.now_ms() + 1000))
        await rig.pass_time(1001)
        await rig.store.acquire(job_id(), "worker", can_resume=True)

        assert await redrive(rig)

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert taken.status is AcquireStatus.ACQUIRED

    async def test_an_edited_request_starts_from_nothing_and_says_so(self, rig: Rig) -> None:
        # The stream still holds the tokens of the first request; a third attempt must not take
        # them for its own.
        lease = await started(rig)
        await append(rig.store, lease, TokenBatch(index=0, token_ids=(1, 2, 3)))
        ending = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
        await finish(rig.store, lease, ending)
        edited = new_job(prompt="how?").request

        assert await redrive(rig, request=edited)

        second = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert second.token_count == 0
        assert (await rig.store.read_stream(job_id()))[-1].is_restart
        await append(rig.store, second.lease, TokenBatch(index=0, token_ids=(7, 8)))
        await rig.store.release(second.lease, ReleaseReason.HANDOVER, FAULT)
        third = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert third.token_count == 2
        assert await ids_of(rig.store, job_id(), third.token_count) == [7, 8]
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.request == edited

    async def test_a_redriven_job_shows_no_result_of_its_first_life(self, rig: Rig) -> None:
        lease = await started(rig)
        ending = Ending(
            state=JobState.FAILED,
            result={"text": "half"},
            usage={"total_tokens": 1},
            error=FAULT,
            is_dead_letter=True,
        )
        await finish(rig.store, lease, ending)

        await redrive(rig)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.result, job.usage, job.finished_ms) == (None, None, 0)

    async def test_only_dead_letters_are_redriven(self, rig: Rig) -> None:
        await rig.store.submit(new_job("queued"))
        failed = await started(rig, "failed")
        await finish(rig.store, failed, Ending(state=JobState.FAILED, error=FAULT))

        assert not await redrive(rig, "queued")
        assert not await redrive(rig, "failed")
        assert not await redrive(rig, "nobody")

    async def test_the_result_of_the_first_life_does_not_end_the_second(self, rig: Rig) -> None:
        await dead(rig)
        old = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
        before = await rig.store.get(job_id())
        assert before is not None
        assert await redrive(rig)

        told_late = await rig.store.conclude(job_id(), old, attempt=before.attempt)

        assert told_late is LeaseStatus.FENCED
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.refused_writes) == (JobState.QUEUED, 1)
        assert await rig.store.conclude(job_id(), ANSWER, attempt=job.attempt) is LeaseStatus.OK

    async def test_a_result_of_an_attempt_that_the_store_never_saw_counts(self, rig: Rig) -> None:
        # A predictor that speaks CloudEvents only numbers its attempts itself.
        await rig.store.submit(new_job())
        failed = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
        await rig.store.conclude(job_id(), failed, attempt=3)

        assert await redrive(rig)

        job = await rig.store.get(job_id())
        assert job is not None
        assert job.attempt == 4
        assert await rig.store.conclude(job_id(), failed, attempt=3) is LeaseStatus.FENCED

    async def test_two_lives_that_end_before_an_attempt_have_two_identities(self, rig: Rig) -> None:
        # Else receivers drop the second end as told before.
        failed = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
        attempts = []
        await rig.store.submit(new_job())
        for _ in range(2):
            await rig.store.conclude(job_id(), failed)
            job = await rig.store.get(job_id())
            assert job is not None
            attempts.append(job.attempt)
            await redrive(rig)

        assert len(set(attempts)) == 2

    async def test_of_two_concurrent_redrives_one_succeeds(self, rig: Rig) -> None:
        await dead(rig)
        job = await rig.store.get(job_id())
        assert job is not None

        redriven = await asyncio.gather(*(rig.store.redrive(job, None) for _ in range(5)))

        assert sorted(redriven) == [False, False, False, False, True]

"""Dead letters get a second life."""

from eventing.job.job import JobState
from eventing.job.store import AcquireStatus, Ending, Release, TokenBatch
from tests.contract.rig import FAULT, SETTINGS, Rig, dead, job_id, new_job, started


class TestRedrive:
    async def test_a_dead_letter_gets_a_new_attempt_under_its_id(self, rig: Rig) -> None:
        await dead(rig)

        assert await rig.store.redrive(job_id(), None)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.error, job.is_dead_letter) == (JobState.QUEUED, None, False)
        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert (taken.status, taken.lease.attempt) == (AcquireStatus.ACQUIRED, 4)

    async def test_a_redriven_job_has_its_attempts_back(self, rig: Rig) -> None:
        await dead(rig)
        await rig.store.redrive(job_id(), None)

        for _ in range(SETTINGS.max_attempts - 1):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            assert await rig.store.release(taken.lease, Release.FAILURE, FAULT)

    async def test_a_redriven_job_is_no_longer_listed_as_dead(self, rig: Rig) -> None:
        await dead(rig)

        await rig.store.redrive(job_id(), None)

        assert (await rig.store.list_dead_letters("acme")).jobs == ()

    async def test_a_redriven_job_outlives_the_retention_of_its_first_end(self, rig: Rig) -> None:
        await dead(rig)
        await rig.store.redrive(job_id(), None)

        await rig.pass_time(SETTINGS.dead_letter_retention_s * 1000 * 2)

        assert await rig.store.get(job_id()) is not None
        assert await rig.store.read_stream(job_id()) != []

    async def test_a_redriven_job_is_due_for_publication(self, rig: Rig) -> None:
        await dead(rig)
        await rig.store.mark_published(job_id())

        await rig.store.redrive(job_id(), None)

        await rig.pass_time(10_001)
        assert await rig.store.take_unpublished(10) == [job_id()]

    async def test_a_job_past_its_deadline_can_run_after_a_redrive(self, rig: Rig) -> None:
        await rig.store.create(new_job(deadline_ms=await rig.now_ms() + 1000))
        await rig.pass_time(1001)
        await rig.store.acquire(job_id(), "worker", can_resume=True)

        assert await rig.store.redrive(job_id(), None)

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert taken.status is AcquireStatus.ACQUIRED

    async def test_an_edited_request_starts_from_nothing_and_says_so(self, rig: Rig) -> None:
        # The stream still holds the tokens of the first request; a third attempt must not take
        # them for its own.
        lease = await started(rig)
        await rig.store.append(lease, TokenBatch(index=0, token_ids=(1, 2, 3)))
        ending = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
        await rig.store.finish(lease, ending)
        edited = new_job(prompt="how?").request

        assert await rig.store.redrive(job_id(), edited)

        second = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert second.token_count == 0
        assert (await rig.store.read_stream(job_id()))[-1].is_restart
        await rig.store.append(second.lease, TokenBatch(index=0, token_ids=(7, 8)))
        await rig.store.release(second.lease, Release.HANDOVER, FAULT)
        third = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert third.token_count == 2
        assert await rig.store.token_ids(job_id(), third.token_count) == [7, 8]
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
        await rig.store.finish(lease, ending)

        await rig.store.redrive(job_id(), None)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.result, job.usage, job.finished_ms) == (None, None, 0)

    async def test_only_dead_letters_are_redriven(self, rig: Rig) -> None:
        await rig.store.create(new_job("queued"))
        failed = await started(rig, "failed")
        await rig.store.finish(failed, Ending(state=JobState.FAILED, error=FAULT))

        assert not await rig.store.redrive(job_id("queued"), None)
        assert not await rig.store.redrive(job_id("failed"), None)
        assert not await rig.store.redrive(job_id("nobody"), None)

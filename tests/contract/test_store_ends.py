"""Jobs end once and for good, and expire."""

import asyncio
from dataclasses import replace

import pytest

from eventing.errors import JobDeleted, ResultTooLarge
from eventing.job.job import JobState
from eventing.job.store import AcquireStatus, Ending, LeaseStatus, ReleaseReason, TokenBatch
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


class TestFinish:
    async def test_the_last_tokens_come_with_the_end(self, rig: Rig) -> None:
        lease = await started(rig)
        await append(rig.store, lease, TokenBatch(index=0, token_ids=(1,), delta='["a"]'))
        final_batch = TokenBatch(index=1, token_ids=(2, 3), delta='["b"]')

        assert (
            await finish(rig.store, lease, replace(ANSWER, final_batch=final_batch))
            is LeaseStatus.OK
        )

        *_, tokens, end = await rig.store.read_stream(job_id())
        assert (tokens.kind, tokens.index, tokens.token_ids) == (EntryKind.TOKENS, 1, (2, 3))
        assert (tokens.delta, end.kind) == ('["b"]', EntryKind.STATE)
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.token_count == 3

    async def test_a_first_token_that_comes_with_the_end_has_its_time(self, rig: Rig) -> None:
        lease = await started(rig)
        await rig.pass_time(5)

        final_batch = TokenBatch(index=0, token_ids=(1,))
        await finish(rig.store, lease, replace(ANSWER, final_batch=final_batch))

        job = await rig.store.get(job_id())
        assert job is not None
        assert job.first_token_ms == job.finished_ms

    async def test_a_result_that_would_hold_up_the_store_is_refused(self, rig: Rig) -> None:
        lease = await started(rig)
        with pytest.raises(ResultTooLarge, match="33 MiB, of which at most 32 are kept"):
            await finish(rig.store, lease, replace(ANSWER, result={"text": "x" * 33 * 1024 * 1024}))

        job = await rig.store.get(job_id())
        assert job is not None
        assert job.state is JobState.IN_PROGRESS

    async def test_the_final_batch_can_be_text_without_tokens(self, rig: Rig) -> None:
        lease = await started(rig)
        final_batch = TokenBatch(index=0, token_ids=(), delta='["late"]')

        assert (
            await finish(rig.store, lease, replace(ANSWER, final_batch=final_batch))
            is LeaseStatus.OK
        )

        assert (await rig.store.read_stream(job_id()))[-2].delta == '["late"]'

    @pytest.mark.parametrize("index", [0, 2])
    async def test_an_end_whose_tokens_do_not_fit_changes_nothing(
        self, rig: Rig, index: int
    ) -> None:
        lease = await started(rig)
        await append(rig.store, lease, TokenBatch(index=0, token_ids=(1,)))
        before = await rig.store.read_stream(job_id()), await rig.store.get(job_id())

        final_batch = TokenBatch(index=index, token_ids=(9,))
        answer = await finish(rig.store, lease, replace(ANSWER, final_batch=final_batch))

        assert answer is LeaseStatus.GAP
        assert (await rig.store.read_stream(job_id()), await rig.store.get(job_id())) == before

    async def test_a_repeated_finish_writes_its_tokens_and_its_charge_once(self, rig: Rig) -> None:
        lease = await started(rig)
        ending = replace(ANSWER, final_batch=TokenBatch(index=0, token_ids=(1,)), gpu_ms=70)
        await finish(rig.store, lease, ending)

        assert await finish(rig.store, lease, ending) is LeaseStatus.TERMINAL

        assert await ids_of(rig.store, job_id(), 9) == [1]
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.gpu_ms == 70

    @pytest.mark.parametrize("state", TERMINAL)
    async def test_state_and_result_come_together(self, rig: Rig, state: JobState) -> None:
        lease = await started(rig)
        ending = Ending(state=state, result={"text": "☃"}, usage={"total_tokens": 1}, error=FAULT)

        assert await finish(rig.store, lease, ending) is LeaseStatus.OK

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.result, job.usage, job.error) == (
            state,
            {"text": "☃"},
            {"total_tokens": 1},
            FAULT,
        )
        assert (job.lease_owner, job.lease_until_ms) == ("", 0)
        assert job.finished_ms >= job.started_ms
        last = (await rig.store.read_stream(job_id()))[-1]
        assert (last.kind, last.state, last.attempt) == (EntryKind.STATE, state, 1)

    @pytest.mark.parametrize("second", TERMINAL)
    @pytest.mark.parametrize("first", TERMINAL)
    async def test_the_first_terminal_state_wins(
        self, rig: Rig, first: JobState, second: JobState
    ) -> None:
        lease = await started(rig)
        await finish(rig.store, lease, Ending(state=first, result={"n": 1}))

        answer = await finish(rig.store, lease, Ending(state=second, result={"n": 2}))

        assert answer is LeaseStatus.TERMINAL
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.result) == (first, {"n": 1})
        assert job.refused_writes == 1

    async def test_a_zombie_cannot_finish_what_another_runs(self, rig: Rig) -> None:
        zombie = await started(rig)
        await rig.pass_time(LEASE_MS + 1)
        heir = (await rig.store.acquire(job_id(), "worker-2", can_resume=True)).lease

        assert await finish(rig.store, zombie, ANSWER) is LeaseStatus.FENCED

        assert await rig.store.renew([heir], extend=False) == [LeaseStatus.OK]
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.result, job.refused_writes) == (None, 1)

    async def test_a_job_given_back_cannot_be_finished_by_the_giver(self, rig: Rig) -> None:
        lease = await started(rig)
        await rig.store.release(lease, ReleaseReason.HANDOVER, FAULT)

        assert await finish(rig.store, lease, ANSWER) is LeaseStatus.FENCED

    async def test_an_unknown_job_is_missing(self, rig: Rig) -> None:
        assert await finish(rig.store, NOBODYS, ANSWER) is LeaseStatus.MISSING

    async def test_a_dead_letter_is_listed_as_one(self, rig: Rig) -> None:
        lease = await started(rig)
        ending = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)

        await finish(rig.store, lease, ending)

        assert [j.id for j in (await rig.store.list_dead_letters("acme")).jobs] == [job_id()]

    async def test_an_ended_job_is_forgotten_after_its_retention(self, rig: Rig) -> None:
        lease = await started(rig)
        await finish(rig.store, lease, ANSWER)

        await rig.pass_time(SETTINGS.retention_s * 1000 - 1000)
        assert await rig.store.get(job_id()) is not None
        await rig.pass_time(2000)

        assert await rig.store.get(job_id()) is None
        assert await rig.store.read_stream(job_id()) == []
        assert (await rig.store.list_jobs("acme")).jobs == ()

    async def test_a_dead_letter_is_kept_longer(self, rig: Rig) -> None:
        await dead(rig)

        await rig.pass_time(SETTINGS.retention_s * 1000 + 1000)
        assert await rig.store.get(job_id()) is not None
        await rig.pass_time(SETTINGS.retention_s * 1000)

        assert await rig.store.get(job_id()) is None

    async def test_a_running_job_is_never_forgotten(self, rig: Rig) -> None:
        await started(rig)

        await rig.pass_time(SETTINGS.dead_letter_retention_s * 1000 * 10)

        assert await rig.store.get(job_id()) is not None


class TestCancelAndConclude:
    async def test_a_queued_job_is_cancelled(self, rig: Rig) -> None:
        await rig.store.submit(new_job())

        job = await rig.store.cancel(job_id())

        assert job is not None
        assert job.state is JobState.CANCELLED

    async def test_a_running_job_is_cancelled_under_its_lease(self, rig: Rig) -> None:
        lease = await started(rig)

        job = await rig.store.cancel(job_id())

        assert job is not None
        assert (job.state, job.history[-1].outcome) == (JobState.CANCELLED, "cancelled")
        assert await finish(rig.store, lease, ANSWER) is LeaseStatus.TERMINAL

    async def test_cancelling_an_ended_job_shows_how_it_ended(self, rig: Rig) -> None:
        lease = await started(rig)
        await finish(rig.store, lease, ANSWER)

        job = await rig.store.cancel(job_id())

        assert job is not None
        assert (job.state, job.result) == (JobState.COMPLETED, ANSWER.result)

    async def test_cancelling_an_unknown_job_is_none(self, rig: Rig) -> None:
        assert await rig.store.cancel(job_id("nobody")) is None

    async def test_cancel_and_finish_at_once_agree_on_one_end(self, rig: Rig) -> None:
        for number in range(50):
            lease = await started(rig, str(number))

            finished, cancelled = await asyncio.gather(
                finish(rig.store, lease, ANSWER),
                rig.store.cancel(job_id(str(number))),
            )

            assert cancelled is not None
            won = finished is LeaseStatus.OK
            assert cancelled.state is (JobState.COMPLETED if won else JobState.CANCELLED)

    async def test_a_job_with_a_live_lease_is_not_concluded(self, rig: Rig) -> None:
        await started(rig)

        assert await rig.store.conclude(job_id(), ANSWER) is LeaseStatus.HELD

        job = await rig.store.get(job_id())
        assert job is not None
        assert job.state is JobState.IN_PROGRESS

    async def test_a_job_without_a_lease_is_concluded(self, rig: Rig) -> None:
        await rig.store.submit(new_job("queued"))
        await started(rig, "lapsed")
        await rig.pass_time(LEASE_MS + 1)

        assert await rig.store.conclude(job_id("queued"), ANSWER) is LeaseStatus.OK
        assert await rig.store.conclude(job_id("lapsed"), ANSWER) is LeaseStatus.OK

        job = await rig.store.get(job_id("lapsed"))
        assert job is not None
        assert (job.state, job.result) == (JobState.COMPLETED, ANSWER.result)
        assert job.history[-1].outcome == "completed"

    async def test_an_ended_or_unknown_job_is_not_concluded(self, rig: Rig) -> None:
        await rig.store.submit(new_job())
        await rig.store.cancel(job_id())

        assert await rig.store.conclude(job_id(), ANSWER) is LeaseStatus.TERMINAL
        assert await rig.store.conclude(job_id("nobody"), ANSWER) is LeaseStatus.MISSING


class TestDelete:
    async def test_an_ended_job_is_forgotten_with_its_tokens(self, rig: Rig) -> None:
        await dead(rig)

        assert await rig.store.delete(job_id())

        assert await rig.store.get(job_id()) is None
        assert await rig.store.read_stream(job_id()) == []
        assert (await rig.store.list_jobs("acme")).jobs == ()
        assert (await rig.store.list_dead_letters("acme")).jobs == ()

    async def test_an_event_of_a_deleted_job_makes_no_new_one(self, rig: Rig) -> None:
        # It was cancelled and deleted while its event waited: the prompt came back with the event
        # and was run.
        await rig.store.submit(new_job())
        await rig.store.cancel(job_id())
        assert await rig.store.delete(job_id())

        with pytest.raises(JobDeleted):
            await rig.store.submit(new_job())
        assert not await rig.store.reject(new_job(), FAULT, b"no job")

        assert await rig.store.get(job_id()) is None
        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert taken.status is AcquireStatus.MISSING
        assert not await rig.store.delete(job_id())

    async def test_the_id_of_a_deleted_job_is_free_once_ended_jobs_are_not_kept(
        self, rig: Rig
    ) -> None:
        await rig.store.submit(new_job())
        await rig.store.cancel(job_id())
        await rig.store.delete(job_id())

        await rig.pass_time(SETTINGS.retention_s * 1000 + 1000)

        _, is_new = await rig.store.submit(new_job())
        assert is_new

    async def test_a_job_that_has_not_ended_is_not_deleted(self, rig: Rig) -> None:
        await rig.store.submit(new_job("queued"))
        await started(rig, "running")

        assert not await rig.store.delete(job_id("queued"))
        assert not await rig.store.delete(job_id("running"))
        assert not await rig.store.delete(job_id("nobody"))

    async def test_a_redrive_that_comes_between_saves_the_job(self, rig: Rig) -> None:
        # Read, then delete: with a redrive in between, a queued job would be lost.
        for number in range(30):
            await dead(rig, str(number))
            target = job_id(str(number))

            deleted, redriven = await asyncio.gather(
                rig.store.delete(target), redrive(rig, str(number))
            )

            assert deleted != redriven
            assert (await rig.store.get(target) is not None) == redriven

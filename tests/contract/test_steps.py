"""Steps before the predictor: what begins, advances and ends a job, and what a late or a double one changes."""

from dataclasses import replace

import pytest

from eventing.job.job import JobState
from eventing.job.plan import StepStatus
from eventing.job.step import AdvanceStatus, BeginStatus, StepEnd, StepRun
from eventing.job.store import AcquireStatus, Publication
from eventing.job.stream import EntryKind
from tests.contract.planned_jobs import (
    DONE,
    LAST,
    PLAN,
    begun,
    edited,
    job_of,
    planned,
    prepared,
    statuses,
)
from tests.contract.rig import ANSWER, Rig, job_id, new_job


class TestPlan:
    async def test_a_job_keeps_its_plan(self, rig: Rig) -> None:
        made, _ = await rig.store.submit(planned())

        job = await job_of(rig)
        assert (job.plan, job.step) == (made.plan, made.step) == (PLAN, "a")
        assert statuses(job) == [("a", StepStatus.QUEUED), ("b", StepStatus.QUEUED)]

    async def test_a_list_shows_how_far_the_steps_are(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        await rig.store.advance(await begun(rig), replace(DONE, detail={"found": 2}))

        (listed,) = (await rig.store.list_jobs("acme")).jobs
        assert statuses(listed) == [("a", StepStatus.COMPLETED), ("b", StepStatus.QUEUED)]
        assert listed.steps[0].detail == {"found": 2}

    async def test_a_job_without_a_plan_has_no_steps(self, rig: Rig) -> None:
        await rig.store.submit(new_job())

        job = await job_of(rig)
        assert (job.plan, job.step, job.steps) == (None, "", ())
        answer = await rig.store.begin_step(job_id(), "a")
        assert answer.status is BeginStatus.UNPLANNED


class TestBegin:
    async def test_a_run_gets_the_record_and_its_number(self, rig: Rig) -> None:
        await rig.store.submit(planned())

        answer = await rig.store.begin_step(job_id(), "a")

        assert (answer.status, answer.number, answer.is_suspect) == (BeginStatus.BEGUN, 1, False)
        assert answer.job is not None
        (first, second) = answer.job.steps
        assert (first.status, second.status) == (StepStatus.IN_PROGRESS, StepStatus.QUEUED)
        assert first.started_ms >= answer.job.created_ms > 0
        assert answer.job.state is JobState.QUEUED

    async def test_a_run_after_one_that_ended_without_a_word_is_suspect(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        first = await begun(rig)

        lost = await rig.store.begin_step(job_id(), "a")
        await rig.store.give_up_run(first)
        given_up = await rig.store.begin_step(job_id(), "a")

        assert (lost.number, lost.is_suspect) == (2, True)
        assert (given_up.number, given_up.is_suspect) == (3, False)

    async def test_a_run_that_was_given_up_waits_again(self, rig: Rig) -> None:
        await rig.store.submit(planned())

        await rig.store.give_up_run(await begun(rig))

        (first, _) = (await job_of(rig)).steps
        assert (first.status, first.attempts) == (StepStatus.QUEUED, 1)

    @pytest.mark.parametrize("step", ["b", "c"])
    async def test_only_the_next_step_begins(self, rig: Rig, step: str) -> None:
        await rig.store.submit(planned())

        assert (await rig.store.begin_step(job_id(), step)).status is BeginStatus.DONE
        assert (await job_of(rig)).pipeline == ()

    async def test_a_step_of_an_ended_job_does_not_begin(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        await rig.store.cancel(job_id())

        assert (await rig.store.begin_step(job_id(), "a")).status is BeginStatus.TERMINAL

    async def test_a_step_of_a_job_that_is_not_there_does_not_begin(self, rig: Rig) -> None:
        answer = await rig.store.begin_step(job_id(), "a")

        assert (answer.status, answer.job) == (BeginStatus.MISSING, None)

    async def test_a_late_job_fails_at_its_next_step(self, rig: Rig) -> None:
        await rig.store.submit(planned(deadline_ms=await rig.now_ms() + 1000))
        await rig.pass_time(1001)

        answer = await rig.store.begin_step(job_id(), "a")

        assert answer.status is BeginStatus.EXPIRED
        job = await job_of(rig)
        assert (job.state, job.is_dead_letter) == (JobState.FAILED, True)
        assert job.error is not None
        assert job.error.code == "expired"
        assert statuses(job) == [("a", StepStatus.NOT_RUN), ("b", StepStatus.NOT_RUN)]


class TestAdvance:
    async def test_a_job_goes_from_step_to_step_and_then_to_its_predictor(self, rig: Rig) -> None:
        await rig.store.submit(planned())

        first = await rig.store.advance(await begun(rig, "a"), replace(DONE, detail={"x": [{}]}))
        between = await job_of(rig)
        second = await rig.store.advance(await begun(rig, "b"), LAST)

        assert (first, between.step, second) == (AdvanceStatus.OK, "b", AdvanceStatus.OK)
        job = await job_of(rig)
        assert (job.step, job.state) == ("", JobState.QUEUED)
        assert [(each.status, each.attempts) for each in job.steps] == [
            (StepStatus.COMPLETED, 1)
        ] * 2
        assert job.steps[0].detail == {"x": [{}]}
        assert all(each.ended_ms >= each.started_ms > 0 for each in job.steps)

    async def test_no_predictor_takes_a_job_with_steps_left(self, rig: Rig) -> None:
        await rig.store.submit(planned())

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True, expected=new_job())

        assert taken.status is AcquireStatus.UNPREPARED
        assert (await job_of(rig)).attempt == 0

    async def test_the_predictor_gets_the_prepared_request_and_the_caller_keeps_his_own(
        self, rig: Rig
    ) -> None:
        await prepared(rig, edited("because of this, why?"))

        own = await rig.store.acquire(job_id(), "worker", can_resume=True, expected=new_job())
        asked = replace(new_job(), request=edited("because of this, why?"))
        right = await rig.store.acquire(job_id(), "worker", can_resume=True, expected=asked)

        assert (own.status, right.status) == (AcquireStatus.OTHER, AcquireStatus.ACQUIRED)
        job = await job_of(rig)
        assert job.request == new_job().request
        assert job.to_run == edited("because of this, why?")

    async def test_a_step_that_changes_nothing_leaves_the_request_of_the_step_before(
        self, rig: Rig
    ) -> None:
        await rig.store.submit(planned())
        await rig.store.advance(await begun(rig, "a"), replace(DONE, prepared=edited("more")))

        await rig.store.advance(await begun(rig, "b"), LAST)

        assert (await job_of(rig)).to_run == edited("more")

    async def test_the_prepared_request_goes_with_the_end(self, rig: Rig) -> None:
        await prepared(rig, edited("more"))
        lease = (await rig.store.acquire(job_id(), "worker", can_resume=True)).lease

        await rig.store.finish(lease, ANSWER)

        job = await job_of(rig)
        assert (job.prepared, job.request) == (None, new_job().request)

    async def test_a_second_end_of_a_step_changes_nothing(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        run = await begun(rig)
        await rig.store.advance(run, replace(DONE, detail={"first": 1}))
        before = await rig.store.read_stream(job_id())

        answer = await rig.store.advance(run, replace(DONE, detail={"second": 2}))

        assert answer is AdvanceStatus.DONE
        assert (await job_of(rig)).steps[0].detail == {"first": 1}
        assert await rig.store.read_stream(job_id()) == before

    async def test_the_first_of_two_runs_wins(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        slow, quick = await begun(rig), await begun(rig)

        assert await rig.store.advance(quick, DONE) is AdvanceStatus.OK
        assert await rig.store.advance(slow, DONE) is AdvanceStatus.DONE

    async def test_a_run_of_an_ended_job_changes_nothing(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        run = await begun(rig)
        await rig.store.cancel(job_id())

        assert await rig.store.advance(run, DONE) is AdvanceStatus.TERMINAL
        job = await job_of(rig)
        assert job.state is JobState.CANCELLED
        assert statuses(job) == [("a", StepStatus.CANCELLED), ("b", StepStatus.NOT_RUN)]

    async def test_a_run_under_another_plan_is_fenced(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        run = await begun(rig)

        assert await rig.store.advance(replace(run, plan_version="other"), DONE) is (
            AdvanceStatus.FENCED
        )
        assert (await job_of(rig)).refused_writes == 1

    async def test_a_run_of_a_job_that_is_not_there_changes_nothing(self, rig: Rig) -> None:
        run = StepRun(job_id(), "acme", "a", 0, PLAN.version)

        assert await rig.store.advance(run, DONE) is AdvanceStatus.MISSING

    async def test_the_stream_tells_of_each_step(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        await rig.store.advance(await begun(rig, "a"), DONE)
        await rig.store.give_up_run(await begun(rig, "b"))
        await rig.store.advance(
            await begun(rig, "b"), StepEnd(status=StepStatus.SKIPPED, detail={"reason": "x"})
        )

        entries = await rig.store.read_stream(job_id())

        assert {entry.kind for entry in entries} == {EntryKind.STEP}
        assert [(entry.step, str(entry.step_status)) for entry in entries] == [
            ("a", "in_progress"),
            ("a", "completed"),
            ("b", "in_progress"),
            ("b", "queued"),
            ("b", "in_progress"),
            ("b", "skipped"),
        ]
        assert all(entry.step_ms >= 0 for entry in entries)

    async def test_a_step_that_was_not_begun_can_be_skipped(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        run = StepRun.of(await job_of(rig), "a")

        end = StepEnd(status=StepStatus.SKIPPED, detail={"reason": "unavailable"}, next_step="b")
        assert await rig.store.advance(run, end) is AdvanceStatus.OK
        (first, _) = (await job_of(rig)).steps
        assert (first.status, first.attempts) == (StepStatus.SKIPPED, 0)

    async def test_an_external_broker_gets_the_event_by_a_note(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        await rig.store.advance(await begun(rig), DONE, Publication(max_unpublished=5))
        await rig.pass_time(10_001)

        assert await rig.store.take_unpublished(5) == [job_id()]

    async def test_a_step_that_waits_long_after_another_is_published_again(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        await rig.pass_time(800_000)
        await rig.store.advance(await begun(rig), DONE)
        await rig.pass_time(800_000)
        early = await rig.store.claim_unstarted(5)
        await rig.pass_time(101_000)

        assert (early, await rig.store.claim_unstarted(5)) == ([], [job_id()])

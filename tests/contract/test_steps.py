"""Steps before the predictor: what begins, advances and ends a job, and what a late or a double one changes."""

from dataclasses import replace

import pytest

from eventing.job.cache.cache import CacheAsk, CacheKind, CacheStatus, CacheUse
from eventing.job.job import Job, JobError, JobRequest, JobState
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.plan import Plan, StepStatus
from eventing.job.step import AdvanceStatus, BeginStatus, StepEnd, StepRun
from eventing.job.store import AcquireStatus, Ending, NewJob, Publication, TokenBatch
from eventing.job.stream import EntryKind
from tests.contract.rig import ANSWER, FAULT, Rig, dead, ids_of, job_id, new_job, redrive, started

PLAN = parse_pipelines({"m": {"steps": [{"step": "a", "settings": {"k": [1, {}]}}, "b"]}})["m"]
DONE = StepEnd(status=StepStatus.COMPLETED, next_step="b")
LAST = StepEnd(status=StepStatus.COMPLETED)


def planned(event_id: str = "1", *, deadline_ms: int = 0, plan: Plan = PLAN) -> NewJob:
    return replace(new_job(event_id, deadline_ms=deadline_ms), plan=plan)


def edited(text: str) -> JobRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return JobRequest(url="/v1/chat/completions", body=body, custom_id="1")


async def job_of(rig: Rig) -> Job:
    job = await rig.store.get(job_id())
    assert job is not None
    return job


async def begun(rig: Rig, step: str = "a") -> StepRun:
    """A run of a step that has begun."""
    answer = await rig.store.begin_step(job_id(), step)
    assert (answer.status, answer.job is not None) == (BeginStatus.BEGUN, True)
    return StepRun.of(answer.job or await job_of(rig), step)


async def prepared(rig: Rig, request: JobRequest | None = None) -> None:
    """Both steps are done."""
    await rig.store.submit(planned())
    await rig.store.advance(await begun(rig, "a"), DONE)
    await rig.store.advance(await begun(rig, "b"), replace(LAST, prepared=request))


def statuses(job: Job) -> list[tuple[str, StepStatus]]:
    return [(each.step, each.status) for each in job.steps]


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


class TestEnd:
    async def test_a_step_that_answers_ends_the_job_without_its_predictor(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        tokens = (
            TokenBatch(index=0, token_ids=(7, 8), delta='["be"]'),
            TokenBatch(index=2, token_ids=(9,), delta='["cause"]'),
        )
        end = replace(LAST, detail={"hit": True}, ending=ANSWER, tokens=tokens)

        answer = await rig.store.advance(await begun(rig), end)

        assert answer is AdvanceStatus.OK
        job = await job_of(rig)
        assert (job.state, job.result, job.usage) == (
            JobState.COMPLETED,
            ANSWER.result,
            ANSWER.usage,
        )
        assert (job.attempt, job.token_count, job.first_token_ms > 0) == (0, 3, True)
        assert statuses(job) == [("a", StepStatus.COMPLETED), ("b", StepStatus.NOT_RUN)]
        assert await ids_of(rig.store, job_id(), 9) == [7, 8, 9]
        kinds = [entry.kind for entry in await rig.store.read_stream(job_id())]
        assert kinds[-4:] == [
            EntryKind.ATTEMPT,
            EntryKind.TOKENS,
            EntryKind.TOKENS,
            EntryKind.STATE,
        ]
        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert taken.status is AcquireStatus.TERMINAL

    async def test_a_step_that_refuses_fails_the_job_for_good(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        error = JobError(code="content_filter", message="not this", field="messages")
        ending = Ending(state=JobState.FAILED, error=error)

        await rig.store.advance(await begun(rig), StepEnd(status=StepStatus.FAILED, ending=ending))

        job = await job_of(rig)
        assert (job.state, job.error, job.is_dead_letter) == (JobState.FAILED, error, False)
        assert statuses(job) == [("a", StepStatus.FAILED), ("b", StepStatus.NOT_RUN)]

    async def test_a_deadline_that_passes_between_steps_ends_the_job(self, rig: Rig) -> None:
        await rig.store.submit(planned(deadline_ms=await rig.now_ms() + 1000))
        await rig.store.advance(await begun(rig), DONE)
        await rig.pass_time(1001)

        assert await rig.store.expire(5) == [job_id()]
        assert statuses(await job_of(rig)) == [
            ("a", StepStatus.COMPLETED),
            ("b", StepStatus.NOT_RUN),
        ]


async def dead_at_b(rig: Rig) -> None:
    """A dead letter whose second step could not be run."""
    await rig.store.submit(planned())
    await rig.store.advance(await begun(rig, "a"), replace(DONE, prepared=edited("more")))
    ending = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
    end = StepEnd(status=StepStatus.FAILED, ending=ending)
    await rig.store.advance(await begun(rig, "b"), end)


class TestRedrive:
    async def test_a_redriven_job_goes_on_at_the_step_that_failed(self, rig: Rig) -> None:
        await dead_at_b(rig)

        assert await redrive(rig)

        job = await job_of(rig)
        assert (job.step, job.to_run) == ("b", edited("more"))
        assert statuses(job) == [("a", StepStatus.COMPLETED), ("b", StepStatus.QUEUED)]
        again = await rig.store.begin_step(job_id(), "b")
        assert (again.status, again.number, again.is_suspect) == (BeginStatus.BEGUN, 1, False)

    async def test_a_run_of_the_life_before_a_redrive_is_fenced(self, rig: Rig) -> None:
        await dead_at_b(rig)
        late = StepRun.of(await job_of(rig), "b")
        await redrive(rig)

        assert await rig.store.advance(late, LAST) is AdvanceStatus.FENCED
        assert (await job_of(rig)).step == "b"

    async def test_an_edited_request_starts_at_the_first_step(self, rig: Rig) -> None:
        await dead_at_b(rig)
        job = await job_of(rig)

        assert await rig.store.redrive(job, edited("other"), plan=PLAN)

        job = await job_of(rig)
        assert (job.step, job.prepared, job.to_run) == ("a", None, edited("other"))
        assert statuses(job) == [("a", StepStatus.QUEUED), ("b", StepStatus.QUEUED)]

    async def test_an_edited_request_of_a_model_without_steps_has_no_plan(self, rig: Rig) -> None:
        await dead_at_b(rig)

        assert await redrive(rig, request=edited("other"))

        job = await job_of(rig)
        assert (job.plan, job.step, job.steps) == (None, "", ())

    async def test_a_job_that_failed_in_its_predictor_keeps_its_steps(self, rig: Rig) -> None:
        await prepared(rig, edited("more"))
        for _ in range(3):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            await rig.store.release(taken.lease, "failure", FAULT)  # type: ignore[arg-type]

        assert await redrive(rig)

        job = await job_of(rig)
        assert (job.step, job.to_run) == ("", edited("more"))
        assert statuses(job) == [("a", StepStatus.COMPLETED), ("b", StepStatus.COMPLETED)]

    async def test_a_job_without_steps_is_redriven_as_before(self, rig: Rig) -> None:
        await dead(rig)

        assert await redrive(rig)
        assert (await job_of(rig)).steps == ()

    async def test_an_answer_after_tokens_of_an_earlier_life_starts_over(self, rig: Rig) -> None:
        await prepared(rig)
        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        await rig.store.append_all([(taken.lease, TokenBatch(index=0, token_ids=(1, 2)))])
        late = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
        await rig.store.finish(taken.lease, late)
        await rig.store.redrive(await job_of(rig), edited("other"), plan=PLAN)
        tokens = (TokenBatch(index=0, token_ids=(5,)),)

        await rig.store.advance(await begun(rig), replace(LAST, ending=ANSWER, tokens=tokens))

        assert await ids_of(rig.store, job_id(), 9) == [5]
        assert (await job_of(rig)).token_count == 1


class TestPlanNothing:
    async def test_a_job_from_before_its_model_had_steps_goes_to_its_predictor(
        self, rig: Rig
    ) -> None:
        await rig.store.submit(new_job())

        assert await rig.store.plan_nothing(job_id())

        job = await job_of(rig)
        assert (job.plan, job.steps) == (Plan(steps=()), ())
        taken = await rig.store.acquire(job_id(), "worker", can_resume=True, expected=new_job())
        assert taken.status is AcquireStatus.ACQUIRED

    async def test_a_planned_or_an_ended_job_keeps_its_plan(self, rig: Rig) -> None:
        await rig.store.submit(planned())
        await rig.store.finish(await started(rig, "2"), ANSWER)

        assert not await rig.store.plan_nothing(job_id())
        assert not await rig.store.plan_nothing(job_id("2"))
        assert not await rig.store.plan_nothing(job_id("3"))
        assert (await job_of(rig)).plan == PLAN


class TestAnotherJobsAnswer:
    async def test_a_step_that_gives_another_jobs_answer_says_whose_it_is(self, rig: Rig) -> None:
        use = CacheUse(
            status=CacheStatus.HIT,
            kind=CacheKind.SEMANTIC,
            key="semantic_0",
            source_job="job_of_another",
            similarity=0.97,
            saved_usage={"completion_tokens": 7},
        )
        await rig.store.submit(planned())
        result = {"id": "chatcmpl-other", "created": 1, "choices": []}
        ending = Ending(
            state=JobState.COMPLETED, result=result, usage={"total_tokens": 0}, cache=use
        )
        end = StepEnd(status=StepStatus.COMPLETED, ending=ending)

        assert await rig.store.advance(await begun(rig), end) is AdvanceStatus.OK

        job = await job_of(rig)
        assert job.cache == use
        assert job.result is not None
        assert job.result["id"] == f"chatcmpl-{job.id.removeprefix('job_')}"

    async def test_the_exact_cache_does_not_keep_it_for_the_same_request(self, rig: Rig) -> None:
        ask = CacheAsk(key="cache_1")
        await rig.store.submit(replace(planned(), cache=ask))
        use = CacheUse(status=CacheStatus.HIT, kind=CacheKind.SEMANTIC, source_job="job_other")
        ending = Ending(state=JobState.COMPLETED, result={}, cache=use)
        await rig.store.advance(
            await begun(rig), StepEnd(status=StepStatus.COMPLETED, ending=ending)
        )

        again, _ = await rig.store.submit(replace(planned("2"), cache=ask))

        assert again.state is JobState.QUEUED
        assert again.cache is not None
        assert again.cache.status is CacheStatus.MISS

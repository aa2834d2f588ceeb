"""How jobs end in their steps, and go on at them after a redrive."""

from dataclasses import replace

from eventing.job.cache.cache import CacheAsk, CacheKind, CacheStatus, CacheUse
from eventing.job.job import JobError, JobState
from eventing.job.plan import Plan, StepStatus
from eventing.job.step import AdvanceStatus, BeginStatus, StepEnd, StepRun
from eventing.job.store import AcquireStatus, Ending, TokenBatch
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
from tests.contract.rig import ANSWER, FAULT, Rig, dead, ids_of, job_id, new_job, redrive, started


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

"""Steps after the predictor: what becomes of an answer that they judge, and what a late or a double write changes."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from eventing.job.job import Job, JobError, JobRequest, JobState
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.plan import Hold, Plan, StepStatus
from eventing.job.step import AdvanceStatus, BeginStatus, StepEnd, StepRun, Verdict
from eventing.job.store import (
    AcquireStatus,
    Ending,
    Lease,
    LeaseStatus,
    NewJob,
    ReleaseReason,
    TokenBatch,
)
from eventing.job.stream import EntryKind
from tests.contract.rig import FAULT, Rig, append, ids_of, job_id, new_job, redrive

BLOCK = {"step": "validate-output", "settings": {"mode": "block"}}
PLAN = parse_pipelines({"m": {"steps": [BLOCK, "ground"]}})["m"]
SCORED = parse_pipelines({"m": {"steps": ["validate-output"]}})["m"]
ONE = parse_pipelines({"m": {"steps": [BLOCK]}})["m"]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
DONE = StepEnd(status=StepStatus.COMPLETED)
PASSED = replace(DONE, verdict=Verdict.ACCEPT)
WITHHELD = replace(DONE, verdict=Verdict.WITHHOLD, withheld="content_filter")
AGAIN = replace(DONE, verdict=Verdict.AGAIN, discarded_model="m")


def answer(text: str = "secret", state: JobState = JobState.COMPLETED) -> Ending:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    choice |= {"finish_reason": "stop"}
    body: dict[str, Any] = {"id": "chatcmpl-1", "model": "m", "choices": [choice], "usage": USAGE}
    batch = TokenBatch(index=2, token_ids=(3,), delta=f'[{{"text":"{text}"}}]')
    return Ending(state=state, result=body, usage=USAGE, final_batch=batch, gpu_ms=7)


async def leased(rig: Rig, plan: Plan = PLAN, *, deadline_ms: int = 0) -> Lease:
    new: NewJob = replace(new_job(deadline_ms=deadline_ms), plan=plan)
    await rig.store.submit(new)
    return await lease_again(rig)


async def lease_again(rig: Rig) -> Lease:
    taken = await rig.store.acquire(job_id(), "worker-1", can_resume=True)
    assert taken.status is AcquireStatus.ACQUIRED
    await append(rig.store, taken.lease, TokenBatch(index=0, token_ids=(1, 2), delta='["secret"]'))
    return taken.lease


async def validating(rig: Rig, plan: Plan = PLAN, *, deadline_ms: int = 0) -> Lease:
    lease = await leased(rig, plan, deadline_ms=deadline_ms)
    assert await rig.store.finish(lease, answer()) is LeaseStatus.VALIDATING
    return lease


async def job_of(rig: Rig) -> Job:
    job = await rig.store.get(job_id())
    assert job is not None
    return job


async def begun(rig: Rig, step: str = "validate-output") -> StepRun:
    given = await rig.store.begin_step(job_id(), step)
    assert (given.status, given.job is not None) == (BeginStatus.BEGUN, True)
    return StepRun.of(given.job or await job_of(rig), step)


async def advanced(rig: Rig, end: StepEnd, step: str = "validate-output") -> AdvanceStatus:
    return await rig.store.advance(await begun(rig, step), end)


async def written(rig: Rig) -> str:
    """Everything that the job's stream holds."""
    return repr(await rig.store.read_stream(job_id()))


class TestKept:
    async def test_an_answer_that_steps_judge_ends_no_job_and_is_no_result(self, rig: Rig) -> None:
        lease = await validating(rig)

        job = await job_of(rig)
        assert (job.state, job.step, job.result) == (JobState.IN_PROGRESS, "validate-output", None)
        assert (job.is_validating, job.hold, job.lease_until_ms) == (True, Hold.WHOLE, 0)
        assert job.candidate == answer().result
        assert (job.usage, job.gpu_ms, job.token_count) == (USAGE, 7, 3)
        assert [each.outcome for each in job.history] == ["completed"]
        newest = (await rig.store.read_stream(job_id()))[-1]
        assert (newest.state, newest.phase) == (JobState.IN_PROGRESS, "validating")
        assert await rig.store.renew([lease], extend=True) == [LeaseStatus.FENCED]

    async def test_a_plan_that_only_scores_keeps_the_answer_too(self, rig: Rig) -> None:
        await validating(rig, SCORED)

        job = await job_of(rig)
        assert (job.result, job.hold, job.is_validating) == (None, Hold.NONE, True)

    async def test_a_failed_attempt_is_judged_by_no_step(self, rig: Rig) -> None:
        lease = await leased(rig)

        failed = Ending(state=JobState.FAILED, error=JobError(code="x", message="no"))
        assert await rig.store.finish(lease, failed) is LeaseStatus.OK

        assert (await job_of(rig)).state is JobState.FAILED

    async def test_late_writes_of_the_attempt_change_nothing(self, rig: Rig) -> None:
        lease = await validating(rig)

        assert await rig.store.finish(lease, answer("other")) is LeaseStatus.FENCED
        late = TokenBatch(index=3, token_ids=(9,))
        assert await append(rig.store, lease, late) is LeaseStatus.FENCED
        assert not await rig.store.release(lease, ReleaseReason.LOST, FAULT)
        assert (await job_of(rig)).candidate == answer().result

    async def test_a_double_delivery_to_the_predictor_starts_nothing(self, rig: Rig) -> None:
        await validating(rig)

        again = await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert again.status is AcquireStatus.UNPREPARED

    async def test_a_result_or_a_dead_letter_of_the_attempt_does_not_end_the_job(
        self, rig: Rig
    ) -> None:
        await validating(rig)

        assert await rig.store.conclude(job_id(), answer("other")) is LeaseStatus.FENCED
        dead = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
        assert await rig.store.conclude(job_id(), dead) is LeaseStatus.FENCED
        assert (await job_of(rig)).candidate == answer().result

    async def test_the_result_of_a_predictor_without_this_store_is_judged_too(
        self, rig: Rig
    ) -> None:
        await rig.store.submit(replace(new_job(), plan=PLAN))

        ending = replace(answer(), final_batch=None)
        assert await rig.store.conclude(job_id(), ending, attempt=1) is LeaseStatus.VALIDATING

        job = await job_of(rig)
        assert (job.step, job.result, job.attempt) == ("validate-output", None, 1)

    async def test_it_is_published_again_when_its_event_is_lost(self, rig: Rig) -> None:
        await validating(rig)

        await rig.pass_time(3_600_000)

        assert await rig.store.claim_unstarted(10) == [job_id()]


class TestEnd:
    async def test_the_last_step_ends_the_job_with_the_answer(self, rig: Rig) -> None:
        await validating(rig)
        await advanced(rig, replace(DONE, next_step="ground"))
        assert (await job_of(rig)).result is None

        assert await advanced(rig, PASSED, "ground") is AdvanceStatus.OK

        job = await job_of(rig)
        assert (job.state, job.result) == (JobState.COMPLETED, answer().result)
        assert (job.candidate, job.usage, job.hold) == (None, USAGE, Hold.NONE)
        newest = (await rig.store.read_stream(job_id()))[-1]
        assert (newest.state, newest.shown) == (JobState.COMPLETED, 3)
        assert await ids_of(rig.store, job_id(), 9) == [1, 2, 3]

    async def test_an_answer_that_was_cut_off_ends_incomplete(self, rig: Rig) -> None:
        lease = await leased(rig, ONE)
        await rig.store.finish(lease, answer(state=JobState.INCOMPLETE))

        await advanced(rig, PASSED)

        assert (await job_of(rig)).state is JobState.INCOMPLETE

    async def test_a_second_end_of_a_step_changes_nothing(self, rig: Rig) -> None:
        await validating(rig, ONE)
        run = await begun(rig)

        assert await rig.store.advance(run, WITHHELD) is AdvanceStatus.OK
        assert await rig.store.advance(run, PASSED) is AdvanceStatus.TERMINAL
        assert (await rig.store.begin_step(job_id(), "validate-output")).status is (
            BeginStatus.TERMINAL
        )
        assert "secret" not in repr(await job_of(rig))

    async def test_a_step_may_change_the_answer(self, rig: Rig) -> None:
        await validating(rig)
        other = {"choices": [{"index": 0, "message": {"content": "***"}}]}
        tokens = (TokenBatch(index=0, token_ids=(), delta='["***"]'),)

        await advanced(rig, replace(DONE, next_step="ground", result=other, tokens=tokens))
        assert (await job_of(rig)).candidate == other
        await advanced(rig, PASSED, "ground")

        job = await job_of(rig)
        assert (job.result, "secret" in await written(rig)) == (other, False)
        assert "***" in await written(rig)


class TestWithheld:
    async def test_nothing_of_a_withheld_answer_is_left(self, rig: Rig) -> None:
        await validating(rig)

        assert await advanced(rig, WITHHELD) is AdvanceStatus.OK

        job = await job_of(rig)
        assert (job.state, job.incomplete_reason) == (JobState.INCOMPLETE, "content_filter")
        assert job.result is not None
        (choice,) = job.result["choices"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("content_filter", "")
        assert (job.usage, job.candidate) == (USAGE, None)
        assert "secret" not in repr(job) + await written(rig)

    async def test_a_predictor_that_withholds_leaves_nothing_either(self, rig: Rig) -> None:
        lease = await leased(rig)

        ending = replace(answer(), state=JobState.INCOMPLETE, incomplete="content_filter")
        assert await rig.store.finish(lease, ending) is LeaseStatus.OK

        job = await job_of(rig)
        assert (job.state, job.incomplete_reason) == (JobState.INCOMPLETE, "content_filter")
        assert "secret" not in repr(job) + await written(rig)

    @pytest.mark.parametrize("way", ["sweep", "step"])
    async def test_without_a_judge_until_the_deadline_it_is_withheld(
        self, rig: Rig, way: str
    ) -> None:
        await validating(rig, deadline_ms=await rig.now_ms() + 60_000)
        await rig.pass_time(61_000)

        if way == "sweep":
            assert await rig.store.expire(10) == [job_id()]
        else:
            late = await rig.store.begin_step(job_id(), "validate-output")
            assert late.status is BeginStatus.EXPIRED

        job = await job_of(rig)
        assert (job.state, job.incomplete_reason) == (
            JobState.INCOMPLETE,
            "content_filter_unavailable",
        )
        assert (job.is_dead_letter, "secret" in repr(job) + await written(rig)) == (False, False)

    async def test_what_is_only_scored_ends_at_the_deadline_with_its_answer(self, rig: Rig) -> None:
        await validating(rig, SCORED, deadline_ms=await rig.now_ms() + 60_000)
        await rig.pass_time(61_000)

        await rig.store.expire(10)

        job = await job_of(rig)
        assert (job.state, job.result) == (JobState.COMPLETED, answer().result)
        assert [each.status for each in job.steps] == [StepStatus.NOT_RUN]

    async def test_a_cancelled_answer_is_deleted(self, rig: Rig) -> None:
        await validating(rig)

        await rig.store.cancel(job_id())

        job = await job_of(rig)
        assert (job.state, job.result) == (JobState.CANCELLED, None)
        assert "secret" not in repr(job) + await written(rig)
        assert [each.outcome for each in job.history] == ["completed"]

    async def test_a_refused_answer_is_deleted(self, rig: Rig) -> None:
        await validating(rig)

        ending = Ending(state=JobState.FAILED, error=JobError(code="x", message="no"))
        await advanced(rig, StepEnd(status=StepStatus.FAILED, ending=ending))

        job = await job_of(rig)
        assert (job.state, job.candidate) == (JobState.FAILED, None)
        assert "secret" not in await written(rig)


class TestAgain:
    async def test_the_predictor_answers_once_more_from_the_start(self, rig: Rig) -> None:
        await validating(rig)
        body = {"model": "large", "messages": [{"role": "user", "content": "better"}]}
        request = JobRequest(url="/v1/chat/completions", body=body, custom_id="1")

        assert await advanced(rig, replace(AGAIN, prepared=request)) is AdvanceStatus.OK

        job = await job_of(rig)
        assert (job.state, job.step, job.candidate) == (JobState.QUEUED, "", None)
        assert (job.to_run, [each.outcome for each in job.history]) == (request, ["rejected"])
        assert "secret" not in await written(rig)
        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        assert (taken.lease.attempt, taken.token_count) == (2, 0)
        entry = (await rig.store.read_stream(job_id()))[-1]
        assert (entry.kind, entry.is_restart) == (EntryKind.ATTEMPT, True)

    async def test_its_tokens_are_counted_with_those_of_the_answer(self, rig: Rig) -> None:
        await validating(rig, ONE)
        await advanced(rig, AGAIN)
        lease = await lease_again(rig)
        await rig.store.finish(lease, answer("good"))

        assert (await advanced(rig, PASSED)) is AdvanceStatus.OK

        job = await job_of(rig)
        twice = {name: 2 * count for name, count in USAGE.items()}
        own = {name: USAGE[name] for name in ("prompt_tokens", "completion_tokens")}
        beside = {"kind": "repaired", "model": "m", **own}
        assert (job.result, job.gpu_ms) == (answer("good").result, 14)
        assert job.usage == {**twice, "extra": [beside]}
        assert [each.outcome for each in job.history] == ["rejected", "completed"]

    async def test_each_answer_that_is_thrown_away_is_counted_by_why_and_of_which_model(
        self, rig: Rig
    ) -> None:
        await validating(rig, ONE)
        large = JobRequest(url="/v1/chat/completions", body={"model": "large"})
        for end in (AGAIN, AGAIN, replace(AGAIN, prepared=large)):
            await advanced(rig, end)
            await rig.store.finish(await lease_again(rig), answer())

        assert await advanced(rig, PASSED) is AdvanceStatus.OK

        usage = (await job_of(rig)).usage
        assert usage is not None
        spent = {
            (each["kind"], each["model"]): each["completion_tokens"] for each in usage["extra"]
        }
        one = USAGE["completion_tokens"]
        assert spent == {("repaired", "m"): 2 * one, ("cascaded", "m"): one}
        assert usage["completion_tokens"] == 4 * one

    async def test_a_job_that_is_cancelled_between_two_answers_has_used_the_first(
        self, rig: Rig
    ) -> None:
        await validating(rig, ONE)
        await advanced(rig, AGAIN)

        await rig.store.cancel(job_id())

        usage = (await job_of(rig)).usage
        assert usage is not None
        assert usage["total_tokens"] == USAGE["total_tokens"]
        assert [each["kind"] for each in usage["extra"]] == ["repaired"]

    async def test_it_costs_no_attempt_of_those_that_may_fail(self, rig: Rig) -> None:
        await validating(rig, ONE)
        for _ in range(4):
            await advanced(rig, AGAIN)
            await rig.store.finish(await lease_again(rig), answer())

        assert await advanced(rig, PASSED) is AdvanceStatus.OK

    async def test_a_run_of_the_first_answer_can_not_judge_the_second(self, rig: Rig) -> None:
        await validating(rig, ONE)
        late = await begun(rig)
        await rig.store.advance(late, AGAIN)
        await rig.store.finish(await lease_again(rig), answer("second"))

        assert await rig.store.advance(late, PASSED) is AdvanceStatus.FENCED
        assert (await job_of(rig)).is_validating


class TestDeadLetter:
    async def test_a_redrive_goes_on_with_the_answer_at_the_step_that_failed(
        self, rig: Rig
    ) -> None:
        await validating(rig)
        ending = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
        await advanced(rig, StepEnd(status=StepStatus.FAILED, ending=ending))
        failed = await job_of(rig)
        assert (failed.state, failed.result, failed.hold) == (JobState.FAILED, None, Hold.WHOLE)

        assert await redrive(rig)

        job = await job_of(rig)
        assert (job.is_validating, job.step, job.usage) == (True, "validate-output", USAGE)
        assert await advanced(rig, replace(DONE, next_step="ground")) is AdvanceStatus.OK
        assert await advanced(rig, PASSED, "ground") is AdvanceStatus.OK
        assert (await job_of(rig)).result == answer().result

    async def test_a_run_that_fails_waits_for_its_next_try(self, rig: Rig) -> None:
        await validating(rig)

        await rig.store.give_up_run(await begun(rig))

        assert (await job_of(rig)).steps[0].status is StepStatus.QUEUED
        again = await rig.store.begin_step(job_id(), "validate-output")
        assert (again.status, again.number, again.is_suspect) == (BeginStatus.BEGUN, 2, False)


async def test_an_append_says_how_much_of_a_held_text_may_be_shown(rig: Rig) -> None:
    window = parse_pipelines(
        {"m": {"steps": [{**BLOCK, "settings": {"mode": "block", "hold": "window"}}]}}
    )["m"]
    await rig.store.submit(replace(new_job(), plan=window))
    taken = await rig.store.acquire(job_id(), "worker-1", can_resume=True)
    assert taken.hold is Hold.WINDOW

    batch = TokenBatch(index=0, token_ids=(1, 2), delta="[]", shown=1)
    await append(rig.store, taken.lease, batch)

    newest = (await rig.store.read_stream(job_id()))[-1]
    assert (newest.index, newest.token_ids, newest.shown) == (0, (1, 2), 1)
    assert orjson.loads(newest.delta) == []

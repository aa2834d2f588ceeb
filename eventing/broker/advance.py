"""Moves jobs from one step to the next, or ends them there: what is stored, and the event that follows.

Called by the steps process with the outcome of a handler, and by the broker for a step whose tries are used up. Must
not know HTTP.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from eventing.broker.intake import Route
from eventing.cloudevent.job_event import request_event
from eventing.job.job import API_SOURCE, Job, JobError, JobRequest, JobState
from eventing.job.moderation.withheld import shown_anew
from eventing.job.pipelines.fallback import NO_FALLBACKS, Fallbacks, fallback_word
from eventing.job.plan import TOOLS_STEP, OnFailure, Plan, StepStatus
from eventing.job.step import AdvanceStatus, StepEnd, StepRun, StepStore, Verdict
from eventing.job.store import Ending, Publication, TokenBatch

UNAVAILABLE: Final[Mapping[str, Any]] = {"reason": "unavailable"}
"""The detail of a step that was skipped because its tries were used up, or its time."""


class Advance:
    """Ends runs of steps. Store and route belong to the caller."""

    def __init__(self, store: StepStore, route: Route, fallbacks: Fallbacks = NO_FALLBACKS) -> None:
        self._store = store
        self._route = route
        self._fallbacks = fallbacks

    async def go_on(
        self,
        job: Job,
        run: StepRun,
        status: StepStatus,
        detail: Mapping[str, Any],
        prepared: JobRequest | None = None,
        result: Mapping[str, Any] | None = None,
        tool_list: str = "",
    ) -> AdvanceStatus:
        """The job goes on to what its plan has after the step, with another `result` if the step changed it; after the
        last step it ends with its answer. Raises `BadRequest` when no trigger takes it, or its event is too large for
        the broker.
        """
        assert job.plan is not None  # noqa: S101 (it has a run of a step of it)
        next_step = job.plan.next_after(run.step)
        if not next_step and job.turns and not job.is_validating:
            next_step = TOOLS_STEP  # it takes a turn over: its calls run before its model is asked
        end = StepEnd(
            status=status,
            detail=detail,
            next_step=next_step,
            prepared=prepared,
            tool_list=tool_list,
        )
        if result is not None:
            end = replace(end, result=result, tokens=shown_anew(job, result))
        if job.is_validating and not next_step:
            return await self._store.advance(run, replace(end, verdict=Verdict.ACCEPT))
        return await self._send(job, run, end)

    async def again(
        self, job: Job, run: StepRun, detail: Mapping[str, Any], request: JobRequest
    ) -> AdvanceStatus:
        """The predictor of the request's model answers once more. Raises as `go_on`."""
        prepared = request if request != job.to_run else None
        end = StepEnd(
            status=StepStatus.COMPLETED,
            detail=detail,
            prepared=prepared,
            verdict=Verdict.AGAIN,
            discarded_model=job.to_run.model,
        )
        return await self._send(job, run, end)

    async def withhold(self, run: StepRun, detail: Mapping[str, Any], reason: str) -> AdvanceStatus:
        """The job ends incomplete, and its answer is deleted."""
        end = StepEnd(
            status=StepStatus.COMPLETED, detail=detail, verdict=Verdict.WITHHOLD, withheld=reason
        )
        return await self._store.advance(run, end)

    async def _send(self, job: Job, run: StepRun, end: StepEnd) -> AdvanceStatus:
        """Store the end of the run with the event of what is next."""
        event = request_event(
            replace(job, step=end.next_step, prepared=end.prepared or job.prepared)
        )
        publication = self._route.publication(event)
        if not end.next_step:
            publication = self._with_fallback(publication, job, end.prepared or job.to_run)
        answer = await self._store.advance(run, end, publication)
        if answer is AdvanceStatus.OK:
            self._route.recorded(job.id, event)
        return answer

    def _with_fallback(
        self, publication: Publication, job: Job, request: JobRequest
    ) -> Publication:
        """The publication of a job that goes to its predictor, with what stands in for that."""
        word = fallback_word(self._fallbacks, request.model, job.tenant, job.fallback, job.metadata)
        return replace(publication, fallback=word) if word or job.fallback else publication

    async def answer(
        self,
        run: StepRun,
        detail: Mapping[str, Any],
        ending: Ending,
        tokens: tuple[TokenBatch, ...] = (),
    ) -> AdvanceStatus:
        """The job ends completed, without its predictor."""
        end = StepEnd(status=StepStatus.COMPLETED, detail=detail, ending=ending, tokens=tokens)
        return await self._store.advance(run, end)

    async def refuse(
        self, job: Job, run: StepRun, detail: Mapping[str, Any], error: JobError
    ) -> AdvanceStatus:
        """The job ends failed. For a job of our api the caller gets the error; another producer's event becomes a
        dead letter for the operator.
        """
        is_dead = job.source != API_SOURCE
        ending = Ending(state=JobState.FAILED, error=error, is_dead_letter=is_dead)
        end = StepEnd(status=StepStatus.FAILED, detail=detail, ending=ending)
        return await self._store.advance(run, end)

    async def exhausted(self, job: Job, step: str, reason: str) -> AdvanceStatus:
        """The tries of a step are used up: it is skipped where its plan allows that; else the job fails as a dead
        letter, and a redrive goes on at this step.
        """
        planned = job.plan.step(step) if job.plan else None
        if planned is None or job.step != step:
            return AdvanceStatus.DONE
        run = StepRun.of(job, step)
        if planned.on_failure is OnFailure.CONTINUE:
            return await self.go_on(job, run, StepStatus.SKIPPED, UNAVAILABLE)
        error = JobError(code="undeliverable", message=f"step {step}: {reason}")
        return await self.set_aside(run, UNAVAILABLE, error)

    async def set_aside(
        self, run: StepRun, detail: Mapping[str, Any], error: JobError
    ) -> AdvanceStatus:
        """The job fails as a dead letter, which an operator redrives once its cause is gone."""
        ending = Ending(state=JobState.FAILED, error=error, is_dead_letter=True)
        end = StepEnd(status=StepStatus.FAILED, detail=detail, ending=ending)
        return await self._store.advance(run, end)

    async def plan_nothing(self, job: Job) -> bool:
        """Send a job that was recorded before its model had a plan to its predictor; False when it has one, or has
        ended.
        """
        event = request_event(replace(job, plan=Plan(steps=())))
        publication = self._with_fallback(self._route.publication(event), job, job.to_run)
        is_sent = await self._store.plan_nothing(job.id, publication)
        if is_sent:
            self._route.recorded(job.id, event)
        return is_sent

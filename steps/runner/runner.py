"""One delivery of a step: begin, run its handler, store the outcome.

Called by the routes of `steps.server`. Nothing that a handler did is kept but its outcome, which one script stores
together with what follows, so a process may die anywhere in here: the broker delivers the event again. A second
delivery of a step that is done changes nothing and sends its job's event again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from eventing.broker.advance import Advance
from eventing.broker.intake import Intake
from eventing.broker.tool_calls import ToolCalls
from eventing.clock import Clock
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import STEP, job_id_of, job_of, request_event, unreadable_job
from eventing.errors import BadRequest, IdempotencyConflict, NotFound, Unavailable
from eventing.job.job import API_SOURCE, Job, JobError, JobId, JobState
from eventing.job.passage import Passage, passages_of
from eventing.job.plan import Hold, OnFailure, PlannedStep, StepStatus
from eventing.job.step import AdvanceStatus, BeginStatus, StepRun, StepStore
from eventing.job.store import Ending
from eventing.job.tools.call import Turn
from eventing.store.vector_store.query import RETRIEVE_STEP
from eventing.telemetry import trace
from eventing.telemetry.metric.series import labelled
from steps.handler import (
    Again,
    Answer,
    CommitTurn,
    Continue,
    Handler,
    QueueCalls,
    Refuse,
    SetAside,
    Skip,
    StepCall,
    StepOutcome,
    Withhold,
)
from steps.runner import metrics
from steps.runner.outcome import (
    OUTCOME_NAMES,
    RunFailed,
    check_place,
    checked_detail,
    fitting,
    goes_on,
)
from steps.runner.room import Room

_log = structlog.get_logger()
_PATIENCE_S: Final = 10.0
_PAUSE_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerDeps:
    """The dependencies of a runner."""

    store: StepStore
    intake: Intake
    advance: Advance
    publish_again: Callable[[Event], Awaitable[None]]
    handlers: Mapping[str, Handler]
    clock: Clock
    tool_calls: ToolCalls | None = None  #: None where no step commits turns


class Runner:
    """Runs steps, any number concurrently."""

    def __init__(self, deps: RunnerDeps) -> None:
        self._deps = deps
        self._running: dict[tuple[JobId, str], asyncio.Task[bool]] = {}
        self.room = Room()
        metrics.IN_FLIGHT.set_function(lambda: self.room.in_flight)

    async def run(self, event: Event) -> bool:
        """Run the step that the event names. True when the job has gone on to what is next; False when it has ended,
        or may have. Raises `NotFound` for a step that this process does not have, `RunFailed`, and `Unavailable`,
        which costs no try.
        """
        step, job_id = event.extensions.get(STEP, ""), job_id_of(event)
        if step not in self._deps.handlers:
            raise NotFound(f"no step {step!r:.60} here")
        # Deliveries of one event may overlap: a broker sends it again when it has lost sight of the first.
        key = (job_id, step)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.ensure_future(self._run(job_id, step))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def plan(self, event: Event) -> None:
        """Make the plan of a job that another producer asked for through a broker that is not ours, and send it to
        its first step; a job that was recorded before goes to where it is. Raises `Unavailable`.
        """
        try:
            job = await self._recorded(event)
        except IdempotencyConflict:
            return  # the identity belongs to another request's job
        except BadRequest as error:
            if event.source != API_SOURCE:
                reason = JobError(code=error.code, message=error.message, field=error.field)
                await self._deps.store.reject(unreadable_job(event), reason, event.data)
            return
        if job is not None and not (
            job.plan is None and await self._deps.advance.plan_nothing(job)
        ):
            await self._publish_again(job)

    async def drain(self, grace_s: float) -> None:
        """Begin nothing more; runs that do not end within the grace are given up."""
        self.room.close()
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=grace_s)
        left = list(self._running.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _recorded(self, event: Event) -> Job | None:
        """The job of a request event if it was recorded before; None for one that is recorded here, or that claims
        to be our api's without a record.
        """
        new = job_of(event)
        if new.source == API_SOURCE:
            return await self._deps.store.get(new.id, with_result=False)
        job, is_new = await self._deps.intake.submit(new, event)
        return None if is_new else job

    async def _publish_again(self, job: Job) -> None:
        """Send a waiting job's event again: the one before may be lost where an external broker has it."""
        if job.state is JobState.QUEUED or job.is_validating:
            await self._deps.publish_again(request_event(job))

    async def _run(self, job_id: JobId, step: str) -> bool:
        async with self.room.shared():
            begun = await self._deps.store.begin_step(job_id, step)
            job = begun.job
            planned = job.plan.step(step) if job and job.plan else None
            # As in the predictor: a server that a failover cut off has not the newest jobs.
            if begun.status is BeginStatus.MISSING and not await self._deps.store.is_gone(job_id):
                raise Unavailable("the store has moved")
            if begun.status is BeginStatus.DONE and job is not None:
                await self._publish_again(job)
            if begun.status is not BeginStatus.BEGUN or job is None or planned is None:
                _log.info("nothing to run", action="step", job_id=job_id, reason=begun.status)
                return False
            _note_wait(job, step, begun.number)
            if not begun.is_suspect:
                return await self._attempt(job, planned, begun.number)
            _log.warning("runs alone", action="step", job_id=job_id, step=step, run=begun.number)
            async with self.room.alone():
                return await self._attempt(job, planned, begun.number)

    async def _attempt(self, job: Job, planned: PlannedStep, number: int) -> bool:
        """One run of the handler, and what follows; whether the job goes on. A run that failed is given up, unless its
        step may be skipped.
        """
        run, loop = StepRun.of(job, planned.name), asyncio.get_running_loop()
        started_s, word = loop.time(), "failed"
        with trace.span("step", step=run.step, job_id=job.id, number=number) as span:
            try:
                outcome = await self._outcome(job, planned, number)
                word = OUTCOME_NAMES[type(outcome)]
                return await self._until_stored(lambda: self._store(job, run, outcome))
            except asyncio.CancelledError:
                await self._give_up(run)
                raise Unavailable("this process shuts down") from None
            except SetAside as error:
                word = error.code
                return await self._set_aside(run, error)
            except Unavailable:
                word = "unavailable"
                await self._give_up(run)
                raise
            except RunFailed:
                await self._give_up(run)
                raise
            finally:
                took_s = loop.time() - started_s
                span.set(outcome=word)
                labelled(metrics.RUNS, run.step, word).inc()
                labelled(metrics.RUN_SECONDS, run.step, word).observe(took_s)
                _log.info(
                    "step ran",
                    action="step",
                    job_id=job.id,
                    step=run.step,
                    run=number,
                    outcome=word,
                    duration_ms=int(took_s * 1000),
                )

    async def _outcome(self, job: Job, planned: PlannedStep, number: int) -> StepOutcome:
        """What the handler gave. Raises `Unavailable`, `SetAside` and `RunFailed` where the step may not be
        skipped.
        """
        call = StepCall(
            job=job,
            # Before the predictor, a turn that was taken over is no part of it: what is prepared goes before that.
            request=job.to_run if planned.is_after else job.prepared or job.request,
            settings=planned.settings,
            attempt=number,
            deadline_ms=job.deadline_ms,
            candidate=job.candidate if planned.is_after else None,
            passages=_passages(job) if planned.is_after else (),
        )
        may_skip = planned.on_failure is OnFailure.CONTINUE
        limit_s = self._limit_s(job, planned)
        try:
            async with asyncio.timeout(limit_s):
                outcome = await self._deps.handlers[planned.name](call)
            check_place(job, planned, outcome)
            return outcome
        except TimeoutError as error:
            if may_skip:
                return Skip(reason="timeout")
            raise RunFailed(f"the step took longer than {limit_s} s") from error
        except Unavailable:
            if may_skip:
                return Skip(reason="unavailable")
            raise
        except SetAside as error:
            _log.error("set aside", action="step", step=planned.name, reason=error.message)
            if may_skip or (job.is_validating and job.hold is Hold.NONE):
                return Skip(reason=error.code)  # readers have the answer already
            raise
        except Exception as error:
            # The last handler of a run: any error counts as a try, so that retries end.
            _log.error("step broke", action="step", step=planned.name, reason=type(error).__name__)
            if may_skip:
                return Skip(reason="failed")
            raise RunFailed("the step failed") from error

    def _limit_s(self, job: Job, planned: PlannedStep) -> float | None:
        """How long a run may take: its step's time, and never past the job's deadline."""
        limits_s = [planned.timeout_ms / 1000] if planned.timeout_ms else []
        if job.deadline_ms:
            limits_s.append(max(0.0, (job.deadline_ms - self._deps.clock.wall_ms()) / 1000))
        return min(limits_s, default=None)

    async def _store(self, job: Job, run: StepRun, outcome: StepOutcome) -> bool:
        """The outcome and what follows, in one script; whether the job goes on."""
        advance, detail = self._deps.advance, checked_detail(outcome.detail, run.step)
        match outcome:
            case Answer(result=result, usage=usage, tokens=tokens, cache=cache):
                ending = Ending(state=JobState.COMPLETED, result=result, usage=usage, cache=cache)
                await advance.answer(run, detail, ending, tokens)
            case Refuse(error=error):
                await advance.refuse(job, run, detail, error)
            case Skip(reason=reason):
                told = {"reason": reason, **detail}
                status = await advance.go_on(job, run, StepStatus.SKIPPED, told)
                return goes_on(job, run, status)
            case Withhold(reason=reason):
                await advance.withhold(run, detail, reason)
            case CommitTurn(turn=turn):
                return await self._commit(job, run, turn, detail)
            case QueueCalls():
                return await self._tool_calls.queue(job, run) is AdvanceStatus.OK
            case Continue() | Again():
                try:
                    return await self._go_on(job, run, outcome, detail)
                except BadRequest as error:
                    refusal = JobError(code=error.code, message=error.message, field=error.field)
                    await advance.refuse(job, run, detail, refusal)
        return False

    @property
    def _tool_calls(self) -> ToolCalls:
        if self._deps.tool_calls is None:
            raise Unavailable("this process commits no turns")
        return self._deps.tool_calls

    async def _commit(self, job: Job, run: StepRun, turn: Turn, detail: Mapping[str, Any]) -> bool:
        """The turn and its calls' events, in one script. A call that no trigger takes fails the job by name."""
        try:
            status = await self._tool_calls.commit(job, run, turn)
        except BadRequest as error:
            refusal = JobError(code=error.code, message=error.message, field=error.field)
            await self._deps.advance.refuse(job, run, detail, refusal)
            return False
        return status is AdvanceStatus.OK and not turn.ends

    async def _go_on(
        self, job: Job, run: StepRun, outcome: Continue | Again, detail: Mapping[str, Any]
    ) -> bool:
        """To the next step, to the predictor, or to the job's end, which is False. Raises `BadRequest`."""
        advance, request = self._deps.advance, fitting(outcome.request)
        if isinstance(outcome, Continue):
            if job.is_validating:
                request = None  # no predictor is asked any more
            status = await advance.go_on(
                job,
                run,
                StepStatus.COMPLETED,
                detail,
                request,
                result=outcome.result,
                tool_list=outcome.tool_list,
            )
            return goes_on(job, run, status)
        request = request or job.to_run
        if outcome.model is not None:
            request = replace(request, body={**request.body, "model": outcome.model})
        return await advance.again(job, run, detail, request) is AdvanceStatus.OK

    async def _until_stored(self, store: Callable[[], Awaitable[bool]]) -> bool:
        """Store the outcome, again while the store is away: the handler's work may have been expensive. Whether an
        earlier try was stored, the script knows.
        """
        give_up_s = asyncio.get_running_loop().time() + _PATIENCE_S
        while True:
            try:
                return await store()
            except Unavailable:
                if asyncio.get_running_loop().time() >= give_up_s:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def _set_aside(self, run: StepRun, error: SetAside) -> bool:
        """The job fails with what is missing: it is not waited for, since nothing but an operator brings it."""
        reason = JobError(code=error.code, message=f"step {run.step}: {error.message}")
        detail = {"reason": error.code}

        async def store() -> bool:
            await self._deps.advance.set_aside(run, detail, reason)
            return False

        return await self._until_stored(store)

    async def _give_up(self, run: StepRun) -> None:
        """The step waits again. With the store unavailable it stays in progress, and its next run is alone."""
        with suppress(Unavailable):
            await self._deps.store.give_up_run(run)


def _passages(job: Job) -> tuple[Passage, ...]:
    """What retrieval put into the prompt, as its step recorded it."""
    detail = next((each.detail for each in job.pipeline if each.step == RETRIEVE_STEP), {})
    return passages_of(detail.get("sources"))


def _note_wait(job: Job, step: str, number: int) -> None:
    """Measure how long the step waited for its first run."""
    if number != 1 or job.plan is None:
        return
    begun = {record.step: record for record in job.pipeline}
    if job.is_validating and step == job.plan.first_after:
        return  # its time began with the answer
    place = job.plan.names.index(step)
    before = begun.get(job.plan.names[place - 1]) if place else None
    next_ms = before.ended_ms if before else job.created_ms
    waited_s = max(0, begun[step].started_ms - next_ms) / 1000
    labelled(metrics.QUEUE_SECONDS, step).observe(waited_s)

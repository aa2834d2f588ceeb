"""Handles one delivery: from the HTTP message to the response that decides what the broker does.

Called by the event route of `predictor.server`. `Deliveries._run` has the steps in order; `answer_for` has the
response to each outcome (docs/adr/0015). No 2xx is sent before its outcome is stored; if the process dies in here,
the job's lease lapses and the next delivery continues. A caller that disconnects changes nothing: the next delivery
finds the result.
"""

import asyncio
import sys
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Final

import structlog

from eventing.clock import Clock
from eventing.cloudevent import job_event, request_id
from eventing.cloudevent.event import Event, parse_http
from eventing.cloudevent.result_event import DATAREF_ABOVE_BYTES
from eventing.errors import (
    BadRequest,
    JobDeleted,
    StoreUnavailable,
    Unavailable,
)
from eventing.job.call.usage import TIMES
from eventing.job.job import Job
from eventing.job.plan import Hold
from eventing.job.store import Acquired, AcquireStatus, JobWorker, NewJob, ReleaseReason
from eventing.store.job_record.parse import fresh
from eventing.telemetry import trace
from eventing.telemetry.log import log_context
from eventing.telemetry.metric.ledger import GpuAccount
from eventing.telemetry.metric.series import labelled
from eventing.telemetry.span import Span, followable
from predictor import metrics
from predictor.delivery.admission import Admission, Slot, sequences
from predictor.delivery.answer import (
    DeliveryResponse,
    Ended,
    Held,
    Ignored,
    Malformed,
    Outcome,
    Refused,
    Rejected,
    Validating,
    answer_for,
)
from predictor.delivery.lease import LeaseKeeper
from predictor.delivery.leased import Leased, engine_request
from predictor.delivery.recorded import RecordedJobs, is_elsewhere
from predictor.delivery.settlement import Settlement, problem
from predictor.engine.engine import (
    Engine,
    estimated_prompt_tokens,
)
from predictor.errors import where
from predictor.generation.append_batcher import AppendBatcher
from predictor.generation.checkpoint import Checkpoint, read_checkpoint
from predictor.generation.generation import (
    Answered,
    Attempt,
    Completed,
    Generation,
    Interrupted,
    Result,
)
from predictor.generation.judge import read_judge

_log = structlog.get_logger()

_HELD_AT_MOST_S: Final = 5.0


class _Unread(Exception):
    """The job's request is in its record, which is still to be read."""


class Deliveries:
    """Handles deliveries, any number concurrently."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: JobWorker,
        admission: Admission,
        keeper: LeaseKeeper,
        clock: Clock,
        owner: str,
        lease_s: float,
        flush_s: float,
        is_store_shared: bool = True,
        account: GpuAccount | None = None,
        links: trace.SpanLinks = trace.NO_LINKS,
    ) -> None:
        self._links = links
        self._engine = engine
        self._store = store
        self._appends = AppendBatcher(store)
        self._admission = admission
        self._keeper = keeper
        self._clock = clock
        self._owner = owner
        self._settlement = Settlement(store, clock, lease_s=lease_s)
        self._flush_s = flush_s
        self._is_store_shared = is_store_shared
        self._jobs = RecordedJobs(store, is_store_shared=is_store_shared)
        self._account = account or GpuAccount(None, clock, model="", started_s=0.0)

    async def handle(self, headers: Mapping[str, str], body: bytes) -> DeliveryResponse:
        """The response to one delivery."""
        try:
            event = parse_http(headers, body)
            parent = followable(headers.get("traceparent", "")) or event.extensions.get(
                "traceparent", ""
            )
            with (
                log_context(request_id.context_fields(event.extensions)),
                trace.span("receive", parent=parent) as span,
            ):
                outcome = await self.outcome_of(event)
                if isinstance(outcome, Ended) and outcome.job is None and _wants_result(headers):
                    outcome = await self._refusable(self._settlement.ended(outcome.job_id))
                elif (
                    isinstance(outcome, Validating)
                    and not outcome.is_queued
                    and _wants_result(headers)
                ):
                    outcome = await self._refusable(self._settlement.validating(outcome.job_id))
                span.set(outcome=type(outcome).__name__.lower())
        except BadRequest as error:
            outcome = Malformed(error)
        labelled(metrics.DELIVERIES, type(outcome).__name__.lower()).inc()
        # Without a shared store, what was left out of the reply could not be fetched.
        inline_bytes = DATAREF_ABOVE_BYTES if self._is_store_shared else sys.maxsize
        return answer_for(outcome, inline_bytes=inline_bytes)

    async def outcome_of(self, event: Event) -> Outcome:
        """The outcome of an event: a job that ran, or why none did."""
        if event.type not in (job_event.REQUESTED, job_event.PREPARED):
            _log.warning("event of another type", action="ignore", type=event.type[:100])
            return Ignored()
        try:
            new = job_event.job_of(event)
        except BadRequest as error:
            return await self._refusable(self._reject(event, error))
        try:
            return await self._refusable(
                self._run(new, is_later_turn=job_event.TURN in event.extensions)
            )
        except JobDeleted:
            return self._ignore_strange(new.id)

    async def _refusable(self, step: Awaitable[Outcome]) -> Outcome:
        """The step's outcome; `Refused` when a dependency is unavailable."""
        try:
            return await step
        except Unavailable as error:
            return Refused(error.message, error.retry_after_s)

    async def _reject(self, event: Event, error: BadRequest) -> Outcome:
        if self._jobs.is_strange(event.source):
            return self._ignore_strange(event.subject)
        new = job_event.unreadable_job(event)
        if not await self._store.reject(new, problem(error), event.data):
            # The identity belongs to another job, which this event must not be able to end.
            _log.warning("invalid event of a known job", action="reject", job_id=new.id)
            return Rejected(None)
        # A shared store records the end itself; an in-memory one has no readers.
        return Rejected(None if self._is_store_shared else await self._store.get(new.id))

    async def _run(self, new: NewJob, *, is_later_turn: bool = False) -> Outcome:
        """Five steps: slot, lease, checkpoint, generate, settle. Each returns the input of the next one, or the
        outcome. A job suspected of killing predictors runs alone (docs/adr/0018).
        """
        async with self._admission.reserve(sequences(new.request.body)) as slot:
            leased = await self._lease(new, slot, is_later_turn=is_later_turn)
            if not isinstance(leased, Leased):
                return leased
            attempt = leased.attempt
            with trace.span("attempt", job_id=attempt.job_id, attempt=attempt.number) as span:
                await self._links.follow(attempt.job_id, "attempt", span)
                whole = await self._checkpoint(leased)
                if not isinstance(whole, Leased):
                    return whole
                return await self._attempt(whole, span)

    def _validate(self, job: Job) -> bool | Exception:
        """Whether the answer can be continued, or what is wrong with the request. An error that is not a
        `BadRequest` is a bug in the check.
        """
        try:
            request = engine_request(job, job.attempt + 1)
            self._engine.validate(request)
            return self._engine.can_resume(request)
        except Exception as error:
            return error

    async def _lease(self, new: NewJob, slot: Slot, *, is_later_turn: bool) -> "Leased | Outcome":
        """The job's lease. Most records equal the event, so the lease is requested without reading the record
        first; when they differ, or the event's request is invalid, the record decides, as it does for a later turn:
        no event has the turns.
        """
        job, expected = fresh(new, 0), True
        checked = _Unread() if is_later_turn else self._validate(job)
        is_exclusive = False
        while True:
            if isinstance(checked, Exception) and expected:
                job, expected = await self._jobs.recorded(new), False
                if is_elsewhere(job, new):
                    return self._ignore_moved(new.id)
                checked = self._validate(job)
            if isinstance(checked, BadRequest):
                return await self._settlement.refuse(job, checked)
            if isinstance(checked, Unavailable):
                raise checked
            asked_s = self._clock.monotonic_s()
            acquired = await self._store.acquire(
                job.id,
                self._owner,
                can_resume=checked is not False,
                # A request that fails before it reaches the engine counts as exclusive.
                is_exclusive=is_exclusive or isinstance(checked, Exception),
                expected=new if expected else None,
            )
            match acquired.status:
                case AcquireStatus.ACQUIRED:
                    return Leased.of(job, acquired, checked, asked_s)
                case AcquireStatus.ALONE:
                    _log.warning("waits for exclusive use", action="exclusive", job_id=job.id)
                    is_exclusive = True
                    await slot.take_all()
                case AcquireStatus.OTHER | AcquireStatus.MISSING if expected:
                    job, expected = await self._jobs.recorded(new), False
                    if is_elsewhere(job, new):
                        return self._ignore_moved(new.id)
                    checked = self._validate(job)
                case _:
                    return await self._not_ours(job, acquired)

    async def _not_ours(self, job: Job, acquired: Acquired) -> Outcome:
        """The outcome when the lease is not granted."""
        match acquired.status:
            case AcquireStatus.HELD:
                return Held(min(acquired.lease_left_ms / 1000, _HELD_AT_MOST_S))
            case AcquireStatus.MISSING | AcquireStatus.OTHER:
                return Refused("the job's record is gone")
            case AcquireStatus.UNPREPARED:
                _log.info("steps are left before it", action="ignore", job_id=job.id)
                return Ignored()
            case _:
                return await self._settlement.ended(job.id)

    def _ignore_strange(self, job_id: str) -> Outcome:
        _log.warning("event of a job that is not recorded", action="ignore", job_id=job_id[:100])
        return Ignored()

    def _ignore_moved(self, job_id: str) -> Outcome:
        _log.info("another model is asked now", action="ignore", job_id=job_id)
        return Ignored()

    async def _checkpoint(self, leased: "Leased") -> "Leased | Outcome":
        """The state that earlier attempts left. An incomplete checkpoint (its stream was evicted) cannot be used:
        the job starts over, under a lease that says so.
        """
        attempt = leased.attempt
        if not attempt.resumed_tokens:
            if attempt.void_count:
                metrics.TOKENS_REGENERATED.inc(attempt.void_count)
            if not leased.continues_turns:
                return leased
        checkpoint = await read_checkpoint(
            self._store, attempt.job_id, attempt.token_count, begin=attempt.turn_begin
        )
        if not attempt.resumed_tokens:
            return replace(leased, checkpoint=Checkpoint(before=checkpoint.before))
        metrics.TOKENS_RESUMED.inc(len(checkpoint.token_ids))
        if len(checkpoint.token_ids) == attempt.resumed_tokens:
            return replace(leased, checkpoint=checkpoint)
        _log.warning("checkpoint not whole", action="restart", job_id=attempt.job_id)
        await self._settlement.release(attempt, ReleaseReason.HANDOVER, "handover")
        asked_s = self._clock.monotonic_s()
        # The lease was granted a moment ago, so the exclusive check need not be repeated.
        acquired = await self._store.acquire(
            attempt.job_id, self._owner, can_resume=False, is_exclusive=True
        )
        if acquired.status is not AcquireStatus.ACQUIRED:
            return await self._not_ours(leased.job, acquired)
        metrics.TOKENS_REGENERATED.inc(acquired.void_count)
        return Leased.of(leased.job, acquired, False, asked_s)

    async def _attempt(self, leased: "Leased", span: Span) -> Outcome:
        """Generate and settle; every error is handled."""
        attempt = leased.attempt
        log = _log.bind(job_id=attempt.job_id, attempt=attempt.number)
        log.info("attempt starts", action="attempt", resumed_tokens=attempt.resumed_tokens)
        started_s = self._clock.monotonic_s()
        try:
            if leased.bug is not None:
                raise leased.bug
            outcome, word = await self._generate_and_settle(leased)
        except StoreUnavailable as error:
            outcome, word = Refused(error.message, error.retry_after_s), "store_unavailable"
        except Exception as error:
            # The last handler of this job: any error counts as an attempt, so that retries end.
            log.error("attempt broke", action="attempt", **where(error))
            outcome, word = await self._settlement.failed(attempt, "internal_error"), "bug"
        labelled(metrics.ATTEMPTS, word).inc()
        span.set(outcome=word)
        duration_ms = int((self._clock.monotonic_s() - started_s) * 1000)
        log.info("attempt ends", action="attempt_end", outcome=word, duration_ms=duration_ms)
        return outcome

    async def _generate_and_settle(self, leased: "Leased") -> tuple[Outcome, str]:
        """Both while the lease is renewed."""
        generation = Generation(
            leased.attempt,
            leased.checkpoint,
            engine_request(
                leased.job,
                leased.attempt.number,
                starts_over=leased.attempt.void_count > 0,
                counts_throughout=leased.hold is Hold.WINDOW,
                notes_prefix=leased.may_call_tools,
                before=leased.checkpoint.before if leased.continues_turns else (),
            ),
            engine=self._engine,
            store=self._store,
            appends=self._appends,
            clock=self._clock,
            flush_s=self._flush_s,
            judge=await read_judge(self._store, leased.attempt.job_id, leased.hold),
        )
        with self._keeper.watching(generation):
            result, gpu_ms = await self._generate(generation, leased)
            return await self._settle(leased.attempt, result, generation, gpu_ms)

    async def _generate(self, generation: Generation, leased: "Leased") -> tuple[Result, int]:
        """The answer, or why there is none, and its GPU milliseconds."""
        share_s = self._account.share_s()
        attempt = leased.attempt
        with trace.span("generate", resumed_tokens=attempt.resumed_tokens) as span:
            result = await generation.run()
            span.set(new_tokens=generation.new_tokens)
        if leased.may_call_tools and isinstance(result, Completed):
            result = _timed(result, generation.first_token_s, self._account.start_s)
        is_kept = _is_kept(result, attempt)
        return result, self._account.take(leased.job.tenant, share_s, is_kept=is_kept)

    async def _settle(
        self, attempt: Attempt, result: Result, generation: Generation, gpu_ms: int
    ) -> tuple[Outcome, str]:
        made = generation.new_tokens
        if isinstance(result, Answered):
            return await self._settlement.settle(attempt, result, new_tokens=made, gpu_ms=gpu_ms)
        lost = self._account.charge(
            attempt.job_id,
            gpu_ms,
            prompt_tokens=estimated_prompt_tokens(generation.request.body),
            lost_tokens=made,
        )
        charging = asyncio.ensure_future(lost)
        await asyncio.sleep(0)  # charged first, so that the end is shown with it
        try:
            return await self._settlement.settle(attempt, result, new_tokens=made)
        finally:
            await charging  # it raises nothing


def _wants_result(headers: Mapping[str, str]) -> bool:
    """False for `Prefer: return=minimal` (RFC 7240): no subscriber of that broker takes result events."""
    return job_event.MINIMAL not in headers.get("prefer", "")


def _timed(result: Completed, first_token_s: float, start_s: float) -> Completed:
    """The answer with its times in its usage: another turn may follow."""
    usage = result.body.get("usage")
    if not isinstance(usage, Mapping) or not start_s:
        return result
    times = {"first_token_ms": round(first_token_s * 1000), "start_ms": round(start_s * 1000)}
    return replace(result, body={**result.body, "usage": {**usage, TIMES: times}})


def _is_kept(result: Result, attempt: Attempt) -> bool:
    """True when this attempt's tokens are continued by another attempt, or are in the result."""
    return isinstance(result, Answered) or (attempt.can_resume and result is not Interrupted.ENDED)

"""The life of one delivery: from an HTTP message to the answer that the broker goes by.

Called by the event route of `predictor.server`. The steps stand in `Deliveries.outcome_of`, in
order; what each outcome is answered with is the table of `answer_for` (docs/adr/0015). Nothing is
answered 2xx that the store does not hold; if the process dies in here, the job's lease lapses and
the next delivery goes on. A caller that goes away changes nothing: the next one finds the result.
"""

import asyncio
import sys
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Final, assert_never

import structlog

from eventing.clock import Clock
from eventing.cloudevent import job_event, request_id
from eventing.cloudevent.event import Event, parse_http
from eventing.errors import (
    BadRequest,
    IdempotencyConflict,
    StoreUnavailable,
    TorporError,
    Unavailable,
)
from eventing.job.job import Job
from eventing.job.store import AcquireStatus, NewJob, Release, Store
from eventing.store.job_record import fresh
from eventing.telemetry import trace
from eventing.telemetry.log import log_context
from eventing.telemetry.metric.ledger import GpuAccount
from eventing.telemetry.metric.series import labelled
from eventing.telemetry.span import Span
from predictor import metrics
from predictor.delivery.admission import Admission, sequences
from predictor.delivery.answer import (
    RETRY_SOON_S,
    Answer,
    Held,
    Ignored,
    Malformed,
    Outcome,
    Refused,
    Rejected,
    answer_for,
)
from predictor.delivery.lease import LeaseKeeper
from predictor.delivery.settlement import Settlement, problem
from predictor.engine.engine import Engine, EngineRequest
from predictor.errors import where
from predictor.generation.append_batcher import AppendBatcher
from predictor.generation.checkpoint import Checkpoint, read_checkpoint
from predictor.generation.generation import Attempt, Completed, Generation, Interrupted, Result

_log = structlog.get_logger()

_HELD_AT_MOST_S: Final = 5.0


class _OnlyAlone(Exception):
    """The job's last attempt, after losses, is for a predictor that runs nothing else."""


class _NotAsTold(Exception):
    """There is no record, or it says something else than the event."""


class Deliveries:
    """Takes deliveries, any number at once."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: Store,
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
        self._account = account or GpuAccount(None, clock, model="", started_s=0.0)

    async def handle(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """The answer to one delivery."""
        try:
            event = parse_http(headers, body)
            parent = headers.get("traceparent") or event.extensions.get("traceparent", "")
            with (
                log_context(request_id.context_fields(event.extensions)),
                trace.span("receive", parent=parent) as span,
            ):
                outcome = await self.outcome_of(event)
                span.set(outcome=type(outcome).__name__.lower())
        except BadRequest as error:
            outcome = Malformed(error)
        labelled(metrics.DELIVERIES, type(outcome).__name__.lower()).inc()
        # Without a shared store nobody could fetch what was left out of the reply.
        inline_bytes = job_event.DATAREF_ABOVE_BYTES if self._is_store_shared else sys.maxsize
        return answer_for(outcome, inline_bytes=inline_bytes)

    async def outcome_of(self, event: Event) -> Outcome:
        """Is it a job; is there room; record it; take the lease; generate; record the end."""
        if event.type != job_event.REQUESTED:
            _log.warning("event of another type", action="ignore", type=event.type[:100])
            return Ignored()
        try:
            new = job_event.job_of(event)
        except BadRequest as error:
            return await self._refusable(self._reject(event, error))
        return await self._refusable(self._run(new))

    async def _refusable(self, step: Awaitable[Outcome]) -> Outcome:
        """The step's outcome; where something it needs is away, nothing was done."""
        try:
            return await step
        except Unavailable as error:
            return Refused(error.message, error.retry_after_s)

    async def _reject(self, event: Event, error: BadRequest) -> Outcome:
        new = job_event.unreadable_job(event)
        if not await self._store.reject(new, problem(error), event.data):
            # Somebody else's job has this identity; whoever knows it must not be able to end it.
            _log.warning("invalid event of a known job", action="reject", job_id=new.id)
            return Rejected(None)
        # A shared store's sweep announces it; nobody sweeps a store of our own.
        return Rejected(None if self._is_store_shared else await self._store.get(new.id))

    async def _run(self, new: NewJob) -> Outcome:
        """Beside others; a job that may be what kills predictors gets one for itself at the end
        (docs/adr/0085).
        """
        try:
            with self._admission.slot(sequences(new.request.body)):
                return await self._start(new, is_exclusive=False)
        except _OnlyAlone:
            _log.warning("waits to run alone", action="alone", job_id=new.id)
        async with self._admission.alone():
            return await self._start(new, is_exclusive=True)

    async def _start(self, new: NewJob, *, is_exclusive: bool) -> Outcome:
        """Most records say what the event says: then the lease is all that need be asked for."""
        job = fresh(new, 0)
        can_resume = self._can_resume_if_well(job)
        if can_resume is not None:
            with suppress(_NotAsTold):
                return await self._acquire(
                    job, can_resume=can_resume, is_exclusive=is_exclusive, expected=new
                )
        return await self._start_recorded(new, is_exclusive=is_exclusive)

    def _can_resume_if_well(self, job: Job) -> bool | None:
        """None where something is wrong with the request, which is for the record to answer for."""
        try:
            request = _request(job, 1)
            self._engine.validate(request)
            return self._engine.can_resume(request)
        except Exception:
            return None

    async def _start_recorded(self, new: NewJob, *, is_exclusive: bool) -> Outcome:
        job = await self._record(new)
        try:
            request = _request(job, job.attempt + 1)
            self._engine.validate(request)
            can_resume = self._engine.can_resume(request)
        except BadRequest as error:
            return await self._settlement.refuse(job, error)
        except TorporError:
            raise
        except Exception as error:
            return await self._fail_attempt_on_validation_bug(job, error)
        return await self._acquire(job, can_resume=can_resume, is_exclusive=is_exclusive)

    async def _fail_attempt_on_validation_bug(self, job: Job, error: Exception) -> Outcome:
        """A request that breaks the very check of it costs an attempt too, or it would come for
        ever.
        """
        # It never gets as far as the engine, so it is as good as alone.
        acquired = await self._store.acquire(
            job.id, self._owner, can_resume=True, is_exclusive=True
        )
        if acquired.status is AcquireStatus.HELD:
            return Held(RETRY_SOON_S)
        if acquired.status is not AcquireStatus.ACQUIRED:
            return await self._settlement.ended(job.id)
        _log.error("check broke", action="validate", job_id=job.id, **where(error))
        attempt = Attempt(
            lease=acquired.lease,
            acquired_s=self._clock.monotonic_s(),
            token_count=acquired.token_count,
            can_resume=True,
        )
        return await self._settlement.failed(attempt, "internal_error")

    async def _acquire(
        self, job: Job, *, can_resume: bool, is_exclusive: bool, expected: NewJob | None = None
    ) -> Outcome:
        """Take the lease and go on. Raises `_NotAsTold`, with nothing done, where the record is not
        what the event `expected`.
        """
        asked_s = self._clock.monotonic_s()
        acquired = await self._store.acquire(
            job.id, self._owner, can_resume=can_resume, is_exclusive=is_exclusive, expected=expected
        )
        match acquired.status:
            case AcquireStatus.ACQUIRED:
                attempt = Attempt(
                    lease=acquired.lease,
                    acquired_s=asked_s,
                    token_count=acquired.token_count,
                    can_resume=can_resume,
                    void_count=acquired.void_count,
                )
                with trace.span("attempt", job_id=job.id, attempt=attempt.number) as span:
                    await self._links.follow(job.id, "attempt", span)
                    return await self._continue(attempt, job, span)
            case AcquireStatus.HELD:
                return Held(min(acquired.lease_left_ms / 1000, _HELD_AT_MOST_S))
            case AcquireStatus.ALONE:
                raise _OnlyAlone
            case AcquireStatus.OTHER:
                raise _NotAsTold
            case AcquireStatus.MISSING if expected is not None:
                raise _NotAsTold
            case AcquireStatus.MISSING:
                return Refused("the job's record is gone")
            case AcquireStatus.TERMINAL | AcquireStatus.EXPIRED | AcquireStatus.EXHAUSTED:
                return await self._settlement.ended(job.id)
            case _:
                assert_never(acquired.status)

    async def _record(self, new: NewJob) -> Job:
        """The job as recorded: what stands in the record is what was promised, whatever a later
        event of the same identity says (a redriven job may have been edited). Our api's jobs are
        there already; only those of other producers are recorded here.
        """
        recorded = await self._store.get(new.id)
        if recorded is not None:
            return recorded
        try:
            job, is_new = await self._store.create(new)
        except IdempotencyConflict:
            raise Unavailable("another request took this identity just now") from None
        if is_new:
            await self._store.mark_published(job.id)  # it has just arrived
        return job

    async def _continue(self, attempt: Attempt, job: Job, span: Span) -> Outcome:
        """Go on from the checkpoint. One that is not whole (its stream was evicted) is of no use:
        the job starts over.
        """
        checkpoint = await self._checkpoint(attempt)
        if len(checkpoint.token_ids) == attempt.token_count:
            return await self._attempt(attempt, checkpoint, job, span)
        _log.warning("checkpoint not whole", action="restart", job_id=job.id)
        await self._settlement.give_back(attempt, Release.HANDOVER, "handover")
        # Who may run it was asked a moment ago, and nothing was lost since.
        return await self._acquire(job, can_resume=False, is_exclusive=True)

    async def _attempt(
        self, attempt: Attempt, checkpoint: Checkpoint, job: Job, span: Span
    ) -> Outcome:
        """Everything that happens under a lease."""
        log = _log.bind(job_id=attempt.job_id, attempt=attempt.number)
        log.info("attempt starts", action="attempt", resumed_tokens=attempt.token_count)
        started_s = self._clock.monotonic_s()
        try:
            outcome, word = await self._generate_and_settle(attempt, checkpoint, job)
        except StoreUnavailable as error:
            outcome, word = Refused(error.message, error.retry_after_s), "store_unavailable"
        except Exception as error:
            # The outermost hand on this job: whatever went wrong counts, so that it ends.
            log.error("attempt broke", action="attempt", **where(error))
            outcome, word = await self._settlement.failed(attempt, "internal_error"), "bug"
        labelled(metrics.ATTEMPTS, word).inc()
        span.set(outcome=word)
        duration_ms = int((self._clock.monotonic_s() - started_s) * 1000)
        log.info("attempt ends", action="attempt_end", outcome=word, duration_ms=duration_ms)
        return outcome

    async def _generate_and_settle(
        self, attempt: Attempt, checkpoint: Checkpoint, job: Job
    ) -> tuple[Outcome, str]:
        """The answer, its cost and its end, watched all the while by whoever keeps the lease."""
        share_s = self._account.share_s()
        generation = Generation(
            attempt,
            checkpoint,
            _request(job, attempt.number),
            engine=self._engine,
            store=self._store,
            appends=self._appends,
            clock=self._clock,
            flush_s=self._flush_s,
        )
        with self._keeper.watching(generation):
            with trace.span("generate", resumed_tokens=attempt.token_count) as span:
                result = await generation.run()
                span.set(new_tokens=generation.new_tokens)
            gpu_ms = self._account.take(job.tenant, share_s, is_kept=_is_kept(result, attempt))
            return await self._settle(attempt, result, generation, gpu_ms)

    async def _settle(
        self, attempt: Attempt, result: Result, generation: Generation, gpu_ms: int
    ) -> tuple[Outcome, str]:
        made = generation.new_tokens
        if isinstance(result, Completed):
            return await self._settlement.settle(attempt, result, new_tokens=made, gpu_ms=gpu_ms)
        charging = asyncio.ensure_future(self._account.charge(attempt.job_id, gpu_ms))
        await asyncio.sleep(0)  # the charge goes out first, so the end is shown with it
        try:
            return await self._settlement.settle(attempt, result, new_tokens=made)
        finally:
            await charging  # it raises nothing

    async def _checkpoint(self, attempt: Attempt) -> Checkpoint:
        if not attempt.token_count:
            metrics.TOKENS_REGENERATED.inc(attempt.void_count)
            return Checkpoint()
        checkpoint = await read_checkpoint(self._store, attempt.job_id, attempt.token_count)
        metrics.TOKENS_RESUMED.inc(len(checkpoint.token_ids))
        return checkpoint


def _request(job: Job, attempt: int) -> EngineRequest:
    """The engine call of an attempt; two attempts may overlap in one engine for a moment."""
    return EngineRequest(f"{job.id}-{attempt}", job.request.url, job.request.body)


def _is_kept(result: Result, attempt: Attempt) -> bool:
    """True when somebody goes on with what this attempt made, or has it all."""
    return isinstance(result, Completed) or (attempt.can_resume and result is not Interrupted.ENDED)

"""Records an attempt's result, and gives the outcome of its delivery.

Called by `predictor.delivery.delivery`. It decides what each ending costs a job (docs/adr/0018). If the process
dies in here, the record either has the end or it has not; then the lease lapses.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar, assert_never

import structlog

from eventing.clock import Clock
from eventing.errors import BadRequest, ResultTooLarge, StoreUnavailable, Unavailable
from eventing.job.call.usage import TIMES, usage_with
from eventing.job.job import API_SOURCE, CONTENT_FILTER, Job, JobError, JobId, JobState
from eventing.job.store import Ending, JobWorker, LeaseStatus, ReleaseReason
from predictor import metrics
from predictor.delivery.answer import (
    RETRY_SOON_S,
    AttemptFailed,
    Ended,
    Held,
    Outcome,
    Refused,
    Validating,
)
from predictor.engine.engine import EXTRA_USAGE, PREFIX, known_prefix
from predictor.errors import EngineDeadError
from predictor.generation.generation import (
    Attempt,
    Completed,
    EngineFailed,
    Interrupted,
    Result,
    Withheld,
)

_log = structlog.get_logger()
_T = TypeVar("_T")

_PAUSE_S: Final = 0.2
_MESSAGES: Final = {
    "stalled": "the engine gave no token for too long",
    "out_of_step": "the store holds other tokens than were written",
    "engine_dead": "the engine died",
    "engine_request_failed": "the engine failed this request",
    "upstream_failed": "the provider failed this request",
    "upstream_unavailable": "the provider takes no calls now",
    "upstream_rate_limited": "the provider's rate limit is used up",
    "handover": "this predictor ends; the job goes on elsewhere",
    "internal_error": "the predictor failed",
}
"""Messages by the code of a released attempt; they contain nothing that the engine said."""


def release_after_engine_death(*, new_tokens: int, can_resume: bool) -> ReleaseReason:
    """The release reason for a job whose engine died. A job that made progress is not charged; one that did not, or
    that starts over each time, may be the one that kills engines, and is charged an attempt.
    """
    return ReleaseReason.HANDOVER if new_tokens and can_resume else ReleaseReason.LOST


class Settlement:
    """Records endings, and releases leases."""

    def __init__(self, store: JobWorker, clock: Clock, *, lease_s: float) -> None:
        self._store = store
        self._clock = clock
        self._lease_s = lease_s

    async def settle(
        self, attempt: Attempt, result: Result, *, new_tokens: int, gpu_ms: int = 0
    ) -> tuple[Outcome, str]:
        """Record how the attempt ended; gives the outcome and its name in metrics. A complete answer is recorded
        with its charge, `gpu_ms`.
        """
        match result:
            case Completed(body, final_batch):
                body, usage = _without_extra(body)
                ending = Ending(
                    state=JobState.COMPLETED,
                    result=body,
                    usage=usage,
                    final_batch=final_batch,
                    gpu_ms=gpu_ms,
                    following=attempt.following,
                )
                try:
                    return await self._finish(attempt, ending), "completed"
                except ResultTooLarge as error:
                    refusal = _refused(error, is_reported_to_caller=attempt.is_reported_to_caller)
                    return await self._finish(attempt, refusal), "invalid"
            case Withheld():
                ending = _withheld(result, attempt.resumed_tokens + new_tokens, gpu_ms)
                return await self._finish(attempt, ending), "withheld"
            case EngineFailed(BadRequest() as error):
                refusal = _refused(error, is_reported_to_caller=attempt.is_reported_to_caller)
                return await self._finish(attempt, refusal), "invalid"
            case EngineFailed(EngineDeadError()) | Interrupted.ENGINE_DEAD:
                why = release_after_engine_death(
                    new_tokens=new_tokens, can_resume=attempt.can_resume
                )
                return await self.release(attempt, why, "engine_dead"), "engine_dead"
            case EngineFailed(Unavailable() as error):
                released = await self.release(attempt, ReleaseReason.HANDOVER, error.code)
                if isinstance(released, Refused):
                    released = replace(released, retry_after_s=error.retry_after_s)
                return released, error.code
            case EngineFailed(error):
                return await self.failed(attempt, error.code), error.code
            case Interrupted():
                return await self._stopped(attempt, result), result
            case _:
                assert_never(result)

    async def _stopped(self, attempt: Attempt, stop: Interrupted) -> Outcome:
        match stop:
            case Interrupted.FENCED:
                return Held(RETRY_SOON_S)
            case Interrupted.ENDED:
                return await self.ended(attempt.job_id)
            case Interrupted.EXPIRED:
                error = JobError(code="expired", message="the deadline passed before the job ended")
                return await self._finish(attempt, _dead(error))
            case Interrupted.GONE:
                return Refused("the job's record is gone")
            case Interrupted.STORE_LOST:
                return Refused("the store was away for longer than the lease")
            case Interrupted.HANDOVER:
                return await self.release(attempt, ReleaseReason.HANDOVER, "handover")
            case Interrupted.STALLED | Interrupted.OUT_OF_STEP | Interrupted.ENGINE_DEAD:
                return await self.failed(attempt, str(stop))
            case _:
                assert_never(stop)

    async def _finish(self, attempt: Attempt, ending: Ending) -> Outcome:
        """Record the end, with retries while the store is unavailable and the lease may last, since the answer is
        complete and expensive.
        """
        try:
            hold = await self._retry_while_store_unavailable(
                lambda: self._store.finish(attempt.lease, ending)
            )
        except StoreUnavailable:
            _count_lost(ending)
            raise
        if hold is LeaseStatus.OK:
            return Ended(attempt.job_id)
        if hold is LeaseStatus.VALIDATING:
            return Validating(attempt.job_id)
        if hold is LeaseStatus.STEP_QUEUED:
            return Validating(attempt.job_id, is_queued=True)
        job = await self._store.get(attempt.job_id) if hold is LeaseStatus.TERMINAL else None
        # The end is recorded already where the reply to an earlier call was lost.
        if job is None or job.state is not ending.state:
            _count_lost(ending)
        match hold:
            case LeaseStatus.TERMINAL:
                return _ended(job)
            case LeaseStatus.MISSING:
                return Refused("the job's record is gone")
            case LeaseStatus.GAP:
                return await self.failed(attempt, Interrupted.OUT_OF_STEP)
            case _:
                metrics.FENCED_WRITES.inc()
                return Held(RETRY_SOON_S)

    async def failed(self, attempt: Attempt, code: str) -> Outcome:
        """Record a failed attempt, which counts."""
        return await self.release(attempt, ReleaseReason.FAILURE, code)

    async def release(self, attempt: Attempt, why: ReleaseReason, code: str) -> Outcome:
        """Release the lease, so that the next attempt starts at once. Raises `StoreUnavailable`; then the lease
        lapses.
        """
        error = JobError(code=code, message=_MESSAGES.get(code, "the attempt failed"))
        is_queued = await self._store.release(attempt.lease, why, error)
        if not is_queued:
            job = await self._store.get(attempt.job_id)
            if job is not None and job.state.is_terminal:
                return Ended(job.id, job)
        if why is ReleaseReason.HANDOVER:
            return Refused(error.message)
        return AttemptFailed(error.message)

    async def ended(self, job_id: JobId) -> Outcome:
        """The outcome for an ended job; a job that was deleted or redriven meanwhile is delivered again."""
        return _ended(await self._store.get(job_id))

    async def validating(self, job_id: JobId) -> Validating:
        """The outcome with the job's record, unless its answer has been judged meanwhile."""
        job = await self._store.get(job_id, with_result=False)
        return Validating(job_id, job if job is not None and job.is_validating else None)

    async def _retry_while_store_unavailable(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Retry while the store is unavailable, for as long as the lease may be ours."""
        give_up_s = self._clock.monotonic_s() + self._lease_s
        while True:
            try:
                return await call()
            except StoreUnavailable:
                if self._clock.monotonic_s() >= give_up_s:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def refuse(self, job: Job, error: BadRequest) -> Outcome:
        """End a job that this engine can never serve, unless another attempt runs it."""
        ending = _refused(error, is_reported_to_caller=job.source == API_SOURCE)
        match await self._store.conclude(job.id, ending):
            case LeaseStatus.OK | LeaseStatus.TERMINAL:
                return await self.ended(job.id)
            case LeaseStatus.MISSING:
                return Refused("the job's record is gone")
            case _:
                return Held(RETRY_SOON_S)


_NOT_COUNTED: Final = ("extra", PREFIX, TIMES)
"""Fields of an answer's usage that are not of its job's."""


def _without_extra(
    body: Mapping[str, Any],
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """The answer, and the job's usage: the answer's, and what the engine spent beside it. A provider's own `extra`
    says nothing. A turn's `Prefix` goes with the answer's own usage, which becomes that of the turn.
    """
    usage, extra = body.get("usage"), body.get(EXTRA_USAGE)
    prefix = known_prefix(body.get(PREFIX))
    body = {name: value for name, value in body.items() if name not in (EXTRA_USAGE, PREFIX)}
    if not isinstance(usage, Mapping):
        return body, None
    own = {name: value for name, value in usage.items() if name not in _NOT_COUNTED}
    if PREFIX in usage or prefix is not None:
        said = {name: value for name, value in usage.items() if name != PREFIX}
        body = {**body, "usage": said | ({PREFIX: prefix} if prefix else {})}
    if prefix is not None and "kept" in prefix:
        metrics.TURN_PREFIXES.labels("true" if prefix["kept"] else "false").inc()
    return body, usage_with(own, extra)


def _withheld(result: Withheld, tokens: int, gpu_ms: int) -> Ending:
    """The end of an answer after so many tokens, all choices together."""
    kind, category = result.finding.kind, result.finding.category
    _log.info("answer withheld", action="withhold", rule=kind, category=category)
    said = result.body.get("usage") or {}
    if result.is_stopped or not said:  # an engine counts along, but each choice for itself
        prompt = said.get("prompt_tokens") or 0
        said = {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
        }
    body, usage = _without_extra({**result.body, "usage": said})
    return Ending(
        state=JobState.INCOMPLETE,
        result=body,
        usage=usage,
        incomplete=CONTENT_FILTER,
        gpu_ms=gpu_ms,
    )


def _ended(job: Job | None) -> Outcome:
    if job is None or not job.state.is_terminal:
        return Refused("the job's record has changed")
    return Ended(job.id, job)


def _count_lost(ending: Ending) -> None:
    if ending.final_batch is not None:
        metrics.TOKENS_LOST.inc(len(ending.final_batch.token_ids))


def problem(error: BadRequest) -> JobError:
    """The error of a request that can never be served."""
    return JobError(code=error.code, message=error.message, field=error.field)


def _dead(error: JobError) -> Ending:
    return Ending(state=JobState.FAILED, error=error, is_dead_letter=True)


def _refused(error: BadRequest, *, is_reported_to_caller: bool) -> Ending:
    """The end of a request that can never be served. For a job of our api the caller gets the error; another
    producer's event becomes a dead letter for the operator.
    """
    return Ending(
        state=JobState.FAILED, error=problem(error), is_dead_letter=not is_reported_to_caller
    )

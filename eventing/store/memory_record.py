"""One job in the in-memory store, and the changes to it.

Called by `eventing.store.memory_store` only. A change that a lease allows is checked here; it writes the job's stream,
and knows no other jobs and no clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from eventing.job.call.usage import Spent, spent_with, usage_with
from eventing.job.job import (
    REJECTED,
    AttemptRecord,
    Job,
    JobError,
    JobRequest,
    JobState,
)
from eventing.job.plan import Hold, Plan
from eventing.job.prompt import prompt_start
from eventing.job.store import (
    Ending,
    Lease,
    LeaseStatus,
    TokenBatch,
)
from eventing.job.stream import EntryKind, StreamEntry, cursor_order
from eventing.store.job_record.fields import stored_result
from eventing.store.job_record.parse import served_again


@dataclass(slots=True)
class MemoryRecord:
    """What Redis keeps for a job: the job, its token stream, and internal fields."""

    job: Job
    sha: str
    options_sha: str = ""
    lease_id: str = ""
    failures: int = 0
    expires_ms: int = 0
    is_rejected: bool = False
    must_restart: bool = False
    was_restarted: bool = False
    prepared_sha: str = ""
    spent: Spent | None = None
    entries: list[StreamEntry] = field(default_factory=list)

    @property
    def runs_sha(self) -> str:
        """The digest of the request that the predictor is given."""
        return self.prepared_sha or self.sha

    def is_leased_as(self, lease: Lease) -> bool:
        """True when `lease` is the newest lease of the job."""
        return (self.job.attempt, self.lease_id) == (lease.attempt, lease.id)

    def refuse(self, answer: LeaseStatus) -> LeaseStatus:
        """Count a refused write; gives the status for its writer."""
        self.job = replace(self.job, refused_writes=self.job.refused_writes + 1)
        return answer

    def start_attempt(self, owner: str, can_resume: bool, lease_until_ms: int, now_ms: int) -> None:
        """Start a new attempt, which continues from the stored tokens where possible."""
        job = self.job
        is_restart = self.must_restart or (job.token_count > 0 and not can_resume)
        tokens = 0 if is_restart else job.token_count
        attempt = job.attempt + 1
        started = AttemptRecord(
            attempt=attempt, owner=owner, started_ms=now_ms, resumed_from=tokens
        )
        self.must_restart = False
        self.was_restarted |= is_restart and job.token_count > 0
        self.job = replace(
            job,
            state=JobState.IN_PROGRESS,
            attempt=attempt,
            token_count=tokens,
            lease_owner=owner,
            lease_until_ms=lease_until_ms,
            started_ms=job.started_ms or now_ms,
            history=(*job.history, started),
        )
        self.write(now_ms, EntryKind.ATTEMPT, index=tokens, is_restart=is_restart, at_ms=now_ms)

    def lease_left(self, now_ms: int, lease_ms: int) -> int:
        """As `lease_left` of `_clock.lua`; 0 without one."""
        if self.job.lease_until_ms > now_ms + lease_ms:
            self.job = replace(self.job, lease_until_ms=now_ms + lease_ms)
        return max(0, self.job.lease_until_ms - now_ms)

    def renew(self, lease: Lease, lease_ms: int, now_ms: int) -> LeaseStatus:
        """The lease's status; it is lengthened to `lease_ms`, if those are given."""
        job = self.job
        if not self.is_leased_as(lease) or job.state is JobState.QUEUED:
            return LeaseStatus.FENCED
        if job.state.is_terminal:
            return LeaseStatus.TERMINAL
        if 0 < job.deadline_ms <= now_ms:
            return LeaseStatus.EXPIRED
        if lease_ms:
            self.job = replace(job, lease_until_ms=now_ms + lease_ms)
        return LeaseStatus.OK

    def checkpoint(self, lease: Lease, batch: TokenBatch, now_ms: int) -> LeaseStatus:
        """Append tokens under a lease, if it is the newest and they go on from the stored ones."""
        if not self.is_leased_as(lease) or self.job.state is JobState.QUEUED:
            return self.refuse(LeaseStatus.FENCED)
        if self.job.state is not JobState.IN_PROGRESS:
            return self.refuse(LeaseStatus.TERMINAL)
        if self.job.token_count != batch.index:
            return LeaseStatus.GAP
        self.append(batch, now_ms)
        return LeaseStatus.OK

    def append(self, batch: TokenBatch, now_ms: int) -> None:
        """Append tokens after the stored ones."""
        first_ms = self.job.first_token_ms or (0 if batch.index else now_ms)
        count = batch.index + len(batch.token_ids)
        self.job = replace(self.job, token_count=count, first_token_ms=first_ms)
        self.write(
            now_ms,
            EntryKind.TOKENS,
            index=batch.index,
            token_ids=batch.token_ids,
            delta=batch.delta,
            shown=-1 if batch.shown is None else batch.shown,
        )

    def is_unjudged(self, ending: Ending) -> bool:
        """True where the ending is an answer that steps after the predictor judge first."""
        has_steps = self.job.plan is not None and bool(self.job.plan.after)
        is_answer = ending.state in (JobState.COMPLETED, JobState.INCOMPLETE)
        return has_steps and is_answer and not ending.incomplete

    def validate(self, ending: Ending, outcome: str, now_ms: int) -> None:
        """Keep the answer for the steps that judge it."""
        job = self.job
        assert job.plan is not None  # noqa: S101 (`is_unjudged`)
        usage = _stored(ending.usage, job.usage)
        self.job = replace(
            job,
            state=JobState.IN_PROGRESS,
            step=job.plan.first_after,
            candidate=_stored(ending.result, None),
            candidate_state=ending.state,
            usage=usage_with(usage, self.spent),
            gpu_ms=job.gpu_ms + ending.gpu_ms,
            lease_owner="",
            lease_until_ms=0,
            history=closed(job.history, outcome, now_ms),
        )
        self.lease_id = ""
        self.write(
            now_ms, EntryKind.STATE, state=JobState.IN_PROGRESS, phase="validating", at_ms=now_ms
        )

    def answer_again(self, kind: str, model: str, now_ms: int) -> None:
        """Throw the answer away, and queue the job for another."""
        last = replace(self.job.history[-1], outcome=REJECTED) if self.job.history else None
        history = (*self.job.history[:-1], last) if last else ()
        self.spent, self.must_restart = spent_with(self.job.usage or {}, kind, model), True
        self.job = replace(
            self.job, state=JobState.QUEUED, history=history, candidate=None, candidate_state=None
        )
        self.entries.clear()
        self.write_state(now_ms)

    def _used(self, ending: Ending) -> Any:
        """The usage of a job that ends, with what was spent on answers that were not judged."""
        if not self.spent or self.job.candidate_state is not None:
            return _stored(ending.usage, self.job.usage)
        return usage_with(_stored(ending.usage, _NO_USAGE), self.spent)

    def judged(self, reason: str, result: Mapping[str, Any] | None) -> Ending:
        """The end with the answer that steps let pass, changed or not; with a `reason`, without its text."""
        state = self.job.candidate_state or JobState.COMPLETED
        if reason:
            return Ending(state=JobState.INCOMPLETE, result=self.job.candidate, incomplete=reason)
        return Ending(state=state, result=result or self.job.candidate)

    def show_anew(self, batches: Sequence[TokenBatch], now_ms: int) -> None:
        """Tokens of a changed answer in place of those in the stream."""
        if batches:
            self.entries.clear()
            self.must_restart, first_ms = True, self.job.first_token_ms
            self.answer(batches, now_ms)
            self.job = replace(self.job, first_token_ms=first_ms)

    def give_back(self, outcome: str, now_ms: int) -> None:
        """End the running attempt and queue the job for another."""
        self.job = replace(
            self.job,
            state=JobState.QUEUED,
            lease_owner="",
            lease_until_ms=0,
            history=closed(self.job.history, outcome, now_ms),
        )
        self.write_state(now_ms)

    def end(self, ending: Ending, outcome: str, keep_ms: int, now_ms: int) -> None:
        """The only transition into a terminal state; a running attempt is closed with `outcome`."""
        job = self.job
        is_closing = job.state is JobState.IN_PROGRESS and outcome
        hold = job.plan.hold if job.plan else Hold.NONE
        is_over = ending.state is JobState.CANCELLED or (
            ending.state is JobState.FAILED and not ending.is_dead_letter
        )
        if ending.incomplete or (hold is Hold.WHOLE and is_over):
            self.entries.clear()
        keeps_candidate = ending.state is JobState.FAILED and ending.is_dead_letter
        self.job = replace(
            job,
            state=ending.state,
            finished_ms=now_ms,
            gpu_ms=job.gpu_ms + ending.gpu_ms,
            lease_owner="",
            lease_until_ms=0,
            result=served_again(
                job.id,
                _stored(stored_result(ending), job.result),
                ending.usage,
                job.created_ms,
                ending.cache,
            ),
            cache=ending.cache or job.cache,
            usage=self._used(ending),
            error=ending.error or job.error,
            incomplete=ending.incomplete,
            candidate=job.candidate if keeps_candidate else None,
            candidate_state=job.candidate_state if keeps_candidate else None,
            is_dead_letter=ending.is_dead_letter,
            history=closed(job.history, outcome, now_ms) if is_closing else job.history,
        )
        if ending.state is not JobState.FAILED:
            self.job, self.prepared_sha = replace(self.job, prepared=None), ""
        self.expires_ms = now_ms + keep_ms
        is_shown = hold is not Hold.NONE and self.job.hold is Hold.NONE and not ending.incomplete
        self.write(
            now_ms,
            EntryKind.STATE,
            state=self.job.state,
            at_ms=now_ms,
            shown=self.job.token_count if is_shown else -1,
        )

    def answer(self, batches: Sequence[TokenBatch], now_ms: int) -> None:
        """Write the tokens of an answer that no predictor made."""
        self.write(now_ms, EntryKind.ATTEMPT, is_restart=self.must_restart, at_ms=now_ms)
        self.job = replace(self.job, first_token_ms=0)
        for batch in batches:
            self.append(batch, now_ms)

    def queue_again(
        self, request: JobRequest | None, sha: str, plan: Plan | None, now_ms: int
    ) -> None:
        """Queue an ended job again, with an attempt number that it never had; with another `request`, its `sha` and
        its `plan`, from the first step and the first token.
        """
        is_judged_again = self.job.candidate_state is not None and request is None
        self.job = replace(
            self.job,
            state=JobState.IN_PROGRESS if is_judged_again else JobState.QUEUED,
            attempt=self.job.attempt + 1,
            is_dead_letter=False,
            finished_ms=0,
            deadline_ms=0,
            error=None,
            result=None,
            usage=self.job.usage if is_judged_again else None,
            pipeline=tuple(each for each in self.job.pipeline if each.step != self.job.step),
        )
        if request is not None:
            self.sha, self.is_rejected = sha, False
            self.must_restart = self.job.token_count > 0
            prompt, step = prompt_start(request), plan.first if plan else ""
            self.job = replace(self.job, request=request, prompt=prompt, token_count=0)
            self.job = replace(self.job, plan=plan, step=step, pipeline=(), prepared=None)
            self.job = replace(self.job, candidate=None, candidate_state=None)
            self.spent = None
            self.prepared_sha = ""
        self.failures, self.expires_ms = 0, 0
        self.write_state(now_ms)

    def write_state(self, now_ms: int) -> None:
        """Add the job's state to its stream."""
        self.write(now_ms, EntryKind.STATE, state=self.job.state, at_ms=now_ms)

    def write(self, now_ms: int, kind: EntryKind, **fields: Any) -> None:
        """Add an entry to the job's stream."""
        last = cursor_order(self.entries[-1].cursor) if self.entries else (0, 0)
        at_ms, sequence = max((now_ms, 0), (last[0], last[1] + 1))
        cursor = f"{at_ms}-{sequence}"
        self.entries.append(
            StreamEntry(cursor=cursor, kind=kind, attempt=self.job.attempt, **fields)
        )


def closed(
    history: tuple[AttemptRecord, ...], outcome: str, now_ms: int
) -> tuple[AttemptRecord, ...]:
    """The history with its last attempt closed, unless it is: its answer waits for steps."""
    if not history or history[-1].ended_ms:
        return history
    return (*history[:-1], replace(history[-1], outcome=outcome, ended_ms=now_ms))


def is_suspect(failures: int, max_attempts: int, history: tuple[AttemptRecord, ...]) -> bool:
    """True before the last attempt of a job that has lost one."""
    return failures == max_attempts - 1 and any(each.outcome == "lost" for each in history)


LATE: Final = JobError(code="expired", message="the deadline passed before the job ended")


def why_over(job: Job, failures: int, max_attempts: int, now_ms: int) -> JobError | None:
    """Why a job gets no further attempt."""
    if 0 < job.deadline_ms <= now_ms:
        return LATE
    if failures >= max_attempts:
        lost = f"every attempt was lost ({failures} of {max_attempts})"
        return JobError(code="exhausted", message=lost)
    return None


_NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _stored(value: Mapping[str, Any] | None, before: Any) -> Any:
    """The value that a reader gets back: JSON as Redis stores it, or the previous value."""
    return before if value is None else orjson.loads(orjson.dumps(value))


def dead_letter(error: JobError) -> Ending:
    """The end of a job that can be redriven."""
    return Ending(state=JobState.FAILED, error=error, is_dead_letter=True)

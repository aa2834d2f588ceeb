"""A leased job with what its attempt starts from, and the engine call that it makes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from eventing.cloudevent.event import to_record
from eventing.cloudevent.job_event import request_event
from eventing.job.job import API_SOURCE, Job
from eventing.job.plan import TOOLS_STEP, Hold
from eventing.job.store import Acquired
from predictor.engine.engine import PREFIX, EngineRequest, TurnIds, known_prefix
from predictor.generation.checkpoint import Checkpoint
from predictor.generation.generation import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A leased job and the start state of its attempt. `bug` is the exception of the check of its request."""

    job: Job
    attempt: Attempt
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    bug: Exception | None = None
    hold: Hold = Hold.NONE
    may_call_tools: bool = False  #: its answer may be a turn, after which another follows

    @classmethod
    def of(
        cls, job: Job, acquired: Acquired, checked: bool | Exception, asked_s: float
    ) -> "Leased":
        """From the store's answer to a request sent at `asked_s`."""
        attempt = Attempt(
            lease=acquired.lease,
            acquired_s=asked_s,
            token_count=acquired.token_count,
            can_resume=checked is not False,
            void_count=acquired.void_count,
            turn_begin=acquired.turn_begin,
            following=_following(job, acquired),
            is_reported_to_caller=job.source == API_SOURCE,
        )
        bug = checked if isinstance(checked, Exception) else None
        return cls(
            job=job,
            attempt=attempt,
            bug=bug,
            hold=acquired.hold,
            may_call_tools=acquired.first_after == TOOLS_STEP,
        )

    @property
    def continues_turns(self) -> bool:
        """True where the ids of the turns so far can stand in the next prompt: all were made under a note."""
        notes = [known_prefix(turn.usage.get(PREFIX)) or {} for turn in self.job.turns]
        return self.may_call_tools and bool(notes) and all("prompt" in note for note in notes)


def _following(job: Job, acquired: Acquired) -> bytes:
    """The event of the first step after the attempt, as its record has it; empty for a job that only its event told of,
    and where no step follows. `job.request` is what runs.
    """
    if not acquired.first_after or job.plan is None:
        return b""
    step, number = acquired.first_after, acquired.lease.attempt
    return to_record(
        request_event(replace(job, step=step, attempt=number, prepared=None, turns=()))
    )


def engine_request(
    job: Job,
    attempt: int,
    *,
    starts_over: bool = False,
    counts_throughout: bool = False,
    notes_prefix: bool = False,
    before: Sequence[int] = (),
) -> EngineRequest:
    """The engine call of an attempt; two attempts of a job may overlap in one engine for a moment. `before` are the ids
    of its turns so far, where they are known.
    """
    return EngineRequest(
        f"{job.id}-{attempt}",
        job.request.url,
        job.request.body,
        tenant=job.tenant,
        idempotency_key=f"{job.id}.{len(job.turns)}" if job.turns else job.id,
        lane=job.lane,
        allows_fallback=job.allows_fallback,
        starts_over=starts_over,
        counts_throughout=counts_throughout,
        notes_prefix=notes_prefix,
        prefix=known_prefix(job.turns[-1].usage.get(PREFIX)) if job.turns else None,
        turns=tuple(
            TurnIds(
                known_prefix(turn.usage.get(PREFIX)) or {}, tuple(before[turn.begin : turn.end])
            )
            for turn in job.turns
            if before
        ),
    )

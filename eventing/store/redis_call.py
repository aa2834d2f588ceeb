"""Calls of the store's scripts that take many arguments, and what their answers mean. Pure.

Called by the stores in Redis.
"""

from collections.abc import Sequence
from typing import Final

from eventing.errors import (
    ApprovalAnswered,
    BrokerUnavailable,
    ConversationLocked,
    ConversationMoved,
    IdempotencyConflict,
    JobDeleted,
    NotCached,
    NotFound,
    TorporError,
)
from eventing.job.job import Job, JobId, JobRequest, event_identity
from eventing.job.plan import Hold, Plan
from eventing.job.store import (
    Acquired,
    AcquireStatus,
    Lease,
    LeaseSettings,
    NewJob,
    Publication,
    TokenBatch,
)
from eventing.known_fields import known_value
from eventing.redis import keys
from eventing.redis.script import Argument, Call
from eventing.store.job_record.fields import fingerprint, new_fields, plan_fields, shown_fields
from eventing.store.redis_cache import ask_args

LOCKED: Final = "another response is adding to this conversation; try again when it has ended"


def submit_call(
    new: NewJob, publication: Publication, settings: LeaseSettings, *, has_objects: bool
) -> Call:
    """The call of `submit.lua` for a job."""
    request, most = new.request.to_json(), publication.max_unpublished
    args: list[Argument] = [
        new.id,
        fingerprint(request, new.tenant),
        new.options_sha,
        new.deadline_ms,
        settings.republish_after_s * 1000,
        "" if most is None else most,
        new.lane,
        new.tenant,
        event_identity(new.source, new.event_id, new.tenant),
        publication.event,
        "" if new.turn is None or new.turn.seq is None else new.turn.seq,
        ask_args(new, settings.retention_s, has_objects=has_objects),
        *queue_args(publication),
        *new_fields(new, request, publication.queues, publication.after_queues),
    ]
    job_keys = [keys.job(new.id), keys.jobs_of(new.tenant)]
    if new.turn is not None:
        job_keys.append(keys.conversation(new.turn.id))
    if new.carried is not None:
        job_keys.append(keys.job(JobId(new.carried.job_id)))
    return "submit", job_keys, args


def acquire_call(
    job_id: JobId,
    owner: str,
    settings: LeaseSettings,
    *,
    lease_id: str,
    can_resume: bool,
    is_exclusive: bool,
    expected: NewJob | None,
) -> Call:
    """The call of `acquire.lua`, for a lease that will have this id."""
    sha = fingerprint(expected.request.to_json(), expected.tenant) if expected else ""
    args: list[Argument] = [
        owner,
        settings.lease_ms,
        settings.max_attempts,
        int(can_resume),
        settings.dead_letter_retention_s,
        int(is_exclusive),
        sha,
        lease_id,
        job_id,
    ]
    return "acquire", job_keys(job_id), args


def acquired_from(answer: Sequence[bytes], job_id: JobId, lease_id: str) -> Acquired:
    """What `acquire.lua` answered."""
    status = AcquireStatus(answer[0].decode())
    match status:
        case AcquireStatus.ACQUIRED:
            attempt, tokens, void = (int(number) for number in answer[1:4])
            return Acquired(
                status=status,
                lease=Lease(job_id, attempt, lease_id),
                token_count=tokens,
                void_count=void,
                hold=known_value(Hold, answer[4].decode()),
                turn_begin=int(answer[5]),
                first_after=answer[6].decode(),
            )
        case AcquireStatus.HELD:
            return Acquired(status=status, lease_left_ms=int(answer[1]))
        case _:
            return Acquired(status=status)


def redrive_call(
    job: Job,
    request: JobRequest | None,
    publication: Publication,
    plan: Plan | None,
    settings: LeaseSettings,
) -> Call:
    """The call of `redrive.lua`; with a `request`, the job gets that one and its plan."""
    args: list[Argument] = [
        int(request is not None),
        job.attempt,
        settings.republish_after_s * 1000,
        int(publication.max_unpublished is not None),
        publication.event,
        *queue_args(publication),
    ]
    if request is not None:
        text = request.to_json()
        sha = fingerprint(text, job.tenant)
        shown = shown_fields(request).items()
        args += ["request", text, "sha", sha, *(part for pair in shown for part in pair)]
        args += plan_fields(plan, publication.after_queues)
        args += fallback_args(publication)
    return "redrive", job_keys(job.id), args


def queue_args(publication: Publication) -> list[Argument]:
    """The queues of a job's event, after their number."""
    return [len(publication.queues), *publication.queues]


def fallback_args(publication: Publication) -> list[Argument]:
    """The field, value pair of a new fallback."""
    return [] if publication.fallback is None else ["fallback", publication.fallback]


def refusal_of(status: bytes, publication: Publication) -> TorporError:
    """Why the script recorded nothing."""
    match status:
        case b"deleted":
            return JobDeleted("the job of this identity was deleted")
        case b"locked":
            return ConversationLocked(LOCKED)
        case b"moved":
            return ConversationMoved("the conversation has grown meanwhile")
        case b"gone":
            return NotFound("the conversation was deleted")
        case b"answered":
            return ApprovalAnswered("these approvals were answered before")
        case b"unasked":
            return NotFound("what the approvals were asked for is gone, or their time has passed")
        case b"uncached":
            return NotCached("no answer is kept for this request")
        case b"full":
            most = publication.max_unpublished
            return BrokerUnavailable(f"the broker has yet to take {most} jobs", 2.0)
        case _:
            return IdempotencyConflict(
                "the same identity was used before with another request or other options", "body"
            )


def job_keys(job_id: JobId) -> list[str]:
    """The keys of scripts that write a job and its stream."""
    return [keys.job(job_id), keys.tokens(job_id)]


def batch_args(batch: TokenBatch) -> list[Argument]:
    """Index, number of tokens, their ids, and what readers are shown."""
    ids = " ".join(map(str, batch.token_ids))
    return [batch.index, len(batch.token_ids), ids, batch.delta]


def append_args(batch: TokenBatch) -> list[Argument]:
    """The same, and the position up to which they are shown it."""
    return [*batch_args(batch), "" if batch.shown is None else batch.shown]

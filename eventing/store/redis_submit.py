"""The script call that records a job in Redis, and what its refusals mean.

Called by `eventing.store.redis_store` only.
"""

from typing import Final

from eventing.errors import (
    BrokerUnavailable,
    ConversationLocked,
    ConversationMoved,
    IdempotencyConflict,
    JobDeleted,
    NotCached,
    NotFound,
    TorporError,
    WrongState,
)
from eventing.job.job import JobId, event_identity
from eventing.job.store import LeaseSettings, NewJob, Publication
from eventing.redis import keys
from eventing.redis.script import Argument, Call
from eventing.store import job_record
from eventing.store.redis_cache import ask_args

LOCKED: Final = "another response is adding to this conversation; try again when it has ended"


def submit_call(
    new: NewJob, publication: Publication, settings: LeaseSettings, *, has_objects: bool
) -> Call:
    """The call of `submit.lua` for a job."""
    request, most = new.request.to_json(), publication.max_unpublished
    args: list[Argument] = [
        new.id,
        job_record.fingerprint(request, new.tenant),
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
        *job_record.new_fields(new, request, publication.queues, publication.after_queues),
    ]
    job_keys = [keys.job(new.id), keys.jobs_of(new.tenant)]
    if new.turn is not None:
        job_keys.append(keys.conversation(new.turn.id))
    if new.carried is not None:
        job_keys.append(keys.job(JobId(new.carried.job_id)))
    return "submit", job_keys, args


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
            return WrongState("these approvals were answered before")
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

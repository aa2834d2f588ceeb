"""Every error that crosses a package boundary, as one tree.

    TorporError
    ├── BadRequest              the sender's fault; never retried           400
    │   ├── NotACloudEvent      not an event at all                         400
    │   ├── UnsupportedMode     batched events                              415
    │   ├── InvalidJob          an event, but not a job we can run          422
    │   ├── ContextExceeded     the prompt alone is longer than the context 422
    │   ├── IdempotencyConflict same key, other body                        409
    │   │   └── JobDeleted      same key, and its job was deleted           409
    │   ├── EventTooLarge       over what the broker takes                  413
    │   └── EventRefused        the broker will never take this event       400
    ├── NotFound                no such job, or not yours                   404
    ├── WrongState              the job is not in a state for this          409
    └── Unavailable             store, broker or engine away: retry later   503
        ├── StoreUnavailable
        ├── BrokerUnavailable
        ├── NewerRecord         written by a newer version: upgrade us
        └── Overloaded          a bounded queue is full

Each class fixes what a caller may do: `status` (HTTP), `code` (public, stable), `is_retryable`.
Messages are safe to show: they never hold a prompt, an output or a secret.
"""

from collections.abc import Mapping
from typing import ClassVar


class TorporError(Exception):
    """Root of the tree; an error whose message may be shown to a client."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    is_retryable: ClassVar[bool] = False

    headers: Mapping[str, str] = {}
    """What a refusal over HTTP says in its headers."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(TorporError):
    """The request can never work as it is; `field` names what to change (a JSON path, empty for the
    whole).
    """

    status = 400
    code = "bad_request"

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class NotACloudEvent(BadRequest):
    """The HTTP message is not a CloudEvent 1.0."""

    code = "not_a_cloudevent"


class UnsupportedMode(BadRequest):
    """A batch of events, which the data plane does not take (CloudEvents HTTP binding 3.3)."""

    status = 415
    code = "unsupported_mode"


class InvalidJob(BadRequest):
    """A well-formed event whose data is not a job that could ever run."""

    status = 422
    code = "invalid_job"


class ContextExceeded(BadRequest):
    """The prompt alone is longer than the model's context."""

    status = 422
    code = "context_length_exceeded"


class IdempotencyConflict(BadRequest):
    """The same identity was used before with another body."""

    status = 409
    code = "idempotency_conflict"


class JobDeleted(IdempotencyConflict):
    """The job of this identity was deleted; its id is not used again."""

    code = "job_deleted"


class EventTooLarge(BadRequest):
    """The job's event is over what the broker takes."""

    status = 413
    code = "event_too_large"


class EventRefused(BadRequest):
    """The broker refused an event for good: it would refuse it again."""

    code = "refused_by_broker"


class NotFound(TorporError):
    """No such thing, or one of another tenant: the two are not told apart."""

    status = 404
    code = "not_found"


class WrongState(TorporError):
    """The job is not in a state that allows what was asked."""

    status = 409
    code = "wrong_state"


class Unavailable(TorporError):
    """Something we depend on is away; nothing was accepted. Come back after `retry_after_s`."""

    status = 503
    code = "unavailable"
    is_retryable = True

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreUnavailable(Unavailable):
    """Redis did not answer in time, refused a write, or is loading."""

    code = "store_unavailable"


class BrokerUnavailable(Unavailable):
    """The broker did not confirm an event."""

    code = "broker_unavailable"


class NewerRecord(Unavailable):
    """A record was written by a newer version, which means something else by it than this one would."""

    code = "newer_record"


class Overloaded(Unavailable):
    """A bounded queue is full."""

    code = "overloaded"


def first_of(error: BaseException) -> BaseException:
    """The first error in a group of groups, for a caller who is owed one; any other is itself.

    Raise it in an `except ExceptionGroup`: what is raised in an `except*` comes out in a group
    again before Python 3.11.4 (python/cpython#103590).
    """
    first = error
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first

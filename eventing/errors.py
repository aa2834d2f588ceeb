"""Every error that crosses a package boundary, as one tree.

    TorporError
    ├── BadRequest              the caller's error; never retried           400
    │   ├── NotACloudEvent      not an event at all                         400
    │   ├── UnsupportedMode     batched events                              415
    │   ├── InvalidJob          an event, but not a job we can run          422
    │   ├── ContextExceeded     the prompt alone is longer than the context 422
    │   ├── ResultTooLarge      the answer is larger than the store keeps   422
    │   ├── IdempotencyConflict same key, other body                        409
    │   │   └── JobDeleted      same key, and its job was deleted           409
    │   ├── ApprovalAnswered    answered before, or otherwise               409
    │   ├── EventTooLarge       over the broker's size limit                413
    │   └── EventRefused        the broker refused the event for good       400
    ├── Unauthorized            no credential, or not a valid one           401
    ├── Forbidden               the credential does not permit it           403
    ├── NotFound                no such object, or another tenant's         404
    ├── NotCached               only-if-cached, and no answer is kept       504
    ├── ObjectGone              its large result is no longer stored        410
    ├── WrongState              the job's state does not allow it           409
    ├── ConversationLocked      another response is adding to it            409
    ├── ConversationMoved       it has grown since it was read              409
    └── Unavailable             store, broker or engine: retry later        503
        ├── StoreUnavailable
        ├── BrokerUnavailable
        ├── ObjectsUnavailable
        ├── NewerRecord         written by a newer version: upgrade this one
        └── Overloaded          a bounded queue is full

Each class has a `status` (HTTP), a `code` (public, stable) and `is_retryable`.
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
    """Extra headers of the HTTP error response."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(TorporError):
    """The request can never succeed unchanged; `field` names what to change (a JSON path, empty for the whole
    request).
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
    """A batch of events, which the data plane does not accept (CloudEvents HTTP binding 3.3)."""

    status = 415
    code = "unsupported_mode"


class InvalidJob(BadRequest):
    """A well-formed event whose data is not a valid job."""

    status = 422
    code = "invalid_job"


class ContextExceeded(BadRequest):
    """The prompt alone is longer than the model's context."""

    status = 422
    code = "context_length_exceeded"


class ResultTooLarge(BadRequest):
    """The answer is larger than what the store keeps: many logprobs, or many choices, of a long text."""

    status = 422
    code = "result_too_large"


class IdempotencyConflict(BadRequest):
    """The same identity was used before with another body."""

    status = 409
    code = "idempotency_conflict"


class ApprovalAnswered(BadRequest):
    """The approvals were answered before; where `field` names one, otherwise."""

    status = 409
    code = "approval_answered"


class JobDeleted(IdempotencyConflict):
    """The job of this identity was deleted; its id is not used again."""

    code = "job_deleted"


class EventTooLarge(BadRequest):
    """The job's event is over the broker's size limit."""

    status = 413
    code = "event_too_large"


class EventRefused(BadRequest):
    """The broker refused the event for good: a retry would be refused as well."""

    code = "refused_by_broker"


class Unauthorized(TorporError):
    """There is no credential, or it is not valid."""

    status = 401
    code = "unauthorized"


class Forbidden(TorporError):
    """The credential is valid, but lacks the permission."""

    status = 403
    code = "forbidden"


class NotFound(TorporError):
    """There is no such object, or it belongs to another tenant; the caller cannot tell which."""

    status = 404
    code = "not_found"


class ObjectGone(TorporError):
    """A large result is not in the object store any more, and its job still is."""

    status = 410
    code = "result_gone"


class NotCached(TorporError):
    """The caller accepts a cached answer only, and there is none (RFC 9111, section 5.2.1.7)."""

    status = 504
    code = "not_cached"


class WrongState(TorporError):
    """The job's state does not allow the operation."""

    status = 409
    code = "wrong_state"


class ConversationLocked(TorporError):
    """Another response that has not ended is adding to the conversation."""

    status = 409
    code = "conversation_locked"


class ConversationMoved(TorporError):
    """The conversation has grown between reading it and recording the job that goes on from it."""

    status = 409
    code = "conversation_moved"


class Unavailable(TorporError):
    """A dependency is unavailable; nothing was accepted. Retry after `retry_after_s`."""

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


class ObjectsUnavailable(Unavailable):
    """The object store cannot be written or read now."""

    code = "objects_unavailable"


class NewerRecord(Unavailable):
    """A record was written by a newer version in a format that this version cannot read."""

    code = "newer_record"


class Overloaded(Unavailable):
    """A bounded queue is full."""

    code = "overloaded"


def first_of(error: BaseException) -> BaseException:
    """The first error inside nested exception groups; any other exception is returned unchanged.

    Raise it in an `except ExceptionGroup`: before Python 3.11.4, an exception raised in an `except*` is wrapped in
    a group again (python/cpython#103590).
    """
    first = error
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first

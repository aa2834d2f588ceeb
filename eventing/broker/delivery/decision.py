"""The decision after a delivery: settle, retry later, give back, or dead-letter. Pure.

Called by the pump. The rules are Knative's (knative/eventing `pkg/kncloudevents/retries.go`, SelectiveRetry and
`backoff`; data-plane specification): 2xx is success; no answer, 404, 408, 409, 429 and 5xx are retried; any other
status is not. A delivery that was not accepted (no connection, or 503) does not count as a try: the event goes back
to the queue for a pump whose subscriber is ready, and is given up once no subscriber has accepted it for as long as
its retries would have lasted.
"""

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Final

_RETRIED: Final = frozenset({404, 408, 409, 429})
_OBEYS_RETRY_AFTER: Final = frozenset({429, 503})
_LONGEST_BACKOFF_S: Final = 24 * 3600.0


class BackoffPolicy(StrEnum):
    """How the wait between retries grows: `linear` is delay x n, `exponential` delay x 2^n, n from 0."""

    LINEAR = "linear"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySpec:
    """A Trigger's `delivery`, in seconds. `retry` is the number of tries after the first; `timeout_s` limits one
    try.
    """

    retry: int = 0
    backoff_policy: BackoffPolicy = BackoffPolicy.EXPONENTIAL
    backoff_delay_s: float = 0.2
    timeout_s: float = 30.0
    dead_letter_sink: str = ""
    retry_after_max_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberResponse:
    """A subscriber's answer. `status` is 0 when there was none, `is_unreached` when no connection was made, so that
    the event cannot have arrived; `body` is the beginning of an error body.
    """

    status: int
    retry_after_s: float | None = None
    is_unreached: bool = False
    body: bytes = b""

    @property
    def is_refusal(self) -> bool:
        """True when the subscriber did not accept the event, so that no work was done for it."""
        return self.is_unreached or self.status == HTTPStatus.SERVICE_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Delivered:
    """The subscriber has handled the event; a reply may be routed."""

    may_reply: bool


@dataclass(frozen=True, slots=True)
class Retry:
    """Deliver again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Nack:
    """The event was not accepted: back to the queue without counting a try (AMQP's `basic.nack` with requeue)."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The event cannot be delivered and becomes a dead letter."""

    reason: str


def decide(
    spec: DeliverySpec, answer: SubscriberResponse, tries: int
) -> Delivered | Retry | DeadLetter:
    """The decision for the answer to delivery number `tries` (from 1)."""
    if 200 <= answer.status < 300:
        return Delivered(may_reply=answer.status == 200)
    if not is_retried(answer.status):
        return DeadLetter(f"the subscriber refused it with {answer.status}")
    if tries > spec.retry:
        return DeadLetter(f"no answer but {answer.status or 'silence'} in {tries} deliveries")
    delay_s = backoff_s(spec, tries)
    if answer.retry_after_s is not None and answer.status in _OBEYS_RETRY_AFTER:
        delay_s = max(delay_s, min(answer.retry_after_s, spec.retry_after_max_s))
    return Retry(delay_s)


def decide_refused(spec: DeliverySpec, refusals: int, refused_s: float) -> Nack | DeadLetter:
    """The decision for an event that was not accepted, after `refusals` earlier refusals, the first of them
    `refused_s` ago.
    """
    if refusals >= spec.retry and refused_s >= span_s(spec):
        return DeadLetter(f"not accepted in {refusals + 1} deliveries")
    return Nack()


def is_retried(status: int) -> bool:
    """True for statuses after which the same event may succeed; 0 stands for no answer."""
    return status == 0 or status in _RETRIED or status >= 500


def backoff_s(spec: DeliverySpec, tries: int) -> float:
    """The wait after delivery number `tries` failed. Knative's n is the attempt number of go-retryablehttp, which
    counts from 0 (its documentation says otherwise), so a linear policy retries at once the first time.
    """
    match spec.backoff_policy:
        case BackoffPolicy.LINEAR:
            return min(spec.backoff_delay_s * (tries - 1), _LONGEST_BACKOFF_S)
        case BackoffPolicy.EXPONENTIAL:
            return min(spec.backoff_delay_s * 2.0 ** min(tries - 1, 64), _LONGEST_BACKOFF_S)


def retry_after_s(header: str, now_s: float) -> float | None:
    """The wait of a `Retry-After` header: whole seconds, or an HTTP date relative to `now_s` (epoch seconds). None
    when it is neither.
    """
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        at = parsedate_to_datetime(header)
        # One of HTTP's three date forms has no zone; all three are GMT.
        return max((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now_s, 0.0)
    except (ValueError, OverflowError):
        return None


def span_s(spec: DeliverySpec) -> float:
    """How long all retries last when every try is refused at once; must exceed the longest job."""
    return sum(backoff_s(spec, n) for n in range(1, spec.retry + 1))

"""The retry schedule of webhooks: that of Standard Webhooks, for 72 hours. Pure.

Called by the sender after every try. Must not know HTTP clients or Redis.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

PROMISED_S: Final = 72 * 3600.0
"""How long a delivery is retried (as at OpenAI)."""
_PUBLISHED_S: Final = (
    0.0,
    5.0,
    5 * 60.0,
    30 * 60.0,
    2 * 3600.0,
    5 * 3600.0,
    10 * 3600.0,
    14 * 3600.0,
    20 * 3600.0,
)
SCHEDULE_S: Final = (*_PUBLISHED_S, PROMISED_S - sum(_PUBLISHED_S))
"""The pause before each try. The standard's own last pause of 24 h would end at 75 h 35 min; ours ends at 72 h,
after 20 h 25 min (docs/adr/0060).
"""
JITTER: Final = 0.05
"""Each pause is varied by up to this share, so that deliveries that failed together are not retried together."""
LONGEST_RETRY_AFTER_S: Final = 24 * 3600.0


class TryVerdict(StrEnum):
    """The state of a delivery after a try."""

    DELIVERED = "delivered"  #: the receiver answered 2xx
    PENDING = "pending"  #: will be tried again
    FAILED = "failed"  #: no try is left
    GONE = "gone"  #: 410: the endpoint is switched off
    REFUSED = "refused"  #: the address is refused; a retry would not help
    DROPPED = "dropped"  #: its endpoint was deleted or switched off meanwhile

    @property
    def is_settled(self) -> bool:
        return self is not TryVerdict.PENDING


@dataclass(frozen=True, slots=True)
class TryOutcome:
    """The result of a try: an HTTP status, or 0 and an error code."""

    status: int = 0
    error: str = ""
    retry_after: str = ""
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """The decision after a try; `delay_s` counts from that try. `pause_s` also delays the receiver's other
    deliveries.
    """

    verdict: TryVerdict
    delay_s: float = 0.0
    pause_s: float = 0.0


def decide(
    tries: int, outcome: TryOutcome, now_s: float, draw: random.Random, schedule_s: Sequence[float]
) -> RetryDecision:
    """The decision after try number `tries` (from 1). A Retry-After can lengthen a pause, never shorten it, and
    jitter does not shorten it either.
    """
    if 200 <= outcome.status < 300:
        return RetryDecision(TryVerdict.DELIVERED)
    if outcome.status == 410:
        return RetryDecision(TryVerdict.GONE)
    if outcome.is_refused:
        return RetryDecision(TryVerdict.REFUSED)
    asked_s = retry_after_s(outcome.retry_after, now_s)
    pause_s = asked_s if outcome.status in (429, 502, 503, 504) else 0.0
    if tries >= len(schedule_s):
        return RetryDecision(TryVerdict.FAILED, pause_s=pause_s)
    planned_s = schedule_s[tries] * draw.uniform(1 - JITTER, 1 + JITTER)
    if asked_s > planned_s:
        planned_s = asked_s * draw.uniform(1, 1 + JITTER)
    return RetryDecision(TryVerdict.PENDING, delay_s=planned_s, pause_s=pause_s)


def retry_after_s(text: str, now_s: float) -> float:
    """The seconds of a Retry-After header (RFC 9110: seconds or a date), at most a day; 0 for none, or an invalid
    one.
    """
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return min(float(text), LONGEST_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return 0.0
    at = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    wait_s = (at - datetime.fromtimestamp(now_s, UTC)).total_seconds()
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)

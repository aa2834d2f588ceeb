"""What an answer of a provider that is no answer means for a job. Pure.

Called by `predictor.engine.upstream.engine`. Messages carry the provider's own code and field, never its sentence,
which may quote the prompt.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from eventing.errors import BadRequest, ContextExceeded, Overloaded, TorporError, Unavailable
from predictor.engine.upstream.rate_headers import UNSAID, RateLimits, rate_limits
from predictor.errors import EngineRequestError

_WORD: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,80}\Z")
_LONGEST_RETRY_S: Final = 600.0
_RETRY_S: Final = 1.0
_AWAY: Final = frozenset({408, 503, 529})
"""The provider does not take the call now, and has not begun it (529 is Anthropic's «overloaded»)."""
_OF_THE_KEY: Final = frozenset({401, 402, 403})


class UpstreamFailed(EngineRequestError):
    """The provider failed this call, or its answer broke off. Counts as an attempt."""

    code = "upstream_failed"


class UpstreamUnavailable(Unavailable):
    """The provider cannot be reached, or takes no calls now: the job waits. `is_reached` when it has answered."""

    code = "upstream_unavailable"

    def __init__(
        self, message: str, retry_after_s: float = 1.0, *, is_reached: bool = False
    ) -> None:
        super().__init__(message, retry_after_s)
        self.is_reached = is_reached


class UpstreamRateLimited(Overloaded):
    """The provider's rate limit is used up: the job waits. `limits` are what its answer said of them."""

    code = "upstream_rate_limited"

    def __init__(
        self, message: str, retry_after_s: float = 1.0, limits: RateLimits = UNSAID
    ) -> None:
        super().__init__(message, retry_after_s)
        self.limits = limits


class UpstreamRefused(BadRequest):
    """The provider refuses this call for good."""

    status = 422
    code = "upstream_refused"


class UpstreamKeyRefused(BadRequest):
    """The provider refuses our credentials, or they have no credit: an operator must act, and no retry helps."""

    status = 502
    code = "upstream_key_refused"


def error_of(status: int, headers: Mapping[str, str], body: object) -> TorporError:
    """The error for an answer with a `status` that is not 200. `body` is its JSON, or None."""
    said = _error_object(body)
    code, field = _word(said.get("code")) or _word(said.get("type")), _word(said.get("param"))
    what = f"the provider answered {status}" + (f" ({code})" if code else "")
    if status == 429 and code == "insufficient_quota":
        return UpstreamKeyRefused(what)
    if status == 429:
        return UpstreamRateLimited(what, retry_after_s(headers), rate_limits(headers))
    if status in _AWAY:
        return UpstreamUnavailable(what, retry_after_s(headers), is_reached=True)
    if status in _OF_THE_KEY:
        return UpstreamKeyRefused(what)
    if code == "context_length_exceeded":
        return ContextExceeded("the prompt is longer than the provider's context", field)
    if 400 <= status < 500:
        return UpstreamRefused(what, field)
    return UpstreamFailed(what)


def error_in_stream(chunk: Mapping[str, Any]) -> TorporError | None:
    """The error that a stream carries instead of a chunk; None for a chunk."""
    if "error" not in chunk:
        return None
    code = _word(_error_object(chunk).get("code"))
    return UpstreamFailed("the provider failed in the stream" + (f" ({code})" if code else ""))


def retry_after_s(headers: Mapping[str, str]) -> float:
    """How long to wait: `retry-after-ms` (OpenAI, Azure), or `retry-after` in seconds; at most ten minutes."""
    for name, unit in (
        ("retry-after-ms", 0.001),
        ("x-ms-retry-after-ms", 0.001),
        ("retry-after", 1),
    ):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if seconds >= 0:  # false for NaN
            return min(seconds, _LONGEST_RETRY_S)
    return _RETRY_S


def _error_object(body: object) -> Mapping[str, Any]:
    said = body.get("error") if isinstance(body, Mapping) else None
    return said if isinstance(said, Mapping) else {}


def _word(value: object) -> str:
    """A code or a field name; empty for anything that may be a sentence."""
    return value if isinstance(value, str) and _WORD.match(value) else ""

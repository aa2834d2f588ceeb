"""What the headers of an answer say of a provider's rate limits. Pure.

Called by `predictor.engine.upstream.engine`. OpenAI's (`x-ratelimit-limit-tokens`), Anthropic's
(`anthropic-ratelimit-tokens-limit`), and the IETF draft's in its three forms (`RateLimit-Policy` with `RateLimit`,
and the older `RateLimit-Limit`). Header names are lower-case here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_MINUTE_S: Final = 60.0
_MOST: Final = 10**15
_PARAMETER: Final = re.compile(r';\s*([a-z]+)\s*=\s*"?([^;,"\s]+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """What a minute allows, and what is left of it now; None where the answer does not say."""

    request_limit: int | None = None
    requests_left: int | None = None
    token_limit: int | None = None
    tokens_left: int | None = None


UNSAID: Final = RateLimits()
"""Of an answer without such headers."""


def rate_limits(headers: Mapping[str, str]) -> RateLimits:
    """The limits in the headers of an answer."""
    openai = RateLimits(
        request_limit=_number(headers, "x-ratelimit-limit-requests"),
        requests_left=_number(headers, "x-ratelimit-remaining-requests"),
        token_limit=_number(headers, "x-ratelimit-limit-tokens"),
        tokens_left=_number(headers, "x-ratelimit-remaining-tokens"),
    )
    if openai != UNSAID:
        return openai
    anthropic = RateLimits(
        request_limit=_number(headers, "anthropic-ratelimit-requests-limit"),
        requests_left=_number(headers, "anthropic-ratelimit-requests-remaining"),
        token_limit=_number(headers, "anthropic-ratelimit-tokens-limit"),
        tokens_left=_number(headers, "anthropic-ratelimit-tokens-remaining"),
    )
    return anthropic if anthropic != UNSAID else _ietf(headers)


def _ietf(headers: Mapping[str, str]) -> RateLimits:
    """Requests only: the draft has no unit for tokens. A window other than a minute is scaled to one."""
    policy = _parameters(headers.get("ratelimit-policy", ""))
    state = _parameters(headers.get("ratelimit", ""))
    limit = _whole(policy.get("q")) or _number(headers, "ratelimit-limit")
    left = _whole(state.get("r"))
    window_s = _whole(policy.get("w")) or _MINUTE_S
    return RateLimits(
        request_limit=None if limit is None else max(1, int(limit * _MINUTE_S / window_s)),
        requests_left=left if left is not None else _number(headers, "ratelimit-remaining"),
    )


def _parameters(text: str) -> dict[str, str]:
    """The parameters of a structured field's first item (RFC 9651)."""
    return dict(_PARAMETER.findall(text.split(",")[0]))


def _number(headers: Mapping[str, str], name: str) -> int | None:
    return _whole(headers.get(name))


def _whole(text: str | None) -> int | None:
    text = (text or "").strip()
    return min(int(text), _MOST) if text.isascii() and text.isdigit() and len(text) < 20 else None

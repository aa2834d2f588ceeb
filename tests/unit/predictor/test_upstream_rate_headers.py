"""Rate limits in the headers of OpenAI, Anthropic and the IETF's draft."""

import pytest

from predictor.engine.upstream.rate_headers import UNSAID, RateLimits, rate_limits

OPENAI = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-remaining-requests": "499",
    "x-ratelimit-reset-requests": "120ms",
    "x-ratelimit-limit-tokens": "30000",
    "x-ratelimit-remaining-tokens": "29980",
    "x-ratelimit-reset-tokens": "6m0s",
}
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "7",
    "anthropic-ratelimit-tokens-limit": "40000",
    "anthropic-ratelimit-tokens-remaining": "39000",
    "anthropic-ratelimit-tokens-reset": "2026-11-30T00:00:00Z",
}


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        (
            OPENAI,
            RateLimits(request_limit=500, requests_left=499, token_limit=30000, tokens_left=29980),
        ),
        (
            ANTHROPIC,
            RateLimits(request_limit=50, requests_left=7, token_limit=40000, tokens_left=39000),
        ),
        (
            {"ratelimit-policy": '"burst";q=100;w=60', "ratelimit": '"burst";r=50;t=30'},
            RateLimits(request_limit=100, requests_left=50),
        ),
        (
            {"ratelimit-policy": '"s";q=10;w=1,"day";q=5000;w=86400', "ratelimit": '"s";r=3'},
            RateLimits(request_limit=600, requests_left=3),
        ),
        (
            {"ratelimit-limit": "100", "ratelimit-remaining": "2", "ratelimit-reset": "5"},
            RateLimits(request_limit=100, requests_left=2),
        ),
        ({"x-ratelimit-limit-tokens": "many"}, UNSAID),
        ({"x-ratelimit-remaining-tokens": "-1"}, UNSAID),
        ({"ratelimit": "nonsense;;=;r"}, UNSAID),
        ({}, UNSAID),
    ],
    ids=[
        "openai",
        "anthropic",
        "ietf",
        "ietf-seconds",
        "ietf-old",
        "word",
        "negative",
        "junk",
        "none",
    ],
)
def test_limits_are_those_of_a_minute(headers: dict[str, str], limits: RateLimits) -> None:
    assert rate_limits(headers) == limits

"""Limits of a tenant, the cost of a call, and the wait after a refusal."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.limit.limit import (
    DeadlineOutOfReach,
    LimitWindow,
    check_deadline,
    duration,
    headers_of,
    limits_of,
    tokens_asked,
)
from api.settings import ApiSettings
from eventing.job.job import JobRequest


@st.composite
def windows(draw: st.DrawFn) -> LimitWindow:
    limit = draw(st.integers(1, 10_000))
    left_s = draw(st.floats(0, 60))
    return LimitWindow(
        limit=limit,
        previous=draw(st.integers(0, 3 * limit)),  # a correction may go over the limit
        previous_left_s=left_s,
        current=draw(st.integers(0, 3 * limit)),
        current_left_s=left_s,
    )


def later(window: LimitWindow, seconds: float) -> LimitWindow:
    """The window after `seconds` in which nothing was taken, as the library counts it."""
    if seconds < window.current_left_s:
        return LimitWindow(
            limit=window.limit,
            previous=window.previous,
            previous_left_s=window.previous_left_s - seconds,
            current=window.current,
            current_left_s=window.current_left_s - seconds,
        )
    past_s = seconds - window.current_left_s
    return LimitWindow(
        limit=window.limit, previous=window.current, previous_left_s=max(0.0, 60 - past_s)
    )


@given(window=windows(), share=st.floats(0.001, 1))
def test_after_the_wait_it_fits(window: LimitWindow, share: float) -> None:
    cost = max(1, int(window.limit * share))

    wait_s = window.wait_s(cost)

    assert later(window, wait_s + 1e-6).used + cost <= window.limit


@given(window=windows(), share=st.floats(0.001, 1))
def test_retry_after_is_the_computed_wait(window: LimitWindow, share: float) -> None:
    """At most one unit of the limit longer than it had to be: the floor of the library's count."""
    cost = max(1, int(window.limit * share))
    wait_s = window.wait_s(cost)
    fading = window.previous if window.current <= window.limit - cost else window.current
    slack_s = 60 / max(fading, 1)

    early_s = wait_s - slack_s - 1e-3
    if early_s > 0:
        assert later(window, early_s).used + cost > window.limit


@given(window=windows())
def test_after_the_reset_nothing_is_used(window: LimitWindow) -> None:
    assert later(window, window.reset_s + 1e-6).used == 0


def test_headers_are_openais() -> None:
    window = LimitWindow(limit=60, current=10, current_left_s=30)

    assert headers_of("requests", window) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "50",
        "x-ratelimit-reset-requests": "1m30s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (1.25, "1.25s"), (59.999, "60s"), (360, "6m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
CONTEXT = 100
FORTY = [{"role": "user", "content": "a" * 40}]


def asked(url: str, **body: Any) -> int:
    return tokens_asked(JobRequest(url=url, body={"model": "m"} | body), CONTEXT)


@pytest.mark.parametrize(
    ("url", "body", "tokens"),
    [
        pytest.param(CHAT, {"messages": FORTY, "max_tokens": 50}, 60, id="bounded"),
        pytest.param(CHAT, {"messages": FORTY}, CONTEXT, id="as much as the context leaves"),
        pytest.param(
            CHAT, {"messages": FORTY, "max_tokens": None}, CONTEXT, id="null is not a bound"
        ),
        pytest.param(CHAT, {"messages": FORTY, "n": 3}, 10 + 3 * 90, id="for each choice"),
        pytest.param(
            CHAT, {"messages": FORTY, "max_completion_tokens": 5, "n": 3}, 25, id="three choices"
        ),
        pytest.param(
            CHAT,
            {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "a" * 8}]}],
                "max_tokens": 1,
            },
            3,
            id="parts",
        ),
        pytest.param(
            CHAT,
            {"messages": [{"role": "user", "content": None}], "max_tokens": 1},
            1,
            id="nothing",
        ),
        pytest.param(
            TEXT, {"prompt": ["a" * 8, "b" * 8], "max_tokens": 7}, 18, id="for each prompt"
        ),
        pytest.param(TEXT, {"prompt": ["a" * 8, "b" * 8]}, 200, id="for each prompt, unbounded"),
        pytest.param(TEXT, {"prompt": [1, 2, 3], "max_tokens": 1}, 4, id="token ids"),
        pytest.param(TEXT, {"prompt": [[1, 2], [3]], "max_tokens": 1}, 5, id="lists of token ids"),
        pytest.param(TEXT, {"prompt": "aaaa", "max_tokens": 0, "echo": True}, 1, id="no answer"),
        pytest.param(
            TEXT, {"prompt": "aaaa", "max_tokens": 5, "best_of": 4}, 21, id="generated, not given"
        ),
        pytest.param(TEXT, {"prompt": "a", "n": "many", "max_tokens": 1}, 2, id="a strange n"),
        pytest.param(TEXT, {"prompt": "a" * 800}, 200, id="over the context"),
        pytest.param("/v1/embeddings", {"input": "é" * 4}, 2, id="bytes, not letters; no answer"),
    ],
)
def test_a_call_costs_its_prompt_and_its_longest_answer(
    url: str, body: dict[str, Any], tokens: int
) -> None:
    assert asked(url, **body) == tokens


def test_a_tenant_has_its_own_limits_where_it_has_some() -> None:
    settings = ApiSettings(
        limit_requests_per_minute=10,
        limit_jobs_in_flight=5,
        tenant_limits={"acme": {"requests_per_minute": 0}},
    )

    assert limits_of(settings, "acme").requests_per_minute == 0
    assert limits_of(settings, "acme").jobs_in_flight == 5
    assert limits_of(settings, "other").requests_per_minute == 10


def test_a_job_that_would_still_wait_at_its_deadline_is_refused() -> None:
    with pytest.raises(DeadlineOutOfReach) as refused:
        check_deadline(340, head_age_s=120, left_s=60)

    assert refused.value.retry_after_s == 280
    assert "340 s" in refused.value.message
    assert "60 s" in refused.value.message
    assert refused.value.status == 503


@pytest.mark.parametrize(
    ("wait_s", "head_age_s", "left_s"),
    [
        pytest.param(None, 120, 60, id="no pace to go by"),
        pytest.param(50, 120, 60, id="in time"),
        pytest.param(340, 5, 60, id="a queue that has only just formed"),
    ],
)
def test_a_job_that_may_make_it_is_let_in(
    wait_s: float | None, head_age_s: float, left_s: float
) -> None:
    check_deadline(wait_s, head_age_s, left_s)

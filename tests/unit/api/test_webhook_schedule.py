"""When a webhook is tried again (fault F27)."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.webhook.schedule import (
    JITTER,
    LONGEST_RETRY_AFTER_S,
    SCHEDULE_S,
    TryOutcome,
    TryVerdict,
    decide,
    retry_after_s,
)

PAGE = Path(__file__).parents[3] / "docs" / "webhooks.md"
NOW_S = 1_764_000_000.0
DOWN = TryOutcome(error="ConnectionRefusedError")


def seconds(text: str) -> float:
    """`20 h 25 min` in seconds."""
    words = text.split()
    units = {"s": 1, "min": 60, "h": 3600}
    return sum(float(n) * units[unit] for n, unit in zip(words[::2], words[1::2], strict=True))


def after(tries: int, outcome: TryOutcome, seed: int = 1) -> tuple[TryVerdict, float, float]:
    decision = decide(tries, outcome, NOW_S, random.Random(seed), SCHEDULE_S)
    return decision.verdict, decision.delay_s, decision.pause_s


def test_the_schedule_is_the_published_one_as_far_as_the_promise_goes() -> None:
    hours = [s / 3600 for s in SCHEDULE_S]

    assert hours[3:9] == [0.5, 2, 5, 10, 14, 20]
    assert SCHEDULE_S[:3] == (0, 5, 300)
    assert len(SCHEDULE_S) == 10
    assert sum(SCHEDULE_S) == 72 * 3600


def test_the_documented_schedule_is_the_configured_one() -> None:
    pauses = ["5 s", "5 min", "30 min", "2 h", "5 h", "10 h", "14 h", "20 h", "20 h 25 min"]
    said = f"{', '.join(pauses[:-1])} and {pauses[-1]} after the try before"

    assert said in PAGE.read_text()
    assert "ten tries in 72 hours" in PAGE.read_text()
    assert [round(seconds(pause) / 60) for pause in pauses] == [
        round(s / 60) for s in SCHEDULE_S[1:]
    ]


def test_a_receiver_that_is_down_for_ever_is_given_up_after_the_last_try() -> None:
    verdicts = [after(n, DOWN)[0] for n in range(1, 11)]

    assert verdicts == [TryVerdict.PENDING] * 9 + [TryVerdict.FAILED]


@given(tries=st.integers(1, 9), seed=st.integers())
def test_every_pause_is_kept_within_its_jitter(tries: int, seed: int) -> None:
    _, delay_s, _ = after(tries, DOWN, seed)

    assert abs(delay_s - SCHEDULE_S[tries]) <= SCHEDULE_S[tries] * JITTER + 1e-6


def test_pauses_are_spread() -> None:
    delays = {round(after(3, DOWN, seed)[1]) for seed in range(50)}

    assert len(delays) > 20


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_delivery(status: int) -> None:
    assert after(1, TryOutcome(status))[0] is TryVerdict.DELIVERED


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 429, 500, 502, 503, 504])
def test_everything_else_is_tried_again(status: int) -> None:
    assert after(1, TryOutcome(status))[0] is TryVerdict.PENDING


def test_gone_ends_it() -> None:
    assert after(1, TryOutcome(410))[0] is TryVerdict.GONE


def test_a_refused_address_is_not_tried_again() -> None:
    assert after(1, TryOutcome(is_refused=True))[0] is TryVerdict.REFUSED


@given(seconds=st.integers(6, 86_400), seed=st.integers())
def test_a_receiver_is_not_tried_before_its_retry_after(seconds: int, seed: int) -> None:
    _, delay_s, _ = after(1, TryOutcome(429, retry_after=str(seconds)), seed)

    assert seconds <= delay_s <= seconds * (1 + JITTER)


def test_a_short_retry_after_does_not_hurry_the_schedule() -> None:
    _, delay_s, _ = after(2, TryOutcome(503, retry_after="1"))

    assert delay_s > 250


@pytest.mark.parametrize(("status", "pause_s"), [(429, 60), (503, 60), (500, 0)])
def test_a_retry_after_delays_the_receivers_other_deliveries_too(
    status: int, pause_s: float
) -> None:
    assert after(1, TryOutcome(status, retry_after="60"))[2] == pause_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("", 0, id="none"),
        pytest.param("120", 120, id="seconds"),
        pytest.param("Mon, 24 Nov 2025 16:01:00 GMT", 60, id="a date"),
        pytest.param("Mon, 24 Nov 2025 15:00:00 GMT", 0, id="a date that has passed"),
        pytest.param("999999999", LONGEST_RETRY_AFTER_S, id="more than a day"),
        pytest.param("99999999999999999999", 0, id="a number without sense"),
        pytest.param("-5", 0, id="negative"),
        pytest.param("soon", 0, id="a word"),
        pytest.param("１２", 0, id="other digits"),
    ],
)
def test_retry_after_is_read_as_the_standard_says(text: str, seconds: float) -> None:
    assert retry_after_s(text, NOW_S) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_breaks_the_sender(text: str) -> None:
    assert 0 <= retry_after_s(text, NOW_S) <= LONGEST_RETRY_AFTER_S

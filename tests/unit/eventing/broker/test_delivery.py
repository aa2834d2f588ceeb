"""The decision after an answer, by Knative's rules (`pkg/kncloudevents/retries.go`, data-plane specification)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.broker.delivery.decision import (
    BackoffPolicy,
    DeadLetter,
    Delivered,
    DeliverySpec,
    Retry,
    SubscriberResponse,
    backoff_s,
    decide,
    is_retried,
    retry_after_s,
    span_s,
)

SPECS = st.builds(
    DeliverySpec,
    retry=st.integers(0, 50),
    backoff_policy=st.sampled_from(BackoffPolicy),
    backoff_delay_s=st.floats(0, 3600),
    retry_after_max_s=st.floats(0, 600),
)
RETRIED = [0, 404, 408, 409, 429, 500, 502, 503, 504, 599]
REFUSED = [100, 300, 301, 302, 307, 400, 401, 403, 405, 410, 413, 415, 422, 428, 451]


class TestRetryRules:
    @pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
    def test_any_2xx_is_delivered_and_only_200_may_carry_a_reply(self, status: int) -> None:
        assert decide(DeliverySpec(), SubscriberResponse(status=status), 1) == Delivered(
            status == 200
        )

    @pytest.mark.parametrize("status", RETRIED)
    def test_statuses_of_knatives_selective_retry_are_retried(self, status: int) -> None:
        assert is_retried(status)
        assert isinstance(
            decide(DeliverySpec(retry=1), SubscriberResponse(status=status), 1), Retry
        )

    @pytest.mark.parametrize("status", REFUSED)
    def test_everything_else_is_set_aside_at_once(self, status: int) -> None:
        assert isinstance(
            decide(DeliverySpec(retry=9), SubscriberResponse(status=status), 1), DeadLetter
        )

    @given(SPECS, st.sampled_from(RETRIED))
    def test_retry_counts_the_tries_after_the_first(self, spec: DeliverySpec, status: int) -> None:
        tries = 1
        while isinstance(decide(spec, SubscriberResponse(status=status), tries), Retry):
            tries += 1

        assert tries == spec.retry + 1

    @given(SPECS, st.integers(0, 999), st.integers(1, 100))
    def test_a_refusal_without_a_body_has_a_reason(
        self, spec: DeliverySpec, status: int, tries: int
    ) -> None:
        match decide(spec, SubscriberResponse(status=status), tries):
            case DeadLetter(reason):
                assert reason
            case Retry(delay_s):
                assert delay_s >= 0
            case Delivered():
                assert 200 <= status < 300


class TestBackoff:
    @given(st.floats(0.001, 100), st.integers(0, 100))
    def test_linear_is_delay_times_n(self, delay_s: float, n: int) -> None:
        # go-retryablehttp counts attempts from 0: the first try again comes at once.
        spec = DeliverySpec(backoff_policy=BackoffPolicy.LINEAR, backoff_delay_s=delay_s)

        assert backoff_s(spec, n + 1) == pytest.approx(delay_s * n)

    @given(st.floats(0.001, 10), st.integers(0, 12))
    def test_exponential_is_delay_times_two_to_the_n(self, delay_s: float, n: int) -> None:
        # go-retryablehttp counts attempts from 0: the first wait is the delay itself.
        spec = DeliverySpec(backoff_delay_s=delay_s)

        assert backoff_s(spec, n + 1) == pytest.approx(delay_s * 2**n)

    @given(SPECS, st.integers(1, 10_000))
    def test_a_wait_never_shrinks_and_never_exceeds_a_day(self, spec: DeliverySpec, n: int) -> None:
        assert 0 <= backoff_s(spec, n) <= backoff_s(spec, n + 1) <= 24 * 3600

    def test_knatives_default_of_ten_exponential_lasts_205_seconds(self) -> None:
        assert span_s(DeliverySpec(retry=10, backoff_delay_s=0.2)) == pytest.approx(204.6)

    @given(SPECS)
    def test_the_span_is_what_an_event_waits_in_all(self, spec: DeliverySpec) -> None:
        waited = 0.0
        tries = 1
        while isinstance(again := decide(spec, SubscriberResponse(status=503), tries), Retry):
            waited += again.delay_s
            tries += 1

        assert span_s(spec) == pytest.approx(waited)


class TestRetryAfter:
    SPEC = DeliverySpec(retry=5, backoff_delay_s=2.0, retry_after_max_s=60.0)

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize(
        ("asked_s", "waited_s"), [(30.0, 30.0), (600.0, 60.0), (0.5, 2.0), (None, 2.0)]
    )
    def test_429_and_503_are_obeyed_up_to_the_limit_and_never_below_the_backoff(
        self, status: int, asked_s: float | None, waited_s: float
    ) -> None:
        answer = SubscriberResponse(status=status, retry_after_s=asked_s)

        assert decide(self.SPEC, answer, 1) == Retry(waited_s)

    @pytest.mark.parametrize(
        ("header", "asked_s"),
        [
            ("0", 0.0),
            ("120", 120.0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 30.0),  # RFC 9110's own example
            ("Sunday, 06-Nov-94 08:49:37 GMT", 30.0),
            ("Sun Nov  6 08:49:37 1994", 30.0),
            ("Sun, 06 Nov 1994 08:49:06 GMT", 0.0),
            ("", None),
            ("soon", None),
            ("-5", None),
            ("1.5", None),
            ("\u0661", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ],
    )
    def test_retry_after_is_seconds_or_a_date_in_any_of_https_forms(
        self, header: str, asked_s: float | None
    ) -> None:
        assert retry_after_s(header, now_s=784_111_747.0) == asked_s

    @given(st.text())
    def test_any_other_text_asks_for_nothing_or_for_a_wait(self, header: str) -> None:
        asked_s = retry_after_s(header, now_s=0.0)

        assert asked_s is None or asked_s >= 0

    @pytest.mark.parametrize("status", [0, 404, 408, 409, 500, 502, 504])
    def test_others_cannot_ask_for_a_wait(self, status: int) -> None:
        assert decide(self.SPEC, SubscriberResponse(status=status, retry_after_s=30), 1) == Retry(
            2.0
        )

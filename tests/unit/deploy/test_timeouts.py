"""All timeouts follow from one number, and each hop is longer than the one inside it."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knative.deploy.timeouts import (
    EXPLANATIONS,
    Timeouts,
    derive,
    explain,
    exponential_span,
    linear_retries,
    linear_span,
    rabbitmq_ack_s,
)
from knative.deploy.values import Values

ANY_VALUES = st.builds(
    Values,
    max_job_seconds=st.integers(10, 86_400),
    cold_start_seconds=st.integers(5, 3600),
    max_replicas=st.integers(1, 1000),
)


@given(ANY_VALUES)
def test_each_hop_outlasts_the_one_inside_it(values: Values) -> None:
    times = derive(values)

    assert min(times.job, 3600) == times.drain < times.pod_grace < times.node_grace
    assert times.job + values.cold_start_seconds < times.request < times.delivery
    assert times.request <= times.max_revision < times.activator_grace


@given(ANY_VALUES)
def test_the_broker_asks_until_the_longest_job_has_ended(values: Values) -> None:
    times = derive(values)

    assert linear_span(times.retries, times.retry_delay) >= (
        times.job + values.cold_start_seconds + times.lease
    )


@given(ANY_VALUES)
def test_nothing_goes_to_zero_while_a_model_loads(values: Values) -> None:
    times = derive(values)
    cold = values.cold_start_seconds

    assert min(times.cooldown, times.startup_probe) > cold
    assert times.progress_deadline > cold


@given(ANY_VALUES)
def test_windows_stay_within_what_the_platforms_allow(values: Values) -> None:
    times = derive(values)

    assert 6 <= times.stable_window <= 3600  # Knative's window
    assert 0 <= times.scale_down_window <= 3600  # the HPA's stabilisation
    assert 15 <= times.lease <= 60


def test_every_number_is_explained() -> None:
    assert set(EXPLANATIONS) == {field.name for field in fields(Timeouts)}
    assert all(why.formula and why.reason and why.source for _, _, why in explain(derive(Values())))


@pytest.mark.parametrize(
    ("retries", "delay", "span"),
    [pytest.param(10, 0.2, 204.6, id="Knative's default: 205 s"), pytest.param(1, 2, 2, id="one")],
)
def test_an_exponential_span_is_the_sum_of_doublings(
    retries: int, delay: float, span: float
) -> None:
    assert exponential_span(retries, delay) == pytest.approx(span)


def test_a_linear_span_counts_from_zero() -> None:
    assert linear_span(4, 2) == 0 + 2 + 4 + 6


def test_linear_retries_are_the_fewest_that_suffice() -> None:
    retries = linear_retries(2430, 2)

    assert linear_span(retries, 2) >= 2430 > linear_span(retries - 1, 2)


def test_the_ack_timer_counts_the_fixed_prefetch_in_waves() -> None:
    assert rabbitmq_ack_s(100, 50, parallelism=100) == 350
    assert rabbitmq_ack_s(100, 50, parallelism=10) == 3500
    assert rabbitmq_ack_s(100, 50, parallelism=64) == 700  # two waves: 64 and 36

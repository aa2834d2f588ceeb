"""The cost of inference: seconds by state, shared among jobs, in money."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.telemetry.cost import (
    KINDS,
    GpuMeter,
    GpuState,
    Price,
    Spend,
    SpentTokens,
    TokenPrice,
    advance,
    bill,
    cost_by_kind,
    job_cost,
    overhead,
    spend_of,
    spent_tokens,
)


def test_time_is_waking_until_ready_then_idle_until_there_is_work_then_busy() -> None:
    meter = GpuMeter(at_s=100.0)

    meter = advance(meter, 103.0, is_ready=True)
    meter = advance(meter, 105.0, in_flight=1)
    meter = advance(meter, 109.0, in_flight=0)
    meter = advance(meter, 110.0)

    assert (meter.waking_s, meter.idle_s, meter.busy_s) == (3.0, 3.0, 4.0)


def test_concurrent_jobs_share_the_gpu_and_a_single_job_has_all_of_it() -> None:
    meter = advance(GpuMeter(at_s=0.0, is_ready=True), 0.0, in_flight=1)
    first_began = meter.share_s
    meter = advance(meter, 10.0, in_flight=2)
    second_began = meter.share_s

    meter = advance(meter, 14.0, in_flight=1)
    first = meter.share_s - first_began
    second = meter.share_s - second_began

    assert (first, second) == (12.0, 2.0)


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 8), st.booleans()), min_size=1, max_size=20
    )
)
def test_every_second_is_counted_once(steps: list[tuple[float, int, bool]]) -> None:
    meter = GpuMeter(at_s=0.0)
    now = 0.0

    for passed, in_flight, is_ready in steps:
        now += passed
        meter = advance(meter, now, in_flight=in_flight, is_ready=is_ready)

    assert meter.waking_s + meter.idle_s + meter.busy_s == pytest.approx(now)


def test_a_clock_that_goes_back_counts_nothing() -> None:
    meter = advance(GpuMeter(at_s=10.0), 8.0)

    assert meter == GpuMeter(at_s=10.0)


@pytest.mark.parametrize(
    ("is_ready", "in_flight", "state"),
    [
        pytest.param(False, 0, GpuState.WAKING, id="starting"),
        pytest.param(False, 2, GpuState.WAKING, id="starting_with_work_at_the_door"),
        pytest.param(True, 0, GpuState.IDLE, id="nothing_to_do"),
        pytest.param(True, 1, GpuState.BUSY, id="one_job"),
    ],
)
def test_the_state_of_a_replica(is_ready: bool, in_flight: int, state: GpuState) -> None:
    assert GpuMeter(at_s=0, is_ready=is_ready, in_flight=in_flight).state is state


def test_a_price_is_for_every_gpu_of_a_replica() -> None:
    assert Price(per_gpu_hour=3.6, gpus=4).of(10.0) == pytest.approx(0.04)


def test_tokens_carry_idle_time_wakes_and_waste() -> None:
    spend = Spend(waking_s=100, idle_s=200, busy_s=700, kept_s=600, jobs=10, output_tokens=50_000)

    found = bill(spend, Price(per_gpu_hour=3.6))

    assert found.total == pytest.approx(1.0)
    assert found.per_1k_tokens == pytest.approx(0.02)
    assert found.per_1k_tokens_busy == pytest.approx(0.014)
    assert found.per_job == pytest.approx(0.1)
    assert found.wasted == pytest.approx(0.1)


def test_nothing_delivered_has_no_price_each() -> None:
    found = bill(Spend(idle_s=3600), Price(per_gpu_hour=2))

    assert (found.total, found.per_1k_tokens, found.per_job) == (2.0, None, None)


def test_work_of_dead_predictors_counts_as_wasted() -> None:
    assert Spend(busy_s=100, kept_s=70).wasted_s == 30


def test_a_kept_second_costs_as_many_as_were_paid_for_it() -> None:
    assert overhead(Spend(waking_s=5, idle_s=5, busy_s=10, kept_s=10)) == 2.0


def test_without_a_price_a_job_shows_gpu_seconds_and_no_money() -> None:
    free = job_cost(10.0, answer(100), Price(gpus=2), 1.5)

    assert free.pop("gpu_seconds") == 20.0
    assert set(free.values()) == {None}


def test_a_job_bears_its_part_of_idle_time_wakes_and_waste() -> None:
    """By hand: 10 s at 3.60 an hour are 0.01; 40 s were paid for 20 s that were kept, so 0.02 all
    in; of 100 tokens that is 0.1 and 0.2 a thousand.
    """
    spend = Spend(waking_s=5, idle_s=10, busy_s=25, kept_s=20)

    assert job_cost(10.0, answer(100), Price(per_gpu_hour=3.6), overhead(spend)) == {
        "gpu_seconds": 10.0,
        "cost": 0.01,
        "cost_per_1k_output_tokens": 0.1,
        "cost_all_in": 0.02,
        "all_in_per_1k_output_tokens": 0.2,
        "by_kind": {"answer": 0.01},
    }


def answer(tokens: int) -> list[SpentTokens]:
    return [SpentTokens("answer", "m", 0, tokens)]


PRICES = {
    "dear": TokenPrice(input_per_1m=1e6, output_per_1m=2e6),
    "cheap": TokenPrice(input_per_1m=5e5, output_per_1m=1e6),
}
"""One and two for a token; half of that."""


def test_each_kind_costs_what_its_own_model_takes() -> None:
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 12,
        "extra": [
            {"kind": "cascaded", "model": "cheap", "prompt_tokens": 10, "completion_tokens": 4},
            {"kind": "hedged", "model": "dear", "prompt_tokens": 10, "completion_tokens": 0},
        ],
    }

    found = job_cost(0.0, spent_tokens(usage, "dear"), Price(), None, PRICES)

    assert found["by_kind"] == {"answer": 10 + 16, "cascaded": 5 + 4, "hedged": 10}
    assert found["cost"] == found["cost_all_in"] == 45


@pytest.mark.parametrize(
    ("cached_price", "cost"), [(None, 30 + 24), (1e5, 10 + 2 + 24), (0.0, 10 + 24)]
)
def test_input_that_a_provider_had_in_its_cache_costs_what_it_takes_for_that(
    cached_price: float | None, cost: float
) -> None:
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 20},
    }
    prices = {"m": replace(PRICES["dear"], cached_input_per_1m=cached_price)}
    assert job_cost(0.0, spent_tokens(usage, "m"), Price(), None, prices)["cost"] == cost


def test_a_local_answer_that_was_thrown_away_bears_the_gpu_time_and_the_provider_its_tokens() -> (
    None
):
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": 7,
        "extra": [
            {"kind": "cascaded", "model": "own", "prompt_tokens": 10, "completion_tokens": 4}
        ],
    }
    price = Price(per_gpu_hour=3600)

    found = job_cost(5.0, spent_tokens(usage, "dear"), price, 2.0, PRICES)

    assert found["by_kind"] == {"answer": 10 + 6, "cascaded": 5.0}
    assert (found["cost"], found["cost_all_in"]) == (21.0, 26.0)


@pytest.mark.parametrize(
    "extra",
    [
        "none",
        {"kind": "hedged"},
        [7, {"kind": "gift", "prompt_tokens": 5}, {"kind": "hedged", "prompt_tokens": -5}],
        [{"kind": "repaired", "model": 7, "prompt_tokens": 2**80, "completion_tokens": True}],
    ],
)
def test_what_a_provider_writes_into_a_usage_breaks_no_sum(extra: Any) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "extra": extra}
    costs = cost_by_kind(spent_tokens(usage, "dear"), 0.0, Price(), PRICES)
    assert all(amount >= 0 for amount in costs.values())
    assert set(costs) <= set(KINDS)


def test_a_spend_is_read_from_the_ledgers_milliseconds() -> None:
    spend = spend_of({"busy_ms": 1500, "kept_ms": 1000, "jobs": 2, "delivered_tokens": 9})

    assert (spend.busy_s, spend.kept_s, spend.jobs, spend.output_tokens) == (1.5, 1.0, 2, 9)


def test_turns_that_asked_for_tools_are_a_part_of_the_answer_to_the_token() -> None:
    turn = {"kind": "turn", "model": "m", "prompt_tokens": 10, "completion_tokens": 5}
    repaired = {"kind": "repaired", "model": "m", "prompt_tokens": 4, "completion_tokens": 1}
    usage = {
        "prompt_tokens": 34,
        "completion_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 16},
        "extra": [turn, repaired],
    }

    answer, beside = spent_tokens(usage, "m")

    assert (answer.kind, answer.input_tokens, answer.output_tokens) == ("answer", 30, 12)
    assert answer.cached_tokens == 16
    assert (beside.kind, beside.input_tokens, beside.output_tokens) == ("repaired", 4, 1)

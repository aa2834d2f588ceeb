"""What an ended job adds to its tenant's usage."""

from dataclasses import replace
from typing import Any

import pytest

from api.limit.usage import measures_of
from api.view.response import usage_view
from eventing.job.cache.cache import CacheKind, CacheStatus, CacheUse
from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.telemetry.cost import Price, Prices, TokenPrice

PRICES = Prices(Price(), {"m": TokenPrice(input_per_1m=1e6, output_per_1m=2e6)})
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
JOB = Job(
    id=JobId("job_1"),
    state=JobState.COMPLETED,
    request=JobRequest(url="/v1/completions", body={"model": "m", "prompt": "x" * 8}),
    attempt=1,
    usage=USAGE,
)


def test_thought_and_cached_tokens_are_told_apart() -> None:
    usage = {
        **USAGE,
        "completion_tokens_details": {"reasoning_tokens": 2},
        "prompt_tokens_details": {"cached_tokens": 5},
    }
    found = measures_of(replace(JOB, usage=usage), PRICES)
    assert (found["thought_tokens"], found["cached_tokens"]) == (2, 5)


@pytest.mark.parametrize("details", [{"cached_tokens": 500}, [5], {"cached_tokens": "5"}, 5])
def test_no_more_tokens_are_cached_than_the_prompt_has_whatever_a_provider_says(
    details: object,
) -> None:
    job = replace(JOB, usage={**USAGE, "prompt_tokens_details": details})
    cached = 7 if details == {"cached_tokens": 500} else 0
    assert measures_of(job, PRICES).get("cached_tokens", 0) == cached
    view = usage_view(job)
    assert view is not None
    assert view["input_tokens_details"]["cached_tokens"] == cached


@pytest.mark.parametrize("kind", list(CacheKind))
def test_a_kept_answer_is_saved_and_costs_nothing(kind: CacheKind) -> None:
    use = CacheUse(status=CacheStatus.HIT, kind=kind, saved_usage=USAGE)
    none = dict.fromkeys(USAGE, 0)
    found = measures_of(replace(JOB, usage=none, cache=use, token_count=3), PRICES)
    assert found == {
        "completed": 1,
        f"hits_{kind}": 1,
        "saved_input_tokens": 7,
        "saved_output_tokens": 3,
        "saved_cost": 13_000_000,
    }


def test_a_follower_that_was_cancelled_saved_nothing() -> None:
    use = CacheUse(status=CacheStatus.HIT, kind=CacheKind.COALESCED)
    job = replace(JOB, state=JobState.CANCELLED, usage=None, cache=use, attempt=0)
    assert measures_of(job, PRICES) == {"cancelled": 1}


def test_an_answer_that_broke_off_costs_its_prompt_and_what_was_shown() -> None:
    job = replace(JOB, state=JobState.CANCELLED, usage=None, token_count=4)
    assert measures_of(job, PRICES) == {
        "cancelled": 1,
        "output_tokens": 4,
        "cost": (2 + 2 * 4) * 1_000_000,
    }


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": "7", "completion_tokens": None},
        {"prompt_tokens_details": [], "completion_tokens_details": "x"},
    ],
)
def test_counts_that_are_none_count_nothing_and_the_cost_is_estimated(usage: Any) -> None:
    found = measures_of(replace(JOB, usage=usage, token_count=4), PRICES)
    assert found == {"completed": 1, "cost": (2 + 2 * 4) * 1_000_000}


def test_counts_below_zero_cost_nothing() -> None:
    found = measures_of(replace(JOB, usage={"prompt_tokens": -7, "completion_tokens": -1}), PRICES)
    assert found == {"completed": 1}


def test_a_count_beyond_reason_is_cut() -> None:
    found = measures_of(replace(JOB, usage={"prompt_tokens": 10**30}), PRICES)
    assert found["input_tokens"] == 2**40

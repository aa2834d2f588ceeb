"""When a canary may take over: as good, beyond chance worse, or too early to tell."""

from __future__ import annotations

import pytest

from knative.deploy.rollout.verdict import Decision, Limits, Sample, judge, lower_bound, queries

GOOD = Sample(1000, 10, 20.0)


@pytest.mark.parametrize(
    ("canary", "decision"),
    [
        pytest.param(Sample(100, 1, 20.0), Decision.PROMOTE, id="as good"),
        pytest.param(Sample(10, 0, 20.0), Decision.WAIT, id="too few"),
        pytest.param(Sample(0, 0, None), Decision.WAIT, id="none"),
        pytest.param(Sample(10, 1, 20.0), Decision.WAIT, id="one of ten may be chance"),
        pytest.param(Sample(10, 6, 20.0), Decision.ROLL_BACK, id="six of ten is not chance"),
        pytest.param(Sample(1000, 60, 20.0), Decision.ROLL_BACK, id="errors rose"),
        pytest.param(Sample(100, 1, 26.0), Decision.ROLL_BACK, id="slower"),
        pytest.param(Sample(100, 1, 24.0), Decision.PROMOTE, id="hardly slower"),
        pytest.param(Sample(100, 1, None), Decision.PROMOTE, id="no latency known"),
    ],
)
def test_a_canary_is_judged_beside_its_model(canary: Sample, decision: Decision) -> None:
    assert judge(GOOD, canary, Limits()).decision is decision


def test_a_model_without_traffic_still_allows_a_judgement() -> None:
    assert judge(Sample(0, 0, None), Sample(100, 0, 5.0), Limits()).decision is Decision.PROMOTE


def test_the_bound_tightens_with_the_sample() -> None:
    assert lower_bound(5, 10) < lower_bound(50, 100) < lower_bound(500, 1000) < 0.5


def test_the_queries_name_the_pods_of_one_version_only() -> None:
    wanted = queries("thinker", "15m")

    assert all('pod=~"thinker-predictor-.*"' in query for query in wanted.values())

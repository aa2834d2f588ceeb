"""When a canary may be promoted: not worse, significantly worse, or too early to decide."""

from __future__ import annotations

import pytest

from knative.deploy.rollout.verdict import (
    CanaryDecision,
    CanaryLimits,
    CanarySample,
    judge,
    lower_bound,
    queries,
)

GOOD = CanarySample(1000, 10, 20.0)


@pytest.mark.parametrize(
    ("canary", "decision"),
    [
        pytest.param(CanarySample(100, 1, 20.0), CanaryDecision.PROMOTE, id="as good"),
        pytest.param(CanarySample(10, 0, 20.0), CanaryDecision.WAIT, id="too few"),
        pytest.param(CanarySample(0, 0, None), CanaryDecision.WAIT, id="none"),
        pytest.param(CanarySample(10, 1, 20.0), CanaryDecision.WAIT, id="one of ten may be chance"),
        pytest.param(
            CanarySample(10, 6, 20.0), CanaryDecision.ROLL_BACK, id="six of ten is not chance"
        ),
        pytest.param(CanarySample(1000, 60, 20.0), CanaryDecision.ROLL_BACK, id="errors rose"),
        pytest.param(CanarySample(100, 1, 26.0), CanaryDecision.ROLL_BACK, id="slower"),
        pytest.param(CanarySample(100, 1, 24.0), CanaryDecision.PROMOTE, id="hardly slower"),
        pytest.param(CanarySample(100, 1, None), CanaryDecision.PROMOTE, id="no latency known"),
    ],
)
def test_a_canary_is_judged_beside_its_model(
    canary: CanarySample, decision: CanaryDecision
) -> None:
    assert judge(GOOD, canary, CanaryLimits()).decision is decision


def test_a_model_without_traffic_still_allows_a_judgement() -> None:
    assert (
        judge(CanarySample(0, 0, None), CanarySample(100, 0, 5.0), CanaryLimits()).decision
        is CanaryDecision.PROMOTE
    )


def test_the_bound_tightens_with_the_sample() -> None:
    assert lower_bound(5, 10) < lower_bound(50, 100) < lower_bound(500, 1000) < 0.5


def test_the_queries_name_the_pods_of_one_version_only() -> None:
    wanted = queries("thinker", "15m")

    assert all('pod=~"thinker-predictor-.*"' in query for query in wanted.values())

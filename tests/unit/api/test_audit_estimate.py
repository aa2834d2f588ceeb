"""The corrected rate covers the truth, and the sampling is the same everywhere."""

import random
from math import sqrt

import numpy as np
import pytest

from api.audit.estimate import (
    Z_95,
    AuditedCounts,
    GoldenCounts,
    corrected_rate,
    hallucination_rate,
)
from api.audit.sampling import is_sampled
from eventing.job.job import JobId, new_job_id

FIT = GoldenCounts(true_positives=80, positives=100, true_negatives=95, negatives=100)
FLAWLESS = GoldenCounts(
    true_positives=10**9, positives=10**9, true_negatives=10**9, negatives=10**9
)


def counted(jobs: int, flagged: int) -> AuditedCounts:
    return AuditedCounts(jobs=jobs, weights=jobs, squares=jobs, flagged=flagged)


@pytest.mark.parametrize("golden_rows", [200, 400])
@pytest.mark.parametrize("planted", [0.05, 0.1, 0.2])
def test_the_interval_covers_the_planted_rate_in_93_percent_of_200_runs(
    planted: float, golden_rows: int
) -> None:
    runs, jobs, tpr, tnr = 200, 2000, 0.8, 0.95
    rng = np.random.default_rng(20261130)
    half = golden_rows // 2
    # Each run has its own golden verdicts: the critic's measured errors differ from its true ones.
    true_positives, true_negatives = rng.binomial(half, tpr, runs), rng.binomial(half, tnr, runs)
    unsupported = rng.binomial(jobs, planted, runs)
    flagged = rng.binomial(unsupported, tpr) + rng.binomial(jobs - unsupported, 1 - tnr)

    rates = [
        corrected_rate(
            flagged[run] / jobs,
            jobs,
            GoldenCounts(
                true_positives=int(true_positives[run]),
                positives=half,
                true_negatives=int(true_negatives[run]),
                negatives=half,
            ),
        )
        for run in range(runs)
    ]

    of_jobs = [
        rate.low <= each / jobs <= rate.high for rate, each in zip(rates, unsupported, strict=True)
    ]
    of_planted = [rate.low <= planted <= rate.high for rate in rates]
    assert sum(of_jobs) >= 0.93 * runs
    assert sum(of_planted) >= 0.93 * runs
    assert np.mean([rate.rate for rate in rates]) == pytest.approx(planted, abs=0.01)
    assert np.mean([rate.high - rate.low for rate in rates]) < 0.14  # it says something


def test_without_the_uncertainty_of_the_critic_the_interval_would_not_cover() -> None:
    rng = np.random.default_rng(20261130)
    golden = [
        GoldenCounts(true_positives=int(a), positives=100, true_negatives=int(b), negatives=100)
        for a, b in zip(rng.binomial(100, 0.8, 200), rng.binomial(100, 0.95, 200), strict=True)
    ]
    flagged = rng.binomial(2000, 0.1 * 0.8 + 0.9 * 0.05, 200) / 2000

    def covers_if_exact(share: float, measured: GoldenCounts) -> bool:
        youden = measured.tpr + measured.tnr - 1
        spread = Z_95 * sqrt(share * (1 - share) / 2000) / youden
        return abs((share + measured.tnr - 1) / youden - 0.1) <= spread

    assert sum(map(covers_if_exact, flagged, golden)) < 0.93 * 200


@pytest.mark.parametrize(("flagged", "jobs"), [(0, 50), (5, 50), (50, 50), (125, 2000)])
def test_with_a_critic_that_never_errs_the_interval_is_that_of_wilson(
    flagged: int, jobs: int
) -> None:
    share, z2 = flagged / jobs, Z_95**2
    middle = (share + z2 / (2 * jobs)) / (1 + z2 / jobs)
    spread = Z_95 * sqrt(share * (1 - share) / jobs + z2 / (4 * jobs**2)) / (1 + z2 / jobs)

    rate = corrected_rate(share, jobs, FLAWLESS)

    assert rate.rate == pytest.approx(share, abs=1e-6)
    assert (rate.low, rate.high) == pytest.approx((middle - spread, middle + spread), abs=1e-4)


def test_a_critic_that_flags_at_random_leaves_every_rate_possible() -> None:
    coin = GoldenCounts(true_positives=50, positives=100, true_negatives=50, negatives=100)

    rate = corrected_rate(0.5, 2000, coin)

    assert (rate.low, rate.high) == (0.0, 1.0)


def test_every_estimate_lies_in_its_interval_and_that_between_0_and_1() -> None:
    rng = random.Random(7)
    for _ in range(3000):
        positives, negatives = rng.randint(1, 300), rng.randint(1, 300)
        golden = GoldenCounts(
            true_positives=rng.randint(0, positives),
            positives=positives,
            true_negatives=rng.randint(0, negatives),
            negatives=negatives,
        )

        rate = corrected_rate(rng.random(), rng.randint(1, 5000), golden)

        assert 0 <= rate.low <= rate.rate <= rate.high <= 1


def test_more_audits_and_more_golden_rows_make_the_interval_narrower() -> None:
    def width(jobs: int, times: int) -> float:
        golden = GoldenCounts(
            true_positives=80 * times,
            positives=100 * times,
            true_negatives=95 * times,
            negatives=100 * times,
        )
        rate = corrected_rate(0.125, jobs, golden)
        return rate.high - rate.low

    assert width(200, 1) > width(2000, 1) > width(2000, 4)


@pytest.mark.parametrize(
    ("golden", "kappa"),
    [
        pytest.param(FIT, 0.75, id="good"),
        pytest.param(
            GoldenCounts(true_positives=100, positives=100, true_negatives=100, negatives=100),
            1.0,
            id="flawless",
        ),
        pytest.param(
            GoldenCounts(true_positives=50, positives=100, true_negatives=50, negatives=100),
            0.0,
            id="a coin",
        ),
        pytest.param(
            GoldenCounts(true_positives=0, positives=60, true_negatives=140, negatives=140),
            0.0,
            id="always the same verdict",
        ),
        pytest.param(
            GoldenCounts(true_positives=0, positives=100, true_negatives=0, negatives=100),
            -1.0,
            id="always wrong",
        ),
        pytest.param(
            GoldenCounts(true_positives=0, positives=0, true_negatives=0, negatives=0),
            0.0,
            id="no rows",
        ),
    ],
)
def test_kappa_is_the_agreement_beyond_chance(golden: GoldenCounts, kappa: float) -> None:
    assert golden.kappa == pytest.approx(kappa)


def test_no_rate_is_given_below_kappa_0_6() -> None:
    poor = GoldenCounts(true_positives=70, positives=100, true_negatives=85, negatives=100)

    assert poor.kappa < 0.6
    assert hallucination_rate(counted(2000, 250), poor) is None
    assert hallucination_rate(counted(2000, 250), FIT) is not None


def test_no_rate_is_given_with_fewer_than_200_golden_rows_or_without_audits() -> None:
    few = GoldenCounts(true_positives=95, positives=99, true_negatives=95, negatives=100)

    assert hallucination_rate(counted(2000, 250), few) is None
    assert hallucination_rate(AuditedCounts(), FIT) is None


def test_a_tenant_with_a_larger_share_does_not_move_the_rate_of_all() -> None:
    # Tenant A: 1,000 jobs, all audited, 300 flagged. Tenant B: 9,000 jobs, 900 of them audited, 9 flagged.
    a = counted(1000, 300)
    b = AuditedCounts(jobs=900, weights=9000, squares=90_000, flagged=90)

    both = a + b

    assert both.flagged_share == pytest.approx((300 + 90) / 10_000)
    assert both.effective_jobs < both.jobs


def test_a_job_is_sampled_by_its_id_alone_at_about_its_share() -> None:
    ids = [JobId(f"job_{number:024x}") for number in range(20_000)]

    chosen = {each for each in ids if is_sampled(each, 0.05)}

    assert chosen == {each for each in ids if is_sampled(each, 0.05)}
    assert len(chosen) == pytest.approx(1000, abs=100)
    assert chosen <= {each for each in ids if is_sampled(each, 0.2)}


def test_share_0_samples_no_job_and_share_1_samples_all() -> None:
    ids = [new_job_id() for _ in range(200)]

    assert not any(is_sampled(each, 0.0) for each in ids)
    assert all(is_sampled(each, 1.0) for each in ids)

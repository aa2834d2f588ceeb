"""How many audits may run: never more than their share of the GPU time, however dear the critic is."""

import pytest

from api.audit.budget import (
    MOST_IN_FLIGHT,
    GpuTime,
    Spent,
    audit_seconds,
    gpu_time,
    most_in_flight,
)


def time(paid_s: float, *, overhead: float = 1.0, mean_job_s: float = 2.0) -> GpuTime:
    return GpuTime(paid_s=paid_s, overhead=overhead, mean_job_s=mean_job_s)


def test_no_audit_runs_when_the_share_is_used_up() -> None:
    assert most_in_flight(Spent(gpu_ms=30_000, jobs=10), 30.0, time(1000), 0.03) == 0


def test_as_many_run_as_the_rest_of_the_share_pays_for() -> None:
    # 3 % of 1,000 s are 30 s; 20 s are used, and an audit costs 2 s.
    assert most_in_flight(Spent(gpu_ms=20_000, jobs=10), 20.0, time(1000), 0.03) == 5


def test_idle_time_and_starts_of_the_critic_count() -> None:
    spent = Spent(gpu_ms=10_000, jobs=5)

    assert audit_seconds(spent, time(1000, overhead=2.0)) == pytest.approx(20.0)
    assert most_in_flight(spent, 20.0, time(1000, overhead=2.0), 0.03) == 2


def test_a_critic_of_which_no_audit_is_known_is_taken_to_cost_what_a_job_costs() -> None:
    assert most_in_flight(Spent(), 0.0, time(1000, mean_job_s=10.0), 0.03) == 3


def test_share_0_lets_no_audit_run() -> None:
    assert most_in_flight(Spent(), 0.0, time(1000), 0.0) == 0


def test_audits_of_another_critic_use_up_the_same_share() -> None:
    assert most_in_flight(Spent(), 30.0, time(1000), 0.03) == 0


def test_where_no_gpu_time_is_paid_for_the_number_in_flight_is_limited_alone() -> None:
    assert most_in_flight(Spent(), 0.0, time(0), 0.03) == MOST_IN_FLIGHT


def test_the_ledger_gives_paid_time_and_what_the_critic_costs_beside_its_work() -> None:
    models = {
        "chat": {"busy_ms": 90_000, "idle_ms": 10_000, "kept_ms": 90_000, "jobs": 45},
        "judge": {"busy_ms": 2_000, "waking_ms": 6_000, "kept_ms": 2_000, "jobs": 5},
    }

    known = gpu_time(models, "judge")

    assert known == GpuTime(paid_s=108.0, overhead=4.0, mean_job_s=92 / 50)
    assert gpu_time(models, "chat").overhead == pytest.approx(100 / 90)
    assert gpu_time({}, "judge") == GpuTime(paid_s=0.0, overhead=1.0, mean_job_s=0.0)


@pytest.mark.parametrize("cost_s", [0.5, 2.0, 40.0])
@pytest.mark.parametrize("overhead", [1.0, 3.0])
def test_in_a_long_run_audits_stay_within_their_share_up_to_those_in_flight(
    cost_s: float, overhead: float
) -> None:
    paid_s, mine = 0.0, Spent()
    for _ in range(3000):
        paid_s += 10.0  # other work
        most = most_in_flight(
            mine,
            audit_seconds(mine, time(0, overhead=overhead)),
            time(paid_s, overhead=overhead),
            0.03,
        )
        mine = Spent(gpu_ms=mine.gpu_ms + round(most * cost_s * 1000), jobs=mine.jobs + most)
        paid_s += most * cost_s * overhead

    used_s = audit_seconds(mine, time(0, overhead=overhead))
    assert used_s <= 0.03 * paid_s
    assert used_s >= 0.025 * paid_s

"""The Black-Friday finding: CPU stays calm while users leave; queue depth and p95 notice."""

import pytest

from knative.simulator.black_friday import Chapter, tell

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(scope="module")
def day() -> tuple[Chapter, Chapter]:
    return tell()


def test_cpu_sits_at_55_percent_and_nothing_scales(day: tuple[Chapter, Chapter]) -> None:
    cpu, _ = day
    assert cpu.cpu_most_percent == pytest.approx(55, abs=1)
    assert cpu.report.most_replicas == 3


def test_meanwhile_the_queue_grows_and_one_in_eight_leaves(day: tuple[Chapter, Chapter]) -> None:
    cpu, _ = day
    assert cpu.queue_quiet < 5
    assert cpu.queue_peak == pytest.approx(48, rel=0.1)
    assert cpu.p95_quiet_s == pytest.approx(0.21, abs=0.05)
    assert cpu.report.total_s.p95 == pytest.approx(4.1, rel=0.05)
    assert cpu.report.timed_out_percent == pytest.approx(12, abs=1.5)


def test_queue_depth_and_p95_keep_everybody(day: tuple[Chapter, Chapter]) -> None:
    _, keda = day
    assert keda.report.timed_out_percent == 0
    assert keda.report.total_s.p95 < 0.35
    assert 9 <= keda.report.most_replicas <= 12

"""The Black-Friday scenario: CPU stays low while users time out; queue depth and p95 react."""

from pathlib import Path

import pytest

from torpor.simulator.black_friday import LoadPhase, run

PAGE = Path(__file__).parents[3] / "docs" / "black-friday.md"


@pytest.fixture(scope="module")
def day() -> tuple[LoadPhase, LoadPhase]:
    return run()


def test_cpu_sits_at_55_percent_and_nothing_scales(day: tuple[LoadPhase, LoadPhase]) -> None:
    cpu, _ = day
    assert cpu.cpu_most_percent == pytest.approx(55, abs=1)
    assert cpu.report.most_replicas == 3


def test_meanwhile_the_queue_grows_and_one_in_eight_leaves(
    day: tuple[LoadPhase, LoadPhase],
) -> None:
    cpu, _ = day
    assert cpu.queue_quiet < 5
    assert cpu.queue_peak == pytest.approx(48, rel=0.1)
    assert cpu.p95_quiet_s == pytest.approx(0.21, abs=0.05)
    assert cpu.report.total_s.p95 == pytest.approx(4.1, rel=0.05)
    assert cpu.report.timed_out_percent == pytest.approx(12, abs=1.5)


def test_queue_depth_and_p95_keep_everybody(day: tuple[LoadPhase, LoadPhase]) -> None:
    _, keda = day
    assert keda.report.timed_out_percent == 0
    assert keda.report.total_s.p95 < 0.35
    assert 9 <= keda.report.most_replicas <= 12


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def test_the_page_says_what_a_run_gives(day: tuple[LoadPhase, LoadPhase]) -> None:
    rows = {
        cells[0]: tuple(cell.replace("**", "") for cell in cells[1:])
        for line in PAGE.read_text("utf-8").splitlines()
        if line.startswith("| ")
        and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 3
    }

    assert rows["CPU of a pod, at most"] == tuple(f"{c.cpu_most_percent:.0f} %" for c in day)
    assert rows["pods"] == tuple(f"3 → {c.report.most_replicas}" for c in day)
    assert rows["requests that wait: quiet → plateau (mean)"] == tuple(
        f"{c.queue_quiet:.0f} → {c.queue_peak:.0f}" for c in day
    )
    assert rows["p95, quiet → plateau (last minute)"] == tuple(
        f"{seconds(c.p95_quiet_s)} → {seconds(c.p95_peak_s)}" for c in day
    )
    assert rows["p95 of all served"] == tuple(seconds(c.report.total_s.p95) for c in day)
    assert rows["timed out"] == (f"{day[0].report.timed_out_percent:.1f} %", "0 %")
    assert rows["pod-seconds"] == tuple(f"{c.report.gpu_billed_s:,.0f}" for c in day)

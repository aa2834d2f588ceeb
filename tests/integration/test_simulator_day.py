"""A day of the published trace, simulated twice: the same bytes, and no memory that grows."""

import tracemalloc
from pathlib import Path

import pytest

from torpor.simulator.candidate import kpa_candidate
from torpor.simulator.engine import GPU_ASSUMED
from torpor.simulator.load import Load
from torpor.simulator.plan import run
from torpor.simulator.report.report import as_json
from torpor.simulator.trace import Trace
from torpor.simulator.world import Scenario

TRACE = Path(__file__).parents[3] / "shared" / "traces" / "azure_llm_2023_conv.csv"

pytestmark = [
    pytest.mark.skipif(not TRACE.is_file(), reason="../shared/traces is not there"),
]


def simulated(hours: float) -> str:
    load = Load(Trace(TRACE, share=50, hours=hours))
    scenario = Scenario(GPU_ASSUMED, load.span_s, preemptions_per_hour=0.2, seed=1)
    return as_json([run(scenario, load, kpa_candidate("kpa", {}, 16), 4.5)])


def peak_bytes(hours: float) -> int:
    tracemalloc.start()
    try:
        simulated(hours)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_day_simulated_twice_gives_the_same_bytes() -> None:
    assert simulated(24) == simulated(24)


def test_three_hours_take_no_more_memory_than_one() -> None:
    assert peak_bytes(3) < 1.3 * peak_bytes(1)

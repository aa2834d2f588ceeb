"""No simulated run that meets the objective costs less than the lower bound."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.policies.bound import Clairvoyant, Setting, lower_bound_s, stretches
from torpor.simulator.candidate import Candidate, fixed_candidate, kpa_candidate, work_candidate
from torpor.simulator.engine import GPU_ASSUMED
from torpor.simulator.load import Load
from torpor.simulator.plan import Tried, WaitTarget, run
from torpor.simulator.workload import Profile, ProfileKind, Request
from torpor.simulator.world import Scenario, simulate

START_S, WAIT_S, SLOTS = 30.0, 60.0, 4
SETTING = Setting(GPU_ASSUMED, SLOTS, START_S, WAIT_S)
LOADS = [
    Load(Profile(kind, 600, 0.02, 1.0), seed)
    for kind in (ProfileKind.BURST, ProfileKind.STEADY)
    for seed in (1, 2)
]


def scenario(load: Load) -> Scenario:
    return Scenario(GPU_ASSUMED, load.span_s + 200, START_S, container_concurrency=SLOTS)


def candidates() -> Sequence[Candidate]:
    ours = work_candidate("work", GPU_ASSUMED, SLOTS, start_s=START_S, p95_wait_s=WAIT_S)
    return kpa_candidate("kpa", {"window": "6s"}, SLOTS), fixed_candidate(1), ours


@pytest.mark.parametrize("load", LOADS, ids=lambda load: f"{load.source.kind} {load.seed}")
def test_whoever_keeps_the_target_pays_at_least_the_bound(load: Load) -> None:
    bound = lower_bound_s(list(load.requests()), SETTING)
    tried = [Tried(each, run(scenario(load), load, each, 4.5)) for each in candidates()]
    kept = [one.report.gpu_billed_s for one in tried if one.meets(WaitTarget(WAIT_S))]
    assert kept
    assert min(kept) >= bound


@pytest.mark.parametrize("load", LOADS, ids=lambda load: f"{load.source.kind} {load.seed}")
def test_the_bounds_own_schedule_can_be_played_and_costs_no_less(load: Load) -> None:
    requests = list(load.requests())
    last_call_s = load.span_s + 100
    policy = Clairvoyant(stretches(requests, SETTING), START_S, last_call_s)

    outcome = simulate(scenario(load), requests, policy)

    assert outcome.unserved == 0
    assert outcome.gpu.billed >= lower_bound_s(requests, SETTING)


def test_one_request_costs_a_cold_start_and_itself() -> None:
    alone = GPU_ASSUMED.alone_s(1000, 101)
    assert lower_bound_s([Request(0.0, 1000, 101)], SETTING) == pytest.approx(START_S + alone)


def test_two_that_are_near_share_a_cold_start_and_two_that_are_far_do_not() -> None:
    near = lower_bound_s([Request(0.0, 1000, 101), Request(20.0, 1000, 101)], SETTING)
    far = lower_bound_s([Request(0.0, 1000, 101), Request(900.0, 1000, 101)], SETTING)
    assert near < 2 * START_S < far


def test_without_borrowing_the_first_lone_request_is_served_at_once() -> None:
    lonely, burst = Request(0.0, 1000, 101), [Request(600.0, 1000, 101)] * 39
    earned_first = replace(SETTING, is_earned_first=True)

    ready_at = {
        setting.is_earned_first: [each.ready_at for each in stretches([lonely, *burst], setting)]
        for setting in (SETTING, earned_first)
    }

    assert ready_at == {False: [660.0], True: [60.0, 660.0]}


def test_without_borrowing_a_request_may_be_deferred_after_a_burst_has_earned_it() -> None:
    burst, lonely = [Request(0.0, 1000, 101)] * 39, Request(200.0, 1000, 101)
    last = Request(900.0, 1000, 101)

    cut = stretches([*burst, lonely, last], replace(SETTING, is_earned_first=True))

    assert [each.ready_at for each in cut] == [60.0, 960.0]

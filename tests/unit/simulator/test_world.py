"""The simulated world serves, waits, scales, drains, loses nodes and pays as the real one would."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from knative.autoscaling.kpa.annotations import read_knative
from torpor.simulator.candidate import keda_candidate, kpa_candidate
from torpor.simulator.cluster import NodeModel
from torpor.simulator.engine import EngineModel
from torpor.simulator.policy import FixedPolicy, KpaPolicy
from torpor.simulator.report.report import as_json, report
from torpor.simulator.view import Autoscaler, PolicyView
from torpor.simulator.workload import Profile, ProfileKind, Request, arrivals
from torpor.simulator.world import Scenario, simulate

# One token a second and place: a request of 11 tokens takes 10 s.
ENGINE = EngineModel(1e9, ((1, 1.0), (100, 100.0)), max_batch=100, decode_during_prefill=1.0)
BASE = Scenario(ENGINE, horizon_s=100, start_s=30, container_concurrency=1)


class Script:
    """A policy that asks for what a function of time says."""

    tick_s = 1.0

    def __init__(self, wanted: Callable[[float], int]) -> None:
        self._wanted = wanted

    def step(self, view: PolicyView, now: float) -> int:
        return self._wanted(now)

    def wake(self, view: PolicyView, now: float) -> int | None:
        return None


def at(*times: float, output: int = 11) -> list[Request]:
    return [Request(time, 0, output) for time in times]


def test_requests_wait_for_a_free_place_in_order() -> None:
    outcome = simulate(replace(BASE, initial_replicas=1), at(0, 0, 0), FixedPolicy(1))
    assert (outcome.served, outcome.wait.largest, outcome.total.largest) == (
        3,
        pytest.approx(20),
        pytest.approx(30),
    )


def test_a_cold_start_takes_node_and_engine_start() -> None:
    scenario = replace(BASE, nodes=NodeModel(provision_s=60))
    outcome = simulate(scenario, at(5), Script(lambda now: int(now >= 5)))
    assert outcome.wait.largest == pytest.approx(90)
    assert (outcome.cold_starts, outcome.gpu.waking) == (1, pytest.approx(90))


def test_a_warm_node_saves_the_provisioning_and_is_paid_all_the_time() -> None:
    scenario = replace(BASE, nodes=NodeModel(provision_s=60, warm_nodes=1))
    outcome = simulate(scenario, at(5), Script(lambda now: int(5 <= now < 50)))
    assert outcome.wait.largest == pytest.approx(30)
    assert outcome.gpu.billed == pytest.approx(outcome.end_s)
    assert outcome.gpu.empty > 0


def test_gpu_seconds_add_up_to_what_is_billed() -> None:
    scenario = replace(BASE, initial_replicas=2)
    outcome = simulate(scenario, at(0, 20, 40), Script(lambda now: 2 if now < 60 else 0))
    gpu = outcome.gpu
    assert (gpu.busy, gpu.waking) == (pytest.approx(30), 0)
    assert gpu.billed == pytest.approx(gpu.busy + gpu.idle) == pytest.approx(120)


def test_a_drained_replica_ends_its_work_first() -> None:
    scenario = replace(BASE, initial_replicas=1)
    outcome = simulate(scenario, at(0), Script(lambda now: 1 if now < 5 else 0))
    assert (outcome.served, outcome.handed_over, outcome.gpu.busy) == (1, 0, pytest.approx(10))


def test_after_its_grace_a_draining_replica_hands_its_work_over() -> None:
    scenario = replace(BASE, initial_replicas=1, grace_s=2, start_s=1)
    outcome = simulate(scenario, at(0), Script(lambda now: 1 if now < 3 else 0 if now < 6 else 1))
    # Five of eleven tokens at 5 s; the other replica is ready at 7 s and goes on from there.
    assert (outcome.served, outcome.handed_over) == (1, 1)
    assert outcome.total.largest == pytest.approx(12, abs=1.1)


def test_an_idle_replica_goes_before_a_busy_one() -> None:
    scenario = replace(BASE, initial_replicas=2)
    outcome = simulate(scenario, at(0), Script(lambda now: 2 if now < 3 else 1))
    assert outcome.handed_over == 0
    assert outcome.total.largest == pytest.approx(10)


def test_whoever_waits_too_long_leaves() -> None:
    scenario = replace(BASE, initial_replicas=1, timeout_s=15)
    outcome = simulate(scenario, at(0, 0, 0), FixedPolicy(1))
    # The second would end at 20 s: too late. The third leaves the queue at 15 s.
    assert (outcome.served, outcome.timed_out) == (1, 2)


def test_a_full_queue_refuses() -> None:
    scenario = replace(BASE, initial_replicas=1, queue_limit=1)
    outcome = simulate(scenario, at(0, 1, 2, 3), FixedPolicy(1))
    assert (outcome.served, outcome.refused) == (2, 2)


def test_requests_that_are_never_served_are_counted() -> None:
    outcome = simulate(BASE, at(0, 1), FixedPolicy(0))
    assert (outcome.served, outcome.unserved) == (0, 2)


@pytest.mark.parametrize(("does_resume", "slower"), [(True, False), (False, True)])
def test_a_lost_node_costs_less_when_answers_resume(does_resume: bool, slower: bool) -> None:
    scenario = Scenario(
        ENGINE,
        horizon_s=7200,
        start_s=10,
        container_concurrency=1,
        initial_replicas=2,
        preemptions_per_hour=30,
        notice_s=5,
        does_resume=does_resume,
        seed=3,
    )
    outcome = simulate(scenario, at(*range(0, 7200, 60), output=41), FixedPolicy(2))
    assert outcome.served == 120
    assert outcome.handed_over > 0
    assert (outcome.total.largest > 75) is slower


def test_at_zero_the_kpa_decides_at_the_first_request() -> None:
    scaling = kpa_candidate("kpa", {}, 1).build()
    outcome = simulate(BASE, at(5.3), scaling)
    assert outcome.wait.largest == pytest.approx(30)


def test_an_idle_kpa_revision_sleeps_within_window_and_grace() -> None:
    outcome = simulate(replace(BASE, horizon_s=600), at(5.3), kpa_candidate("k", {}, 1).build())
    asked = [(point[0], point[1]) for point in outcome.series.points]
    last_up = max(t for t, replicas in asked if replicas > 0)
    # Ended at 45 s; the average is 0 a window later, the replica gone within the grace after it.
    assert 45 + 60 <= last_up <= 45 + 60 + 30 + 4


def test_keda_wakes_at_its_poll() -> None:
    candidate = keda_candidate("keda", {"pollingInterval": 30}, 1)
    outcome = simulate(BASE, at(5), candidate.build())
    assert outcome.wait.largest == pytest.approx(25 + 30)


def test_the_kpa_never_kills_a_busy_replica() -> None:
    annotations = {"autoscaling.knative.dev/window": "6s"}
    service = {
        "kind": "Service",
        "spec": {
            "template": {
                "metadata": {"annotations": annotations},
                "spec": {"containerConcurrency": 1},
            }
        },
    }
    requests = arrivals(Profile(ProfileKind.BURST, 1200, 0.02, 1.0), seed=5)
    engine = EngineModel(20_000.0, ((1, 100.0),), max_batch=1)
    scenario = Scenario(engine, horizon_s=1200, start_s=5)
    outcome = simulate(scenario, requests, KpaPolicy(read_knative(service)))
    assert outcome.served == outcome.requests
    assert outcome.handed_over == 0


def _bytes(policy: Autoscaler) -> str:
    profile = Profile(ProfileKind.BLACK_FRIDAY, 3600, 0.05, 2.0)
    engine = EngineModel(20_000.0, ((1, 100.0), (8, 700.0)), max_batch=8)
    scenario = Scenario(engine, 4200, preemptions_per_hour=2, seed=9)
    outcome = simulate(scenario, arrivals(profile, 4), policy)
    return as_json([report("x", outcome, 4.5)])


def test_the_same_run_twice_gives_the_same_bytes() -> None:
    one, two = (_bytes(kpa_candidate("kpa", {}, 8).build()) for _ in range(2))
    assert one == two

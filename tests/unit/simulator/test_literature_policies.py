"""Chiron's and ENOVA's rules decide as their papers and code say, and the comparison reads cost at equal waits."""

import math

import pytest

from bench.policies import chiron, enova, literature
from bench.policies.chiron import ChironSpec, ChironState, Group
from bench.policies.enova import EnovaSpec, Minute
from bench.policies.literature import Files, Point, cost_at, frontier, with_batch
from torpor.simulator.engine import CPU_SMALL, GPU_ASSUMED
from torpor.simulator.load import Load
from torpor.simulator.workload import Profile, ProfileKind, Request
from torpor.simulator.world import Scenario, simulate

SPEC = ChironSpec(slots=10, tokens_per_s=1000, start_s=30, over_provisioning=1 / 3)


def test_chirons_batch_size_grows_while_latency_and_throughput_allow() -> None:
    assert chiron.batch_size(8, 64, 0.5) == 16
    assert chiron.batch_size(48, 64, 1.0) == 64
    assert chiron.batch_size(16, 64, 2.0) == 8
    # Twice the objective, or a third of the throughput lost: the worse of the two.
    assert chiron.local_backpressure(0.1, 0.05, 1000, 1500) == 2
    assert chiron.local_backpressure(0.01, 0.05, 1500, 1000) == 1.5


@pytest.mark.parametrize(("slo_s", "size"), [(0.05, 64), (0.0135, 16), (0.001, 1)])
def test_chirons_batch_size_settles_where_latency_meets_its_objective(
    slo_s: float, size: int
) -> None:
    assert chiron.settled_batch_size(GPU_ASSUMED, slo_s) == size
    assert chiron.settled_batch_size(CPU_SMALL, 1.0) == CPU_SMALL.max_batch


def test_chiron_holds_three_times_what_interactive_requests_take() -> None:
    assert chiron.interactive_pool(SPEC, 1, needed=1) == 3
    assert chiron.interactive_pool(SPEC, 3, needed=1) == 3
    assert chiron.interactive_pool(SPEC, 3, needed=2) == 6
    assert chiron.interactive_pool(SPEC, 6, needed=1) == 3
    # Within the tolerance nothing changes: 3 of 8 are 0.375.
    assert chiron.interactive_pool(SPEC, 8, needed=3) == 8
    assert chiron.interactive_pool(SPEC, 3, needed=0) == 1


def test_chirons_batch_backpressure_counts_groups_that_would_miss_their_deadline() -> None:
    groups = chiron.groups_of([(500, 65), (500, 70), (4000, 130), (1000, 600)], group_s=60)
    assert groups == [Group(1000, 65), Group(4000, 130), Group(1000, 600)]
    assert chiron.batch_backpressure(groups, tokens_per_s=100, starting_s=0) == 0
    assert chiron.batch_backpressure(groups, tokens_per_s=20, starting_s=0) == 1
    assert chiron.batch_backpressure(groups, tokens_per_s=9, starting_s=0) == 3
    assert chiron.batch_backpressure(groups, tokens_per_s=100, starting_s=600) == 3


def test_chiron_adds_batch_instances_only_when_the_spare_ones_would_be_late() -> None:
    groups = [Group(100_000, 600.0)]
    assert chiron.batch_instances(SPEC, groups, 0, spare_tokens_per_s=200) == 0
    assert chiron.batch_instances(SPEC, [Group(100_000, 80.0)], 0, spare_tokens_per_s=200) == 2
    assert chiron.batch_instances(SPEC, [], 5, spare_tokens_per_s=0) == 0
    # Nothing runs: one is started when one that starts later would not do, and for those that are lost.
    assert chiron.batch_instances(SPEC, [Group(1000, 40.0)], 0, spare_tokens_per_s=0) == 0
    assert chiron.batch_instances(SPEC, [Group(1000, 30.0)], 0, spare_tokens_per_s=0) == 1


def test_chiron_counts_the_pools_free_places_for_batch_requests() -> None:
    state = chiron.decide(SPEC, ChironState(pool=3), 1, [Group(100_000, 80.0)], share_free=0.9)
    assert state == ChironState(pool=3, batch=0)
    state = chiron.decide(SPEC, ChironState(pool=3), 1, [Group(100_000, 80.0)], share_free=0.0)
    assert state == ChironState(pool=3, batch=2)


def minutes(*pending: int, used: float = 0.5, came: int = 90, done: int = 30) -> list[Minute]:
    return [Minute(count, used, came, done) for count in pending]


def test_enova_scales_up_in_proportion_once_requests_have_waited_for_three_minutes() -> None:
    spec = EnovaSpec()
    assert enova.recommended(spec, minutes(10, 50, 10), replicas=2) == 6  # 90 / 30 * 2
    assert enova.recommended(spec, minutes(10, 9, 10), replicas=2) == 2
    assert enova.recommended(spec, minutes(50, 50), replicas=2) == 2
    assert enova.recommended(spec, minutes(10, 10, 10, came=10), replicas=2) == 2
    assert enova.recommended(spec, minutes(10, 10, 10, done=0), replicas=2) == spec.most


def test_enova_halves_what_is_nearly_unused_and_keeps_one() -> None:
    spec = EnovaSpec()
    assert enova.recommended(spec, minutes(0, 0, 0, used=0.1), replicas=5) == 3
    assert enova.recommended(spec, minutes(0, 0, 0, used=0.11), replicas=5) == 5
    assert enova.recommended(spec, minutes(0, 0, 0, used=0.0), replicas=1) == 1


def test_the_cheapest_line_leaves_out_beaten_settings_and_those_that_are_late() -> None:
    points = [
        Point("l", "p", name, wait_s, cost, late, 0)
        for name, wait_s, cost, late in (
            ("a", 10, 100, 0), ("b", 20, 120, 0), ("c", 30, 60, 0), ("d", 30, 1, 5),
        )
    ]  # fmt: skip
    line = frontier(points, late_percent=1)
    assert [each.setting for each in line] == ["a", "c"]
    assert cost_at(line, 20) == 80
    assert (cost_at(line, 5), cost_at(line, 300)) == (None, 60)


def test_batch_requests_run_behind_interactive_ones_and_are_late_past_their_deadline() -> None:
    interactive = [Request(1.0, 100, 1000) for _ in range(3)]
    batch = [Request(0.5, 100, 100, deadline_s=each) for each in (500.0, 5.0)]
    scenario = Scenario(GPU_ASSUMED, 60, start_s=10, container_concurrency=1, initial_replicas=0)
    outcome = simulate(scenario, [*batch, *interactive], literature.EnovaPolicy(EnovaSpec()))
    assert (outcome.served, outcome.batch.requests, outcome.batch.late) == (5, 2, 1)
    assert outcome.wait.count == 3
    # They began one after the other when the replica was up, before any batch request.
    assert math.isclose(outcome.wait.largest, 9 + 2 * 10, rel_tol=0.02)


def test_batch_files_have_the_loads_lengths_and_come_at_once() -> None:
    load = Load(Profile(ProfileKind.STEADY, 100, 1.0, 1.0))
    requests = with_batch(load, Files((10.0, 50.0), 7, 300.0))
    batch = [each for each in requests if each.deadline_s]
    lengths = {each.prompt_tokens for each in load.requests()}
    assert [each.at for each in batch] == [10.0] * 7 + [50.0] * 7
    assert {each.prompt_tokens for each in batch} <= lengths
    assert requests == sorted(requests, key=lambda each: each.at)

"""Several simulated models on one clock never hold more GPUs than there are, and each is served."""

import pytest

from bench.policies.places import Places, together
from torpor.simulator.load import Load
from torpor.simulator.workload import Profile, ProfileKind

BUSY = Load(Profile(ProfileKind.STEADY, 200, 2.0, 2.0))
SELDOM = [Load(Profile(ProfileKind.STEADY, 200, 0.02, 0.02), seed) for seed in (1, 2)]


@pytest.mark.parametrize("takes_turns", [True, False])
def test_models_share_a_gpu_and_all_their_jobs_are_served(takes_turns: bool) -> None:
    places = Places(1, start_s=10, wait_s=30, takes_turns=takes_turns)

    found = together([BUSY, *SELDOM], places, grace_s=5, tail_s=100)

    assert [each.unserved for each in found] == [0, 0, 0]
    assert all(each.served for each in found)
    assert places.most_held == 1


def test_a_model_that_never_rests_makes_others_wait_less_where_they_take_turns() -> None:
    waits = {}
    for takes_turns in (True, False):
        places = Places(1, start_s=10, wait_s=30, takes_turns=takes_turns)
        found = together([BUSY, *SELDOM], places, grace_s=5, tail_s=100)
        waits[takes_turns] = max(each.wait.largest for each in found[1:])
    assert waits[True] < waits[False]

"""Models that want more replicas than there are places get them by deadline and work."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knative.autoscaling.work.places import ModelDemand, granted


def grants(*models: ModelDemand, places: int = 1, least_up_s: float = 60) -> dict[str, int]:
    found = granted(models, places, lead_s=30, least_up_s=least_up_s)
    return {name: count for name, count in found.items() if count}


def waiting(name: str, left_s: float, work: float = 1, wanted: int = 1) -> ModelDemand:
    return ModelDemand(name, wanted, work=work, left_s=left_s)


def test_the_model_with_the_least_time_left_wakes_first_then_the_one_with_more_work() -> None:
    assert grants(waiting("a", 50), waiting("b", 40)) == {"b": 1}
    assert grants(waiting("a", 40, work=2), waiting("b", 40, work=9)) == {"b": 1}
    assert grants(waiting("a", 50), waiting("b", 40), places=2) == {"a": 1, "b": 1}


def test_no_model_gets_a_second_replica_before_each_has_one() -> None:
    many = waiting("many", 10, work=100, wanted=4)
    assert grants(many, waiting("few", 500), places=2) == {"many": 1, "few": 1}
    assert grants(many, waiting("few", 500), places=4) == {"many": 3, "few": 1}


def test_an_idle_replica_stays_until_another_model_needs_its_place() -> None:
    idle = ModelDemand("idle", 1, up=1, idle_s=5)
    older = ModelDemand("older", 1, up=1, idle_s=50)
    assert grants(idle, older, places=2) == {"idle": 1, "older": 1}
    assert grants(idle, older, waiting("new", 500), places=2) == {"idle": 1, "new": 1}
    assert grants(idle, older, waiting("new", 500), places=3) == {"idle": 1, "older": 1, "new": 1}


@pytest.mark.parametrize(
    ("left_s", "up_s", "winner"), [(40, 600, "busy"), (20, 30, "busy"), (20, 600, "new")]
)
def test_a_busy_replica_yields_only_to_one_that_must_start_now_and_after_its_turn(
    left_s: float, up_s: float, winner: str
) -> None:
    busy = ModelDemand("busy", 1, up=1, busy=1, up_s=up_s)
    assert grants(busy, waiting("new", left_s)) == {winner: 1}


def test_the_model_with_the_most_replicas_yields_then_the_one_with_the_most_time() -> None:
    two = ModelDemand("two", 2, up=2, busy=2, up_s=600, work=5, left_s=-50)
    one = ModelDemand("one", 1, up=1, busy=1, up_s=600)
    late = ModelDemand("late", 1, up=1, busy=1, up_s=600, work=5, left_s=-20)
    new = waiting("new", 0)
    assert grants(two, one, new, places=3) == {"two": 1, "one": 1, "new": 1}
    assert grants(late, one, new, places=2) == {"late": 1, "new": 1}
    # One that is later than the newcomer keeps its only place.
    assert grants(late, new, places=1) == {"late": 1}


def test_what_is_wanted_no_more_gives_its_place_up() -> None:
    assert grants(ModelDemand("gone", 0, up=2), waiting("new", 500)) == {"new": 1}
    assert grants(ModelDemand("gone", 1, up=3, busy=3), places=3) == {"gone": 1}


demands = st.builds(
    ModelDemand,
    name=st.text("abcdef", min_size=1, max_size=3),
    wanted=st.integers(0, 5),
    up=st.integers(0, 5),
    busy=st.integers(0, 5),
    work=st.sampled_from([0.0, 1.0, 20.0]),
    left_s=st.floats(-100, 1000),
    idle_s=st.floats(0, 100),
    up_s=st.floats(0, 1000),
)


@given(st.lists(demands, unique_by=lambda each: each.name), st.integers(1, 8))
def test_no_more_is_granted_than_wanted_and_than_fits_and_no_place_is_left_empty(
    models: list[ModelDemand], places: int
) -> None:
    found = granted(models, places, lead_s=30, least_up_s=60)
    busy = sum(min(each.busy, each.wanted) for each in models)
    assert all(0 <= found[each.name] <= each.wanted for each in models)
    # What works already may be more than fits, when there were more places before.
    assert sum(found.values()) <= max(places, busy)
    assert sum(found.values()) >= min(places, sum(each.wanted for each in models))
    assert all(math.isfinite(count) for count in found.values())

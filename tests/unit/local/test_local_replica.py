"""Which predictor gets a request, and which one has to go."""

import pytest

from torpor.local.predictors.replica import LocalReplica, ReplicaState, held, least_busy, to_drain

READY, WAKING, DRAINING = ReplicaState.READY, ReplicaState.WAKING, ReplicaState.DRAINING


def replica(
    name: str, state: ReplicaState, in_flight: int = 0, started_s: float = 0.0
) -> LocalReplica:
    return LocalReplica(
        id=name, url="http://x", state=state, in_flight=in_flight, started_s=started_s
    )


def test_the_least_busy_ready_replica_gets_the_request() -> None:
    replicas = [replica("a", READY, 2), replica("b", READY, 1), replica("c", READY, 3)]

    chosen = least_busy(replicas, concurrency=4)

    assert chosen is replicas[1]


@pytest.mark.parametrize("state", [WAKING, DRAINING, ReplicaState.ENDED])
def test_only_a_ready_replica_gets_requests(state: ReplicaState) -> None:
    assert least_busy([replica("a", state)], concurrency=4) is None


def test_a_replica_never_gets_more_than_its_concurrency() -> None:
    assert least_busy([replica("a", READY, 4)], concurrency=4) is None


def test_replicas_that_still_wake_go_before_replicas_that_serve() -> None:
    replicas = [replica("serves", READY), replica("wakes", WAKING, started_s=1)]

    assert [r.id for r in to_drain(replicas, 1)] == ["wakes"]


def test_the_least_busy_replica_goes_first() -> None:
    replicas = [replica("busy", READY, 3), replica("calm", READY, 0)]

    assert [r.id for r in to_drain(replicas, 1)] == ["calm"]


def test_a_replica_that_drains_already_is_not_drained_again() -> None:
    assert to_drain([replica("going", DRAINING)], 1) == []


def test_no_surplus_drains_nothing() -> None:
    assert to_drain([replica("a", READY)], 0) == []


def test_scaling_up_drains_no_replica() -> None:
    """From two to three, a surplus of -1 once cut the list from its end and drained the first."""
    assert to_drain([replica("a", READY), replica("b", READY)], -1) == []


def test_a_replica_that_a_job_is_expected_back_at_goes_last_of_the_idle_ones() -> None:
    replicas = [replica("prefix", READY), replica("other", READY), replica("gone", DRAINING)]

    assert held(replicas, {"prefix", "gone", "unknown"}) == 1
    assert [r.id for r in to_drain(replicas, 1)] == ["other"]
    assert held(replicas, ()) == 0
    assert [r.id for r in to_drain(replicas, 1)] == ["prefix"]

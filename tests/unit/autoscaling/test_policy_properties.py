"""Properties of every policy under any load: within bounds, never down in panic, no change at rest."""

from hypothesis import given
from hypothesis import strategies as st

from knative.autoscaling.hpa import hpa
from knative.autoscaling.hpa.behavior import Behavior
from knative.autoscaling.hpa.hpa import HpaReading, HpaSpec, HpaState
from knative.autoscaling.hpa.metric import Metric, Replicas
from knative.autoscaling.keda import keda
from knative.autoscaling.keda.trigger import RedisStreams, ScalerTrigger, StreamMode
from knative.autoscaling.kpa import kpa, reconciler

loads = st.lists(st.floats(0, 500), min_size=1, max_size=120)
bounds = st.tuples(st.integers(0, 5), st.integers(0, 20)).map(lambda b: (b[0], b[0] + b[1] + 1))


@given(loads=loads, bounds=bounds)
def test_the_kpa_stays_within_its_bounds(loads: list[float], bounds: tuple[int, int]) -> None:
    least, most = bounds
    policy = reconciler.ScalePolicy(min_scale=least, max_scale=most)
    state = kpa.start(kpa.KpaSpec(target=7, total=10), ready_pods=0, now=0)
    revision = reconciler.start(policy, now=0)
    replicas = max(1, least)
    for second, load in enumerate(loads):
        state = kpa.record(state, second, load)
        state, decision = kpa.decide(state, replicas, second)
        pods = reconciler.Pods(replicas, replicas)
        revision, outcome = reconciler.reconcile(policy, revision, decision, pods, second)
        replicas = outcome.replicas
        assert least <= replicas <= most


@given(loads=loads, ready=st.integers(0, 30))
def test_the_kpa_never_scales_down_in_panic(loads: list[float], ready: int) -> None:
    state = kpa.start(kpa.KpaSpec(target=7, total=10), ready_pods=0, now=0)
    before = None
    for second, load in enumerate(loads):
        state = kpa.record(state, second, load)
        state, decision = kpa.decide(state, ready, second)
        if decision.is_panicking and before is not None and before.is_panicking:
            assert decision.desired >= before.desired
        before = decision


@given(load=st.floats(0, 300))
def test_the_kpa_at_rest_wants_what_it_wanted(load: float) -> None:
    """A steady load, answered with what was asked for, changes nothing any more."""
    state = kpa.start(kpa.KpaSpec(target=7, total=10), ready_pods=0, now=0)
    ready, wanted = 0, []
    for second in range(300):
        state = kpa.record(state, second, load)
        state, decision = kpa.decide(state, ready, second)
        ready = decision.desired
        wanted.append(ready)
    assert len(set(wanted[-60:])) == 1


values = st.one_of(st.none(), st.floats(0, 1000))


@given(
    loads=st.lists(values, min_size=1, max_size=40),
    bounds=bounds,
    behavior=st.sampled_from([None, Behavior()]),
    start=st.integers(1, 40),
)
def test_the_hpa_stays_within_its_bounds(
    loads: list[float | None], bounds: tuple[int, int], behavior: Behavior | None, start: int
) -> None:
    least, most = max(1, bounds[0]), bounds[1]
    spec = HpaSpec((Metric("q", 4),), min_replicas=least, max_replicas=most, behavior=behavior)
    state, replicas = HpaState(), start
    for sync, load in enumerate(loads):
        reading = HpaReading(Replicas(replicas, replicas, replicas), {"q": load})
        state, decision = hpa.decide(spec, state, reading, sync * 15.0)
        if least <= replicas <= most:
            assert least <= decision.replicas <= most
        replicas = decision.replicas


@given(
    loads=st.lists(st.tuples(values, values), min_size=1, max_size=60),
    least=st.integers(0, 3),
    start=st.integers(0, 10),
)
def test_keda_stays_within_its_bounds(
    loads: list[tuple[float | None, float | None]], least: int, start: int
) -> None:
    triggers = (
        ScalerTrigger("lag", RedisStreams(StreamMode.LAG), 4),
        ScalerTrigger("pend", RedisStreams(StreamMode.PENDING), 4),
    )
    spec = keda.KedaSpec(triggers, min_replicas=least, max_replicas=10)
    state, replicas = keda.start(spec, now=0), max(start, least)
    for beat, (lag, pend) in enumerate(loads):
        seen = Replicas(replicas, replicas, replicas)
        state, decision = keda.decide(spec, state, {"lag": lag, "pend": pend}, seen, beat * 5.0)
        replicas = decision.replicas
        assert least <= replicas <= 10


@given(load=st.floats(0, 400), replicas=st.integers(1, 100))
def test_the_hpa_at_rest_decides_the_same_twice(load: float, replicas: int) -> None:
    spec, state = HpaSpec((Metric("q", 4),)), HpaState()
    for sync in range(60):
        reading = HpaReading(Replicas(replicas, replicas, replicas), {"q": load})
        state, decision = hpa.decide(spec, state, reading, sync * 15.0)
        replicas = decision.replicas
    reading = HpaReading(Replicas(replicas, replicas, replicas), {"q": load})
    assert hpa.decide(spec, state, reading, 900.0)[1].replicas == replicas

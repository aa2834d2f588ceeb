"""The embedded stack's manifests are the cluster's: our readers take them and route by them."""

import pytest

from eventing.broker.delivery.decision import span_s
from eventing.broker.trigger import Trigger, parse_trigger
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import REQUESTED
from eventing.cloudevent.result_event import COMPLETED
from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.autoscaling.kpa.annotations import read_knative
from knative.autoscaling.kpa.autoscaler_config import read_autoscaler_config
from torpor.local import manifest
from torpor.local.settings import StackSettings

SETTINGS = StackSettings(max_replicas=3, container_concurrency=4, window=12, max_job_seconds=600)


def triggers(settings: StackSettings = SETTINGS) -> dict[str, Trigger]:
    made = manifest.triggers(
        {"m": settings}, activator_url=lambda model: f"http://a/{model}", api_url="http://b/in"
    )
    return {t.name: t for t in map(parse_trigger, made)}


def event(kind: str, **extensions: str) -> Event:
    return Event(id="1", source="/s", type=kind, extensions=extensions)


@pytest.mark.parametrize(
    ("offered", "wanted_by"),
    [
        pytest.param(event(REQUESTED, model="m"), "requests-m", id="request for the model"),
        pytest.param(event(REQUESTED, model="other"), "strays", id="request for another model"),
        pytest.param(event(REQUESTED), "strays", id="request without the attribute"),
    ],
)
def test_exactly_one_trigger_wants_an_event(offered: Event, wanted_by: str) -> None:
    assert [name for name, t in triggers().items() if t.matches(offered)] == [wanted_by]


@pytest.mark.parametrize("kind", ["com.example.order.v1", COMPLETED])
def test_no_trigger_wants_a_foreign_event_or_a_result(kind: str) -> None:
    assert not [t for t in triggers().values() if t.matches(event(kind, model="m"))]


@pytest.mark.parametrize("longest_s", [1, 60, 600, 86_400])
def test_retries_outlast_the_longest_job(longest_s: int) -> None:
    request = triggers(StackSettings(max_job_seconds=longest_s))["requests-m"]

    assert span_s(request.delivery) > longest_s
    assert request.delivery.timeout_s > longest_s


def test_as_many_requests_are_in_delivery_as_all_replicas_can_take() -> None:
    assert triggers()["requests-m"].parallelism == 12


def test_the_autoscaler_reads_the_service_as_the_cluster_would() -> None:
    config = read_autoscaler_config(manifest.config_autoscaler(SETTINGS))

    scaling = read_knative(manifest.service(SETTINGS, "m"), config)

    assert scaling.container_concurrency == 4
    assert scaling.spec.stable_window_s == 12
    assert scaling.policy.max_scale == 3
    assert scaling.policy.initial_scale == 0
    assert scaling.policy.scale_to_zero_grace_s == 30


def test_keda_counts_work_in_flight_as_work() -> None:
    spec = read_scaled_object(manifest.scaled_object(SETTINGS, "m"))

    assert spec.modifiers is not None
    assert {t.key for t in spec.triggers} == {"lag", "pend"}
    assert spec.max_replicas == 3

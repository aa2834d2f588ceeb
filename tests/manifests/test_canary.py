"""A canary takes its share of the jobs by their id, on every broker alike."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eventing.broker.trigger import parse_trigger
from eventing.cloudevent.event import Event
from eventing.job.job import new_job_id
from knative.deploy.doctor import Severity, examine
from knative.deploy.render.model.inference import INITIAL_SCALE
from knative.deploy.rollout.canary import (
    CanaryError,
    Change,
    is_canary,
    is_traffic_split,
    promoted,
    suffixes,
    with_canary,
    with_traffic,
    without_canary,
)
from tests.manifests.conftest import Resources
from tests.manifests.crd import Crds

CHANGE = Change(image="registry.example.com/torpor/predictor:0.2.0", model_uri="hf://new/model")


def named(resources: Resources, kind: str, name: str) -> dict[str, Any]:
    """The one resource of that kind and name."""
    return next(r for r in resources if r["kind"] == kind and r["metadata"]["name"] == name)


def own_triggers(resources: Resources) -> dict[str, dict[str, Any]]:
    """The triggers of our broker, by name."""
    text = named(resources, "ConfigMap", "torpor-triggers")["data"]["triggers.yaml"]
    return {t["metadata"]["name"]: t for t in yaml.safe_load_all(text)}


def event(job_id: str) -> Event:
    """A request event of that job."""
    return Event(
        id=job_id,
        source="/torpor/api",
        type="dev.torpor.inference.requested.v1",
        extensions={"model": "thinker"},
    )


@pytest.mark.parametrize("percent", [1, 6.25, 10, 50, 99])
def test_a_share_of_random_ids_goes_to_the_canary(percent: float) -> None:
    ids = [f"job_{secrets.token_hex(12)}" for _ in range(20_000)]

    share = sum(is_canary(job_id, percent) for job_id in ids) / len(ids)

    assert share == pytest.approx(percent / 100, abs=0.02)


@given(st.integers(1, 255))
def test_endings_do_not_overlap_and_add_up(share: int) -> None:
    endings = suffixes(share * 100 / 256)

    assert sum(16 ** -len(ending) for ending in endings) == share / 256
    assert len(endings) <= 30


@pytest.mark.parametrize("percent", [0, 0.1, 100, 120])
def test_no_share_and_the_whole_are_no_canary(percent: float) -> None:
    with pytest.raises(CanaryError, match="more than 0 %"):
        suffixes(percent)


def test_our_broker_splits_jobs_as_is_canary_says(overlays: dict[str, Resources]) -> None:
    made = own_triggers(with_canary(overlays["queue"], "thinker", 10, CHANGE))
    stable = parse_trigger(made["requests-thinker"])
    canary = parse_trigger(made["requests-thinker-canary"])

    for _ in range(500):
        job_id = new_job_id()
        assert canary.matches(event(job_id)) is is_canary(job_id, 10)
        assert stable.matches(event(job_id)) is not is_canary(job_id, 10)


def test_every_other_producers_job_goes_somewhere(overlays: dict[str, Resources]) -> None:
    made = own_triggers(with_canary(overlays["queue"], "thinker", 10, CHANGE))
    both = [parse_trigger(made[n]) for n in ("requests-thinker", "requests-thinker-canary")]

    for any_id in ("A-123", "00", "order/7", "ü", " "):
        assert sum(trigger.matches(event(any_id)) for trigger in both) == 1


def test_the_canary_has_its_own_service_pump_and_stream(overlays: dict[str, Resources]) -> None:
    made = with_canary(overlays["queue"], "thinker", 10, CHANGE)

    predictor = named(made, "InferenceService", "thinker-canary")["spec"]["predictor"]
    model, pump = predictor["containers"]
    assert model["image"] == CHANGE.image
    assert {"name": "STORAGE_URI", "value": CHANGE.model_uri} in model["env"]
    assert {"name": "TORPOR_TRIGGER", "value": "requests-thinker-canary"} in pump["env"]
    scaled = named(made, "ScaledObject", "thinker-canary")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "thinker-canary-predictor"
    assert scaled["triggers"][0]["metadata"]["stream"] == (
        "torpor:{requests-thinker-canary}:tickets"
    )


def test_knative_delivers_the_canarys_jobs_to_its_own_service(
    overlays: dict[str, Resources],
) -> None:
    made = with_canary(overlays["serverless-kafka"], "thinker", 25, CHANGE)

    canary = named(made, "Trigger", "requests-thinker-canary")["spec"]
    assert canary["subscriber"]["ref"]["name"] == "thinker-canary-predictor"
    assert canary["delivery"] == named(made, "Trigger", "requests-thinker")["spec"]["delivery"]


@pytest.mark.parametrize("overlay", ["queue", "serverless-kafka"])
def test_a_canary_is_as_sound_as_its_model(overlays: dict[str, Resources], overlay: str) -> None:
    made = with_canary(overlays[overlay], "thinker", 10, CHANGE)

    assert examine(made).of(Severity.ERROR) == ()


def test_a_canary_on_rabbitmq_is_refused_by_the_doctor(overlays: dict[str, Resources]) -> None:
    made = with_canary(overlays["serverless"], "thinker", 10, CHANGE)

    assert {f.rule.name for f in examine(made).of(Severity.ERROR)} == {"rabbitmq-filters"}


@pytest.mark.parametrize("overlay", ["queue", "serverless-kafka"])
def test_a_canary_is_valid_for_the_api_server(
    overlays: dict[str, Resources], crds: Crds, overlay: str
) -> None:
    made = with_canary(overlays[overlay], "thinker", 10, CHANGE)

    assert [crds.faults(r) for r in made if crds.knows(r) and crds.faults(r)] == []


@pytest.mark.parametrize("overlay", ["queue", "serverless-kafka"])
def test_withdrawing_a_canary_leaves_what_was(overlays: dict[str, Resources], overlay: str) -> None:
    before = overlays[overlay]

    after = without_canary(with_canary(before, "thinker", 10, CHANGE), "thinker")

    assert _parsed(after) == _parsed(before)


def _parsed(resources: Resources) -> Resources:
    """The resources with the text of our triggers read: its layout may differ."""
    found = [dict(r) for r in resources]
    for resource in found:
        if resource["metadata"]["name"] == "torpor-triggers":
            text = resource["data"]["triggers.yaml"]
            resource["data"] = {"triggers.yaml": list(yaml.safe_load_all(text))}
    return found


def test_promoting_gives_the_model_what_the_canary_had(overlays: dict[str, Resources]) -> None:
    made = promoted(with_canary(overlays["queue"], "thinker", 10, CHANGE), "thinker")

    box = named(made, "InferenceService", "thinker")["spec"]["predictor"]["containers"][0]
    assert box["image"] == CHANGE.image
    assert {"name": "STORAGE_URI", "value": CHANGE.model_uri} in box["env"]
    assert not any("canary" in r["metadata"]["name"] for r in made)
    assert set(own_triggers(made)) == {"requests-thinker", "strays"}


def test_promoting_without_a_canary_says_so(overlays: dict[str, Resources]) -> None:
    with pytest.raises(CanaryError, match="no canary"):
        promoted(overlays["queue"], "thinker")


def test_a_canary_of_an_unknown_model_is_refused(overlays: dict[str, Resources]) -> None:
    with pytest.raises(CanaryError, match="InferenceService/other"):
        with_canary(overlays["queue"], "other", 10, CHANGE)


def test_traffic_is_split_by_kserve_in_knative_mode_only(overlays: dict[str, Resources]) -> None:
    before = overlays["serverless"]
    made = with_traffic(before, "thinker", 10, Change(image="new:2"), before)

    predictor = named(made, "InferenceService", "thinker")["spec"]["predictor"]
    assert predictor["canaryTrafficPercent"] == 10
    assert predictor["containers"][0]["image"] == "new:2"
    with pytest.raises(CanaryError, match="Knative mode"):
        with_traffic(overlays["queue"], "thinker", 10, Change(image="new:2"), overlays["queue"])


def test_a_split_of_what_has_not_changed_is_refused(overlays: dict[str, Resources]) -> None:
    before = overlays["serverless"]
    split = with_traffic(before, "thinker", 10, Change(image="new:2"), before)
    new = promoted(split, "thinker")

    for last, now in ((before, before), (split, new), ([], before)):
        with pytest.raises(CanaryError, match="nothing is new"):
            with_traffic(now, "thinker", 20, Change(), last)


def test_the_newer_half_of_a_split_starts_a_pod_before_it_gets_calls_and_promoted_none(
    overlays: dict[str, Resources],
) -> None:
    """With initial scale 0 an image that cannot be pulled was ready and got its share of the jobs, which waited in
    the activator even after the rollback.
    """
    before = overlays["serverless"]
    split = with_traffic(before, "thinker", 10, Change(image="new:2"), before)

    scales = [
        named(each, "InferenceService", "thinker")["metadata"]["annotations"][INITIAL_SCALE]
        for each in (before, split, promoted(split, "thinker"), split)
    ]

    assert scales == ["0", "1", "0", "1"]


def test_promote_gives_the_newer_half_of_a_split_all_calls(overlays: dict[str, Resources]) -> None:
    before = overlays["serverless"]
    split = with_traffic(before, "thinker", 10, Change(image="new:2"), before)

    predictor = named(promoted(split, "thinker"), "InferenceService", "thinker")["spec"][
        "predictor"
    ]

    assert is_traffic_split(split)
    assert "canaryTrafficPercent" not in predictor
    assert predictor["containers"][0]["image"] == "new:2"


@pytest.mark.parametrize("overlay", ["queue", "queue-cpu", "queue+work"])
def test_a_canarys_queue_has_a_pump_and_a_scaler_of_its_own(
    overlays: dict[str, Resources], overlay: str
) -> None:
    split = with_canary(overlays[overlay], "thinker", 50, CHANGE)

    assert examine(split).of(Severity.ERROR) == ()
    scaled = str(named(split, "ScaledObject", "thinker-canary")["spec"])
    assert "requests-thinker-canary" in scaled
    assert "requests-thinker}" not in scaled
    assert "thinker-predictor-" not in scaled

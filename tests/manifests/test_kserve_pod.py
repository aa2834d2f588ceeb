"""Admission judges the pod that KServe makes of a predictor, not the one in our manifest."""

from __future__ import annotations

import pytest

from knative.deploy.doctor import Severity, examine
from tests.manifests.conftest import Resources
from tests.manifests.doctor_objects import REFUSED, pod, replica_set, storage_container
from tests.manifests.objects import OVERLAYS

SEALED = {
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
    }
}


def said(resources: Resources, rule: str) -> list[str]:
    found = examine(resources).of(Severity.ERROR)
    return [f"{f.fault.field} {f.fault.must_be}" for f in found if f.rule.name == rule]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_predictor_with_the_storage_initializer_of_the_helm_chart_is_admitted(
    overlays: dict[str, Resources], overlay: str
) -> None:
    assert said(overlays[overlay], "restricted-pod") == []


def test_a_cluster_whose_storage_initializer_is_hardened_has_no_finding(
    overlays: dict[str, Resources],
) -> None:
    resources = [*overlays["queue"], storage_container(**SEALED)]

    assert said(resources, "restricted-pod") == []


def test_the_doctor_names_what_kserves_storage_initializer_lacks_without_helm(
    overlays: dict[str, Resources],
) -> None:
    found = said([*overlays["queue"], storage_container()], "restricted-pod")

    assert len(found) == 2
    assert all("storage-initializer (KServe's)" in each for each in found)
    assert all("install KServe with its Helm chart" in each for each in found)


def test_refused_pods_are_one_line_however_often_they_were_tried(
    overlays: dict[str, Resources],
) -> None:
    events = [
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"e{n}", "namespace": "torpor"},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": REFUSED.replace("x2x5q", f"abcd{n}"),
            "involvedObject": {"kind": "ReplicaSet", "name": "thinker-predictor-6f9b7c"},
        }
        for n in range(5)
    ]

    (line,) = said([*overlays["queue"], replica_set(), *events], "pods-refused")

    assert "seccompProfile" in line


def test_pods_without_a_node_are_one_line(overlays: dict[str, Resources]) -> None:
    full = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient cpu."}
    pods = [pod(conditions=[full]) for _ in range(3)]
    for number, each in enumerate(pods):
        each["metadata"]["name"] += str(number)

    found = [f.fault for f in examine([*overlays["queue"], *pods]).findings]
    (stuck,) = (fault for fault in found if fault.field == "status")

    assert "and 2 more" in stuck.resource
    assert "no node has room" in stuck.value

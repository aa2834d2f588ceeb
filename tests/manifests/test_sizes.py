"""The small overlay fits the laptop that the install page names, with the platforms beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from knative.autoscaling.quantity import quantity
from tests.manifests.conftest import ROOT, Resources
from tests.manifests.objects import OVERLAYS, fields, planted
from tests.manifests.sizes import KEDA, KIND, KSERVE, Size, awake, named

LAPTOP = Size(4000, 8 * 1024)
OTHERS = KIND + KEDA + KSERVE
API = ("Deployment", "torpor-api")
BROKER = ("Deployment", "torpor-broker")
PREDICTOR = ("InferenceService", "thinker")


def fits(size: Size) -> bool:
    return size.cpu_m <= LAPTOP.cpu_m and size.memory_mib <= LAPTOP.memory_mib


@pytest.mark.parametrize("rolling", [API, BROKER, PREDICTOR], ids=lambda it: it[1])
def test_the_small_overlay_fits_a_laptop_with_everything_awake_and_one_rolling(
    overlays: dict[str, Resources], rolling: tuple[str, str]
) -> None:
    needed = OTHERS + awake(overlays["queue-cpu"]) + named(overlays["queue-cpu"], *rolling)

    assert fits(needed), needed


def test_the_sizes_that_a_real_cluster_refused_are_refused_here(
    overlays: dict[str, Resources],
) -> None:
    """1500m for the engine and 500m for the api: `Insufficient cpu`, and the api never rolled."""
    box = "spec>template>spec>containers>0>resources>requests"
    before = planted(overlays["queue-cpu"], "Deployment/torpor-api", box, {"cpu": "500m"})
    before = planted(before, "Deployment/torpor-broker", box, {"cpu": "250m"})
    before = planted(before, "StatefulSet/torpor-redis", box, {"cpu": "250m"})
    engine = "spec>predictor>containers>0>resources>requests"
    before = planted(before, "InferenceService/thinker", engine, {"cpu": "1500m"})

    assert (OTHERS + awake(before)).cpu_m == 4050
    assert not fits(OTHERS + awake(before))


def test_the_install_page_has_the_sums(overlays: dict[str, Resources]) -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    ours = awake(overlays["queue-cpu"])
    total = OTHERS + ours + named(overlays["queue-cpu"], *API)

    rows = {
        r[0]: (int(r[1]), int(r[2])) for r in re.findall(r"\| (.+?) \| (\d+)m \| (\d+) MiB", page)
    }

    assert rows["Torpor, everything awake"] == (ours.cpu_m, ours.memory_mib)
    assert rows["**together, with one api more while it rolls**"] == (total.cpu_m, total.memory_mib)


def test_the_serverless_page_has_the_sums(overlays: dict[str, Resources]) -> None:
    page = (ROOT / "docs" / "tutorials" / "serverless.md").read_text(encoding="utf-8")
    rows = {r[0]: int(r[1]) for r in re.findall(r"\| (.+?) \| (\d+)m \|", page)}
    ours = awake(overlays["serverless-cpu"])
    (rabbit,) = (r for r in overlays["serverless-cpu"] if r["kind"] == "RabbitmqCluster")
    total = rows.pop("**together, with one api more while it rolls**")

    assert rows["Torpor, everything awake"] == ours.cpu_m
    assert rows["RabbitMQ, one node"] == 1000 * quantity(
        rabbit["spec"]["resources"]["requests"]["cpu"]
    )
    assert total == sum(rows.values()) + named(overlays["serverless-cpu"], *API).cpu_m
    assert LAPTOP.cpu_m < total < 6000  # not the laptop of the queue topology; the one it names


def test_a_single_api_needs_no_metrics_server(overlays: dict[str, Resources]) -> None:
    kinds = {r["kind"] for r in overlays["queue-cpu"]}

    assert "HorizontalPodAutoscaler" not in kinds


def quantities(resources: Resources) -> Iterator[str]:
    for name, value in fields(resources):
        if name in ("requests", "limits", "capacity") and isinstance(value, dict):
            yield from map(str, value.values())
        if name in ("sizeLimit", "storageLimit", "modelSize"):
            yield str(value)


def is_canonical(text: str) -> bool:
    """As the API server writes it back: the largest unit that leaves a whole number."""
    if (number := re.fullmatch(r"(\d+)(m|Ki|Mi|Gi|Ti)?", text)) is None:
        return False
    step = {"m": 1000, "Ki": 1024, "Mi": 1024, "Gi": 1024}.get(number[2] or "", 0)
    return not step or int(number[1]) % step != 0 or quantity(text) == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_quantities_are_written_as_the_server_keeps_them(
    overlays: dict[str, Resources], overlay: str
) -> None:
    """Else a later `torpor deploy` sees `2048Mi` and `2Gi` as two values of two managers."""
    found = list(quantities(overlays[overlay]))

    assert len(found) > 10
    assert [text for text in found if not is_canonical(text)] == []


@pytest.mark.parametrize("text", ["2048Mi", "1000m", "1.5", "0.5Gi", "4096Ki"])
def test_values_that_the_server_would_normalise_are_detected(text: str) -> None:
    assert not is_canonical(text)

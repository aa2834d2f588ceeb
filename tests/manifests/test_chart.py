"""The Helm chart gives the objects that kustomize builds, and takes what its values say.

What renders it is Helm's own engine (PyPI helm-python-sdk: a quarter of a gigabyte, so it is no dependency); without
it those tests skip by name, and the chart's files are checked alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from knative.deploy.package.chart import IMAGES, files
from knative.deploy.render.tree import OVERLAYS, finished
from knative.deploy.values import ImageValues, Values
from tests.manifests.conftest import ROOT

CHART = ROOT / "manifests" / "chart"


def helm() -> Any:
    return pytest.importorskip("helm_python.chart", reason="helm-python-sdk is not installed")


def rendered(chart: Path, values: dict[str, Any], namespace: str = "torpor") -> list[Any]:
    with helm().Chart.load(str(chart)) as loaded:
        texts = loaded.render(values=values, name="torpor", namespace=namespace)
    return [each for text in texts.values() for each in yaml.safe_load_all(text) if each]


def by_name(objects: list[Any]) -> list[Any]:
    return sorted(objects, key=lambda each: (each["kind"], each["metadata"]["name"]))


@pytest.mark.parametrize("overlay", list(OVERLAYS))
def test_a_release_has_the_objects_of_its_overlay_but_for_the_namespace(overlay: str) -> None:
    wanted = [each for each in finished(overlay, Values()) if each["kind"] != "Namespace"]

    assert by_name(rendered(CHART, {"overlay": overlay})) == by_name(wanted)


@pytest.mark.parametrize("tag", ["1.2.3", "sha256:" + "a" * 64], ids=["a version", "a digest"])
def test_a_release_takes_its_images_from_where_it_is_told(tag: str) -> None:
    images = {"repository": "mirror.example.org/t", "tag": tag}
    text = yaml.safe_dump_all(rendered(CHART, {"overlay": "queue", "images": images}))

    sign = "@" if tag.startswith("sha256:") else ":"
    found = set(re.findall(r"image: (\S+)", text))
    assert f"mirror.example.org/t/api{sign}{tag}" in found
    assert not any("registry.example.com" in image for image in found)


@pytest.mark.parametrize(
    ("values", "namespace", "complaint"),
    [
        ({"overlay": "nope"}, "torpor", "queue-cpu"),
        ({"host": "example.org"}, "torpor", "host"),
        ({"images": {"repository": "r", "tag": "latest"}}, "torpor", "tag"),
        ({}, "elsewhere", "--namespace torpor"),
    ],
    ids=["an unknown overlay", "an unknown value", "no pinned tag", "another namespace"],
)
def test_a_wrong_value_is_refused_with_what_to_do(
    values: dict[str, Any], namespace: str, complaint: str
) -> None:
    helm()
    with pytest.raises(Exception, match=complaint):
        rendered(CHART, values, namespace)


def test_helms_linter_finds_no_error() -> None:
    assert helm().lint(str(CHART), namespace="torpor")["errors"] == []


@pytest.mark.parametrize("overlay", list(OVERLAYS))
def test_every_image_of_ours_stands_in_the_overlay_as_the_template_looks_for_it(
    overlay: str,
) -> None:
    text = files(Values())[f"chart/overlays/{overlay}.yaml"]
    ours = set(re.findall(r"registry\.example\.com/\S+", text))

    assert ours
    assert ours <= {Values().images.reference(name) for name in IMAGES}


def test_the_defaults_pass_the_schema_and_name_every_overlay() -> None:
    made = files(Values())
    defaults = yaml.safe_load(made["chart/values.yaml"])
    schema = json.loads(made["chart/values.schema.json"])

    assert set(defaults) <= set(schema["properties"])
    assert defaults["overlay"] in schema["properties"]["overlay"]["enum"] == list(OVERLAYS)
    assert all(f"#   {name}: " in made["chart/values.yaml"] for name in OVERLAYS)


@pytest.mark.parametrize(
    ("tag", "version"), [("1.2.3", "1.2.3"), ("sha256:" + "b" * 64, "0.0.0"), ("v7", "0.0.0")]
)
def test_the_charts_version_is_always_a_semantic_one(tag: str, version: str) -> None:
    values = Values(images=ImageValues(tag=tag))

    assert yaml.safe_load(files(values)["chart/Chart.yaml"])["version"] == version

"""The LLMInferenceService of `docs/prefixes.md` is one that KServe takes, and its values make a provider of it."""

import re
from pathlib import Path
from typing import Any

import yaml

from knative.deploy.render.model.provider import env
from knative.deploy.values import Values
from tests.manifests.conftest import ROOT
from tests.manifests.crd import Crds
from tests.manifests.test_schemas import changed, faults


def blocks() -> list[dict[str, Any]]:
    text = Path(ROOT / "docs/prefixes.md").read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.+?)```", text, re.DOTALL)]


def test_kserve_takes_the_service_of_the_page(crds: Crds) -> None:
    service, _ = blocks()
    assert crds.knows(service)
    assert faults(service, crds) == []
    assert faults(changed(service, "spec.router.scheduler", {"prefix": True}), crds)


def test_the_values_of_the_page_lead_to_that_service() -> None:
    service, values = blocks()
    read = Values.model_validate(values)
    (more,) = (each for each in read.each() if each.model.name == "qwen")
    assert more.model.upstream is not None
    given = {each["name"]: each["value"] for each in env(more, more.model.upstream)}
    where = service["metadata"]

    assert given["TORPOR_UPSTREAM_URL"].endswith(f"/{where['namespace']}/{where['name']}/v1")
    assert given["TORPOR_UPSTREAM_MODEL"] == service["spec"]["model"]["name"]
    assert given["TORPOR_UPSTREAM_CACHE_SALT"] == "true"

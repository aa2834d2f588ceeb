"""What every manifest test reads: each overlay as `kubectl` would apply it, and the real CRDs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.crd import Crds

ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "crds"
MANIFESTS = ROOT / "manifests"
# Components that no shipped overlay takes, in the company that they are meant for.
EXTRA_OVERLAYS = {
    "queue+nodes": ("queue", "keda", "gpu-nvidia", "karpenter", "model-cache", "compile-cache"),
    "queue+work": ("queue", "keda", "gpu-nvidia", "work-scaler"),
    "queue+openshift": ("queue", "keda", "gpu-nvidia", "openshift"),
    "serverless+api-knative": ("serverless", "broker-kafka", "api-knative"),
    "serverless+oidc": ("serverless", "broker-kafka", "eventing-tls", "eventing-oidc"),
}
Resources = list[dict[str, Any]]


def kustomize(folder: Path) -> Resources:
    """Give what `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: overlays cannot be built")
    made = subprocess.run(
        ["kubectl", "kustomize", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return [r for r in yaml.load_all(made.stdout, yaml.CSafeLoader) if r]


@pytest.fixture(scope="session")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resources]:
    """Every shipped overlay and every other component in one, built."""
    copy = tmp_path_factory.mktemp("kustomize") / "manifests"
    shutil.copytree(MANIFESTS, copy)
    for name, components in EXTRA_OVERLAYS.items():
        folder = copy / "overlays" / name
        folder.mkdir()
        content = {
            "resources": ["../../base"],
            "components": [f"../../components/{component}" for component in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    folders = sorted(path for path in (copy / "overlays").iterdir() if path.is_dir())
    return {folder.name: kustomize(folder) for folder in folders}


@pytest.fixture(scope="session")
def crds() -> Crds:
    """The CRDs of the design folder."""
    if not CRDS.is_dir():
        pytest.skip("../shared/crds is not beside this checkout")
    return Crds(CRDS)


@pytest.fixture(scope="session")
def samples(overlays: dict[str, Resources]) -> dict[str, dict[str, Any]]:
    """One resource of each kind that we render, by kind (`Service` twice: see the key)."""
    found: dict[str, dict[str, Any]] = {}
    for resources in overlays.values():
        for resource in resources:
            key = resource["kind"]
            if resource["apiVersion"] == "serving.knative.dev/v1":
                key = "KnativeService"
            found.setdefault(key, resource)
    return found

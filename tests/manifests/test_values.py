"""Any allowed values render to sound manifests: no doctor error, no schema refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from knative.deploy.doctor import Severity, examine
from knative.deploy.render.render import write
from knative.deploy.values import Values
from tests.manifests.conftest import CRDS, kustomize
from tests.manifests.crd import Crds

CHOICES = [
    pytest.param({"max_job_seconds": 10, "cold_start_seconds": 5}, id="short jobs, fast wakes"),
    pytest.param({"max_job_seconds": 86_400}, id="a day"),
    pytest.param({"cold_start_seconds": 3600}, id="an hour to wake"),
    pytest.param({"max_replicas": 1, "model": {"concurrency": 1}}, id="one job at a time"),
    pytest.param({"max_replicas": 1000, "model": {"concurrency": 1000}}, id="as many as can be"),
    pytest.param({"gpu": {"count": 8, "product": "NVIDIA-H200"}}, id="eight GPUs a replica"),
    pytest.param(
        {"namespace": "n", "host": "a.b", "model": {"name": "m" * 40}}, id="names at their limits"
    ),
    pytest.param({"platform": {"kserve": "0.15", "storage_class": "fast"}}, id="an older KServe"),
    pytest.param({"images": {"tag": "sha256:" + "0" * 64}}, id="pinned by digest"),
    pytest.param(
        {"store": {"replicas": 3, "backup_url": "s3://bucket/torpor"}},
        id="three servers of the store, and backups",
    ),
    pytest.param({"platform": {"direct_token_secret": "direct"}}, id="a token for direct calls"),
    pytest.param(
        {
            "more_models": [
                {"name": "drafter", "uri": "hf://Qwen/Qwen3-0.6B", "concurrency": 64},
                {"name": "m" * 40, "uri": "s3://models/m", "max_replicas": 1},
            ]
        },
        id="three models behind one broker",
    ),
    pytest.param(
        {
            "model": {
                "upstream": {
                    "url": "https://a.example/v1",
                    "model": "m",
                    "secret": "s",
                    "tenants": ["*"],
                }
            }
        },
        id="a provider alone",
    ),
]


@pytest.fixture
def known(request: pytest.FixtureRequest) -> Crds | None:
    """The CRDs, where they are beside the checkout; the doctor judges without them."""
    return request.getfixturevalue("crds") if CRDS.is_dir() else None


@pytest.mark.parametrize("overlay", ["queue", "serverless"])
@pytest.mark.parametrize("choice", CHOICES)
def test_any_values_give_sound_manifests(
    tmp_path: Path, choice: dict[str, Any], overlay: str, known: Crds | None
) -> None:
    write(tmp_path, Values.model_validate(choice))

    resources = kustomize(tmp_path / "overlays" / overlay)

    errors = [(f.rule.name, f.fault) for f in examine(resources).of(Severity.ERROR)]
    refused = [known.faults(r) for r in resources if known and known.knows(r) and known.faults(r)]
    assert (errors, refused) == ([], [])

"""A release is of one version everywhere, and its workflow runs what is there."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.release import refusals, versions

ROOT = Path(__file__).parents[2]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())


def steps() -> list[dict[str, Any]]:
    return [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_one_version_stands_everywhere() -> None:
    assert len(set(versions(ROOT).values())) == 1


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "pyproject.toml",
        "Makefile",
        "manifests/chart/Chart.yaml",
        "manifests/chart/values.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    version = versions(ROOT)["pyproject.toml"]
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {version} - 2026-12-01\n")
    return tmp_path


def test_a_tag_of_what_is_there_is_released(tree: Path) -> None:
    assert refusals(f"v{versions(tree)['pyproject.toml']}", tree) == []


def test_another_tag_is_refused_with_each_place_that_differs(tree: Path) -> None:
    found = refusals("v9.9.9", tree)

    assert len(found) == len(versions(tree)) + 1
    assert "CHANGELOG.md has no section 9.9.9" in found


def test_every_make_target_and_script_of_the_workflow_exists() -> None:
    commands = "\n".join(step.get("run", "") for step in steps())
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    targets = re.findall(r"make ([a-z-]+)", commands)
    assert targets
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
    files = re.findall(r"(?:scripts/\w+\.py|\.ci/run|manifests/chart)\b", commands)
    assert files
    assert all((ROOT / name).exists() for name in files)


def test_every_image_is_built_and_signed() -> None:
    images = WORKFLOW["jobs"]["images"]["strategy"]["matrix"]["image"]

    assert {f"{name}.Dockerfile" for name in images} == {
        path.name for path in (ROOT / "images").glob("*.Dockerfile")
    }
    assert any("cosign sign" in step.get("run", "") for step in WORKFLOW["jobs"]["images"]["steps"])


def test_no_job_may_more_than_it_says_and_none_keeps_a_key() -> None:
    assert WORKFLOW["permissions"] == {}
    assert all("permissions" in job for job in WORKFLOW["jobs"].values())
    assert "secrets." not in (ROOT / ".github/workflows/release.yaml").read_text()


def test_every_action_has_a_version() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]

    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", name) for name in used)

"""Says whether a tag may be released: `python scripts/release.py v1.2.3`.

Called by the release workflow, before anything is built. The tag, the package's version, the images of the manifests
and the chart must be of one version, and the changelog must have it.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def versions(root: Path) -> dict[str, str]:
    """The version by where it stands; empty where it is not found."""
    with (root / "pyproject.toml").open("rb") as file:
        package = str(tomllib.load(file)["project"]["version"])
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    chart = (root / "manifests/chart/Chart.yaml").read_text(encoding="utf-8")
    values = (root / "manifests/chart/values.yaml").read_text(encoding="utf-8")
    return {
        "pyproject.toml": package,
        "Makefile (TAG)": _found(r"^TAG \?= (\S+)$", makefile),
        "manifests/chart/Chart.yaml": _found(r"^version: (\S+)$", chart),
        "manifests/chart/values.yaml": _found(r"^  tag: (\S+)$", values),
    }


def refusals(tag: str, root: Path = ROOT) -> list[str]:
    """Why `tag` is no release of what is in `root`; empty when it is one."""
    version = tag.removeprefix("v")
    found = [
        f"{where} says {said or 'nothing'}, the tag {tag}"
        for where, said in versions(root).items()
        if said != version
    ]
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[?{re.escape(version)}\b", changes, re.MULTILINE):
        found.append(f"CHANGELOG.md has no section {version}")
    return found


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else ""


if __name__ == "__main__":
    if wrong := refusals(sys.argv[1]):
        sys.exit("\n".join(wrong))

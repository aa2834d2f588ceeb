"""Writes the manifests, or says how a folder differs from what the values give.

Called by `torpor render` and by the test that holds the committed files to their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from knative.deploy.package import chart, compose
from knative.deploy.render import tree
from knative.deploy.values import Values

OWNED = (
    "base",
    "components",
    "overlays",
    "cluster",
    "chart",
    "compose",
)  # folders that hold nothing by hand


@dataclass(frozen=True, slots=True)
class Difference:
    """One file that is not as rendered: `missing`, `stale` (not rendered any more) or `changed`."""

    path: str
    kind: str


def _files(values: Values) -> dict[str, str]:
    return tree.files(values) | chart.files(values) | compose.files(values)


def differences(folder: Path, values: Values) -> list[Difference]:
    """Give every file that differs from the render of the values."""
    return _differences(folder, _files(values))


def _differences(folder: Path, wanted: Mapping[str, str]) -> list[Difference]:
    present = {
        str(path.relative_to(folder)): path
        for owned in OWNED
        for path in (folder / owned).rglob("*")
        if path.is_file()
    }
    found = [Difference(path, "stale") for path in present if path not in wanted]
    for path, text in wanted.items():
        if path not in present:
            found.append(Difference(path, "missing"))
        elif present[path].read_text(encoding="utf-8") != text:
            found.append(Difference(path, "changed"))
    return sorted(found, key=lambda difference: difference.path)


def write(folder: Path, values: Values) -> list[Difference]:
    """Make the folder equal to the render; give what was changed. Safe to run again half-way."""
    wanted = _files(values)
    found = _differences(folder, wanted)
    for difference in found:
        path = folder / difference.path
        if difference.kind == "stale":
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[difference.path], encoding="utf-8")
    return found

"""What is wrong with the plans of a `pipelines.yaml`: steps that do not exist, or settings that they can not have.

Called by `torpor up`, and by the commands that render and deploy manifests: the steps process starts with the first
job, too late to be corrected. Steps are judged by their own process (`python -m steps.check`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from torpor.cli.errors import UserError
from torpor.local.child import child_env, python_module


def wrong_step(text: str | None, file: str = "/dev/stdin", *, runs_here: bool = False) -> str:
    """What is wrong with the first wrong step of a `pipelines.yaml`, given as text or as a file; empty when nothing
    is. Where the steps run here, a package that one needs and that is missing is wrong too.
    """
    options = ["--installed"] if runs_here else []
    checked = subprocess.run(  # noqa: S603
        python_module("steps.check", file, *options),
        env=child_env(os.environ),
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    return checked.stderr.strip().rpartition("\n")[2] if checked.returncode else ""


def refuse_wrong_steps(resources: Iterable[Mapping[str, Any]]) -> None:
    """Raises `UserError` for a wrong step in a ConfigMap of plans among these objects."""
    for each in resources:
        text = (each.get("data") or {}).get("pipelines.yaml")
        if each.get("kind") != "ConfigMap" or not text:
            continue
        if said := wrong_step(str(text)):
            raise UserError(f"{(each.get('metadata') or {}).get('name')}: {said}")

"""Reads resources from a kustomize folder, a file, or standard input.

Called by the commands.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import yaml

from knative.deploy.emit import Resource
from knative.deploy.errors import BuildError

BUILD_TIMEOUT_S = 60.0


async def load(source: str) -> list[Resource]:
    """Give the resources of a folder (built with kustomize), a YAML file, or `-`.

    Raises BuildError in one line that says what was wrong.
    """
    if source == "-":
        return parse(await asyncio.to_thread(sys.stdin.read), "standard input")
    text = await asyncio.to_thread(_read, Path(source))
    return parse(await _kustomize(Path(source)) if text is None else text, source)


def _read(path: Path) -> str | None:
    """Give a file's text, or None for a folder that kustomize can build."""
    if path.is_dir():
        if not (path / "kustomization.yaml").is_file():
            raise BuildError(f"{path}: has no kustomization.yaml")
        return None
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BuildError(
            f"there is no {path} here: `torpor render` writes manifests/ from values.yaml, or name another folder"
        ) from error
    except OSError as error:
        raise BuildError(f"{path}: cannot be read: {error.strerror}") from error


def parse(text: str, name: str) -> list[Resource]:
    """Give the documents of a YAML text; `List` objects are opened."""
    try:
        documents = [d for d in yaml.load_all(text, yaml.CSafeLoader) if d]
    except yaml.YAMLError as error:
        raise BuildError(f"{name}: not YAML: {error}") from error
    found: list[Resource] = []
    for document in documents:
        if not isinstance(document, dict) or "kind" not in document:
            raise BuildError(f"{name}: holds something that is not a Kubernetes object")
        is_list = document["kind"] == "List"
        found.extend(document.get("items") or [] if is_list else [document])
    return found


async def _kustomize(folder: Path) -> str:
    command = _builder()
    process = await asyncio.create_subprocess_exec(
        *command, str(folder), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, said = await asyncio.wait_for(process.communicate(), BUILD_TIMEOUT_S)
    except TimeoutError as error:
        process.kill()
        raise BuildError(f"{folder}: {command[0]} took over {BUILD_TIMEOUT_S:.0f} s") from error
    if process.returncode:
        raise BuildError(f"{folder}: {said.decode(errors='replace').strip()}")
    return out.decode()


def _builder() -> list[str]:
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    raise BuildError(
        "building a folder needs kubectl (1.27 or newer) or kustomize (5 or newer) on the PATH; "
        "or give a built file: kubectl kustomize FOLDER > all.yaml"
    )

"""The objects of an overlay as kustomize builds them: base, components, patches in their order.

Called by `tree`, which needs the whole to write hashes of it. Pure; a test holds it to what
`kubectl kustomize` gives. Knows of patches what ours use: JSON 6902 and `$patch: delete`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from knative.deploy.emit import Resource, plain


def assemble(
    base: Iterable[Resource],
    components: Iterable[tuple[Mapping[str, Sequence[Resource]], Sequence[Resource]]],
    patches: Sequence[Resource],
) -> list[Resource]:
    """Give all objects, without reasons; each component is its files' contents and its patches."""
    found: list[Resource] = [plain(resource) for resource in base]
    for contents, own_patches in components:
        found += [plain(resource) for listed in contents.values() for resource in listed]
        found = _patched(found, own_patches)
    return _patched(found, patches)


def _patched(resources: list[Resource], patches: Iterable[Resource]) -> list[Resource]:
    for entry in patches:
        change = yaml.safe_load(entry["patch"])
        if isinstance(change, dict):  # $patch: delete, the one merge patch that we write
            resources = [r for r in resources if not _is(r, change["kind"], _name(change))]
            continue
        target = entry["target"]
        for resource in resources:
            if _is(resource, target["kind"], target["name"]):
                for operation in change:
                    _operate(resource, operation)
    return resources


def _name(resource: Resource) -> str:
    return str(resource["metadata"]["name"])


def _is(resource: Resource, kind: str, name: str) -> bool:
    return resource["kind"] == kind and re.fullmatch(name, _name(resource)) is not None


def _operate(document: Resource, operation: Resource) -> None:
    """Do one operation of RFC 6902: add, replace, remove or test."""
    steps = [s.replace("~1", "/").replace("~0", "~") for s in operation["path"].split("/")[1:]]
    node: Any = document
    for step in steps[:-1]:
        node = node[int(step)] if isinstance(node, list) else node[step]
    last: Any = steps[-1]
    if isinstance(node, list):
        last = len(node) if last == "-" else int(last)
    match operation["op"]:
        case "add" if isinstance(node, list):
            node.insert(last, copy.deepcopy(operation["value"]))
        case "add" | "replace":
            node[last] = copy.deepcopy(operation["value"])
        case "remove":
            del node[last]
        case "test":
            if node[last] != operation["value"]:
                raise ValueError(f"{operation['path']} is {node[last]!r}")
        case other:
            raise ValueError(f"no operation of ours: {other}")

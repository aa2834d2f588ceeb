"""YAML output with comments, byte for byte the same every time.

Called by the renderer. PyYAML cannot write comments, and a manifest whose numbers are not explained is changed by
hand. A value wrapped by `because` gets its reason as a comment line above it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

Resource = dict[str, Any]
Patch = list[Resource]
"""Operations of a JSON patch (RFC 6902)."""

_WIDTH = 96
_BOOLEANS_IN_GO = ("y", "Y", "n", "N")  # kubectl reads YAML 1.1; PyYAML leaves these bare


@dataclass(frozen=True, slots=True)
class Reasoned:
    """A value and the reason for it."""

    value: Any
    reason: str


def because(value: Any, reason: str) -> Any:
    """Give the value with its reason; `plain` takes it off again."""
    return Reasoned(value, reason)


def plain(node: Any) -> Any:
    """Give the data without reasons, as a YAML parser would read it back."""
    match node:
        case Reasoned(value, _):
            return plain(value)
        case Mapping():
            return {key: plain(value) for key, value in node.items()}
        case list() | tuple():
            return [plain(value) for value in node]
        case _:
            return node


def document(*resources: Any, header: str = "") -> str:
    """Give one YAML file of the resources, each separated by `---`, with a header comment."""
    head = "".join(f"# {line}\n" for line in header.splitlines())
    parts = ["\n".join(_lines(resource, 0)) + "\n" for resource in resources]
    return head + "---\n".join(parts)


def _lines(node: Any, depth: int) -> Iterator[str]:
    node = node.value if isinstance(node, Reasoned) else node
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _entry(f"{_scalar(key)}:", value, depth)
    else:
        for value in node:
            yield from _item(value, depth)


def _entry(label: str, value: Any, depth: int) -> Iterator[str]:
    pad = "  " * depth
    if isinstance(value, Reasoned):
        for line in textwrap.wrap(value.reason, _WIDTH - len(pad)):
            yield f"{pad}# {line}"
        value = value.value
    if isinstance(value, str) and "\n" in value:
        yield f"{pad}{label} |" + ("" if value.endswith("\n") else "-")
        yield from (f"{pad}  {line}".rstrip() for line in value.rstrip("\n").split("\n"))
    elif _is_block(value):
        yield f"{pad}{label}"
        yield from _lines(value, depth + 1)
    else:
        yield f"{pad}{label} {_flow(value)}"


def _item(value: Any, depth: int) -> Iterator[str]:
    pad = "  " * depth
    if isinstance(value, Reasoned):
        for line in textwrap.wrap(value.reason, _WIDTH - len(pad)):
            yield f"{pad}# {line}"
        value = value.value
    if not _is_block(value):
        yield from _entry("-", value, depth)
        return
    first = True
    for line in _lines(value, depth + 1):
        if first and not line.lstrip().startswith("#"):
            yield f"{pad}- {line[len(pad) + 2 :]}"
            first = False
        elif first:  # a reason above the first key stays above the dash
            yield line[2:] if line.startswith("  ") else line
        else:
            yield line


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) and len(value) > 0


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[]"
    return _scalar(value)


@lru_cache(maxsize=4096, typed=True)  # a render has 60,000 of them, and few that differ
def _scalar(value: Any) -> str:
    if value in _BOOLEANS_IN_GO:
        return f"'{value}'"
    text = str(yaml.safe_dump(value, width=10_000, default_flow_style=True, allow_unicode=True))
    return text.removesuffix("\n").removesuffix("\n...").strip()

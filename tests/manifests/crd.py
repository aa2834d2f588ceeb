"""Judges a custom resource as an API server with strict field validation would.

Given the CRDs as data: JSON schema, unknown fields, int-or-string, nullable, number formats, and
the CEL rules that `common-expression-language` can evaluate. Used by the tests of manifests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import cel
import yaml
from jsonschema import Draft4Validator

_RANGES = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}
_OBJECT_META = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
        "namespace": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "generateName": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {"type": "array", "items": {"type": "object"}},
    },
    "additionalProperties": False,
}
# Their CRDs keep unknown fields, and their webhooks then refuse them (strict decoding in Go).
_STRICT_WEBHOOKS = ("eventing.knative.dev/", "serving.knative.dev/")
_KEPT = ("type", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
         "minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "minProperties",
         "maxProperties", "multipleOf", "required")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason for a refusal: where, and what is wrong."""

    path: str
    message: str


@dataclass
class Crds:
    """All CRDs of a folder, by (apiVersion, kind)."""

    folder: Path
    skipped_rules: set[str] = field(default_factory=set)  # CEL that could not be evaluated here

    _validators: dict[tuple[str, str], Draft4Validator] = field(default_factory=dict)

    @cached_property
    def schemas(self) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        found = {}
        for path in sorted(self.folder.glob("*/*.yaml")):
            text = path.read_text(encoding="utf-8")
            for document in yaml.load_all(text, yaml.CSafeLoader):
                if document and document.get("kind") == "CustomResourceDefinition":
                    found |= _versions(document["spec"])
        return found

    def knows(self, resource: Mapping[str, Any]) -> bool:
        return _key(resource) in self.schemas

    def faults(self, resource: Mapping[str, Any]) -> list[Fault]:
        """Give all that a strict API server would refuse in the resource."""
        schema = self.schemas[_key(resource)]
        structural = self._validator(_key(resource))
        found = [
            Fault(".".join(map(str, error.absolute_path)), error.message[:300])
            for error in structural.iter_errors(resource)
        ]
        return found or list(self._broken_rules(schema, resource, ""))

    def _validator(self, key: tuple[str, str]) -> Draft4Validator:
        """Give the structural check of a kind; made once, an InferenceService has 10,000 nodes."""
        if key not in self._validators:
            is_strict = key[0].startswith(_STRICT_WEBHOOKS)
            schema = _closed(self.schemas[key], is_root=True, is_strict=is_strict)
            self._validators[key] = Draft4Validator(schema)
        return self._validators[key]

    def _broken_rules(self, schema: Mapping[str, Any], value: Any, path: str) -> Iterator[Fault]:
        for rule in schema.get("x-kubernetes-validations", ()):
            if self._is_broken(rule["rule"], value):
                yield Fault(path, rule.get("message", rule["rule"]))
        if isinstance(value, Mapping):
            properties = schema.get("properties", {})
            extra = schema.get("additionalProperties")
            for key, inner in value.items():
                below = properties.get(key, extra)
                if isinstance(below, Mapping):
                    yield from self._broken_rules(below, inner, f"{path}.{key}")
        elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
            for index, inner in enumerate(value):
                yield from self._broken_rules(schema["items"], inner, f"{path}[{index}]")

    def _is_broken(self, rule: str, value: Any) -> bool:
        if "oldSelf" in rule:  # about a change, and there is nothing before
            return False
        try:
            return _compiled(rule).execute({"self": value}) is False
        except (ValueError, RuntimeError, TypeError):
            self.skipped_rules.add(rule)
            return False


@cache
def _compiled(rule: str) -> Any:
    return cel.compile(rule)


def _key(resource: Mapping[str, Any]) -> tuple[str, str]:
    return str(resource.get("apiVersion")), str(resource.get("kind"))


def _versions(spec: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {
        (f"{spec['group']}/{version['name']}", spec["names"]["kind"]): version["schema"][
            "openAPIV3Schema"
        ]
        for version in spec["versions"]
        if version["served"]
    }


def _closed(
    schema: Mapping[str, Any], *, is_root: bool = False, is_strict: bool = False
) -> dict[str, Any]:
    """Give the schema as plain JSON schema in which nothing unknown is let through."""
    made = {key: schema[key] for key in _KEPT if key in schema}
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            made[name] = [_part(inner) for inner in schema[name]]
    if "not" in schema:
        made["not"] = _part(schema["not"])
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    low, high = _RANGES.get(schema.get("format", ""), (None, None))
    if low is not None and schema.get("type") == "integer":
        made.setdefault("minimum", low)
        made.setdefault("maximum", high)
    if schema.get("nullable") and "type" in made:
        kinds = made["type"]
        made["type"] = [*(kinds if isinstance(kinds, list) else [kinds]), "null"]
        if "enum" in made:
            made["enum"] = [*made["enum"], None]
    if "items" in schema:
        made["items"] = _closed(schema["items"], is_strict=is_strict)
    _close_object(schema, made, is_root=is_root, is_strict=is_strict)
    return made


def _close_object(
    schema: Mapping[str, Any], made: dict[str, Any], *, is_root: bool, is_strict: bool
) -> None:
    if "properties" in schema:
        made["properties"] = {
            key: _closed(inner, is_strict=is_strict) for key, inner in schema["properties"].items()
        }
        if is_strict and "backoffDelay" in schema["properties"]:  # known in Go, not in the CRD
            made["properties"] |= {
                "timeout": {"type": "string"},
                "retryAfterMax": {"type": "string"},
            }
    if isinstance(schema.get("additionalProperties"), Mapping):
        made["additionalProperties"] = _closed(schema["additionalProperties"], is_strict=is_strict)
    elif "properties" in schema and (
        is_strict or not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        made["additionalProperties"] = False
    if is_root or schema.get("x-kubernetes-embedded-resource"):
        made.setdefault("properties", {}).update(
            apiVersion={"type": "string"}, kind={"type": "string"}, metadata=_OBJECT_META
        )


def _part(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Give a branch of anyOf and its like: it only adds conditions, so it stays open."""
    made = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in schema:
        made["properties"] = {key: _part(inner) for key, inner in schema["properties"].items()}
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            made[name] = [_part(inner) for inner in schema[name]]
    if "not" in schema:
        made["not"] = _part(schema["not"])
    return made

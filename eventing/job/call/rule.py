"""Rules for the fields of a call's body: what a value must be, in words, as a predicate and as JSON Schema. Pure.

Called by `eventing.job.call`, and by the api for calls of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventing.errors import InvalidJob

Schema = Mapping[str, Any]
"""JSON Schema, as OpenAPI 3.1 has it."""


@dataclass(frozen=True, slots=True)
class FieldRule:
    """What a value must be: a description, a predicate and JSON Schema. A null field counts as missing."""

    must_be: str
    is_kept_by: Callable[[Any], bool]
    schema: Schema


Rules = Mapping[str, FieldRule]


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(least: int, most: int | None = None) -> FieldRule:
    """A rule for whole numbers within bounds."""
    words = f"a whole number of at least {least}" + ("" if most is None else f" and at most {most}")
    return FieldRule(
        words,
        lambda v: is_whole(v) and v >= least and (most is None or v <= most),
        {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most}),
    )


def number(least: float, most: float | None = None) -> FieldRule:
    """A rule for numbers within bounds."""
    words = f"a number of at least {least:g}" + ("" if most is None else f" and at most {most:g}")
    return FieldRule(
        words,
        lambda v: is_number(v) and v >= least and (most is None or v <= most),
        {"type": "number", "minimum": least} | ({} if most is None else {"maximum": most}),
    )


def above(least: float) -> FieldRule:
    """A rule for numbers above a bound."""
    return FieldRule(
        f"a number above {least:g}",
        lambda v: is_number(v) and v > least,
        {"type": "number", "exclusiveMinimum": least},
    )


def one_of(*words: str) -> FieldRule:
    """A rule for one of several strings."""
    return FieldRule(
        f"one of {', '.join(words)}",
        lambda v: isinstance(v, str) and v in words,
        {"type": "string", "enum": list(words)},
    )


TEXT_SCHEMA: Final[Schema] = {"type": "string"}
_TEXTS_SCHEMA: Final[Schema] = {"type": "array", "items": TEXT_SCHEMA}
TEXT: Final = FieldRule("text", lambda v: isinstance(v, str), TEXT_SCHEMA)
NAME: Final = FieldRule(
    "text that is not empty",
    lambda v: isinstance(v, str) and bool(v),
    {"type": "string", "minLength": 1},
)
FLAG: Final = FieldRule("true or false", lambda v: isinstance(v, bool), {"type": "boolean"})
OBJECT: Final = FieldRule("an object", lambda v: isinstance(v, Mapping), {"type": "object"})
TEXTS: Final = FieldRule(
    "a list of texts",
    lambda v: isinstance(v, list) and all(isinstance(one, str) for one in v),
    _TEXTS_SCHEMA,
)


def object_schema(
    needed: Mapping[str, Schema], rules: Rules, more: Mapping[str, Schema] | None = None
) -> dict[str, Any]:
    """An object with the fields it needs, and those it may have or leave null."""
    optional = {name: rule.schema for name, rule in rules.items()} | dict(more or {})
    return {
        "type": "object",
        "required": list(needed),
        "properties": dict(needed) | {name: nullable(one) for name, one in optional.items()},
    }


def nullable(schema: Schema) -> dict[str, Any]:
    """The same, or null."""
    kind = schema.get("type")
    if kind is None:
        return {"anyOf": [schema, {"type": "null"}]}
    others = [each for each in (kind if isinstance(kind, list) else [kind]) if each != "null"]
    kinds = {"type": [*others, "null"]}
    choices = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, **kinds, **choices}


def check_fields(body: Mapping[str, Any], rules: Rules, where: str = "") -> None:
    """Raises `InvalidJob` for the first field that breaks its rule."""
    for name, value in body.items():
        if value is not None and (rule := rules.get(name)) is not None:
            check(where, value, rule, name)


def check(where: str, value: Any, rule: FieldRule, name: str) -> None:
    """Raises `InvalidJob` naming `where` and `name` when the value breaks the rule."""
    if not rule.is_kept_by(value):
        raise InvalidJob(f"{where}{name} must be {rule.must_be}", f"{where}{name}")

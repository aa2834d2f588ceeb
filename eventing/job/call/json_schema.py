"""Whether a value is a JSON Schema: what a tool's `parameters` may be. Pure.

Called at submit and by the reader of `tools.yaml`. Judged is the shape of each keyword, by the drafts 7 to 2020-12, and
of draft 4 where models still write it; a keyword that is not known says nothing, as in the specification. References
are not followed.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from eventing.errors import InvalidJob

DEEPEST: Final = 64
_OBJECT: Final = "object"
_TYPES: Final = ("string", "number", "integer", "boolean", "array", _OBJECT, "null")


def schema_fault(schema: Any, where: str = "", depth: int = 0) -> tuple[str, str] | None:
    """The place in a schema that is none, and what it must be; None for a valid one."""
    if isinstance(schema, bool):
        return None
    if not isinstance(schema, Mapping):
        return where, "must be a schema: an object, true or false"
    if depth > DEEPEST:
        return where, f"is nested deeper than {DEEPEST}"
    for name, value in schema.items():
        if not isinstance(name, str):
            return where, "must have texts as names"
        if fault := _fault(name, value, f"{where}.{name:.60}", depth):
            return fault
    return None


def check_parameters(schema: Any, where: str) -> None:
    """Raises `InvalidJob` for what can not be the parameters of a function: a schema of an object."""
    fault = schema_fault(schema, where)
    if fault is None and not isinstance(schema, Mapping):
        fault = where, "must be an object"
    if fault is None:
        kind = schema.get("type", _OBJECT)
        if kind != _OBJECT and kind != [_OBJECT]:
            fault = f"{where}.type", "must be object: arguments are one"
    if fault is not None:
        raise InvalidJob(f"{fault[0]} {fault[1]}", fault[0])


def _fault(name: str, value: Any, where: str, depth: int) -> tuple[str, str] | None:
    if rule := _RULES.get(name):
        must, is_valid = rule
        return None if is_valid(value) else (where, f"must be {must}")
    if name in _SCHEMAS:
        return schema_fault(value, where, depth + 1)
    if name in _NAMED:
        return _named_fault(name, value, where, depth)
    if name in _LISTS:
        if not isinstance(value, list) or not value:
            return where, "must be a list of schemas, and not empty"
        return _each_fault(value, where, depth)
    if name == "items":  # a list of them until 2019-09
        is_list = isinstance(value, list)
        return (
            _each_fault(value, where, depth) if is_list else schema_fault(value, where, depth + 1)
        )
    return None


def _named_fault(name: str, value: Any, where: str, depth: int) -> tuple[str, str] | None:
    if not isinstance(value, Mapping):
        return where, "must be an object of schemas"
    for key, each in value.items():
        if not isinstance(key, str):
            return where, "must have texts as names"
        if name == "dependencies" and _is_texts(each):
            continue
        if fault := schema_fault(each, f"{where}.{key:.60}", depth + 1):
            return fault
    return None


def _each_fault(schemas: list[Any], where: str, depth: int) -> tuple[str, str] | None:
    for place, each in enumerate(schemas):
        if fault := schema_fault(each, f"{where}[{place}]", depth + 1):
            return fault
    return None


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(each, str) and each in _TYPES for each in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and float(value).is_integer()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_Rule = tuple[str, Callable[[Any], bool]]
_COUNT: Final[_Rule] = ("a whole number from 0", _is_count)
_NUMBER: Final[_Rule] = ("a number", _is_number)
_TEXT: Final[_Rule] = ("a text", _is_text)
_TEXTS: Final[_Rule] = ("a list of texts", _is_texts)
_FLAG: Final[_Rule] = ("true or false", _is_flag)
_BOUND: Final[_Rule] = ("a number", lambda value: _is_number(value) or _is_flag(value))
_RULES: Final[Mapping[str, _Rule]] = {
    "type": (f"one of {', '.join(_TYPES)}, or a list of them", _is_type),
    "enum": ("a list", _is_list),
    # Draft 4 had a flag in a property that is required; models still write it.
    "required": ("a list of texts", lambda value: _is_texts(value) or _is_flag(value)),
    "multipleOf": ("a number above 0", lambda value: _is_number(value) and value > 0),
    **dict.fromkeys(("minimum", "maximum"), _NUMBER),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), _BOUND),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _COUNT),
    **dict.fromkeys(("minProperties", "maxProperties", "minContains", "maxContains"), _COUNT),
    **dict.fromkeys(("pattern", "format", "$ref", "$schema", "$id", "$comment"), _TEXT),
    **dict.fromkeys(("title", "description"), _TEXT),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), _FLAG),
    "examples": ("a list", _is_list),
}
_SCHEMAS: Final = {
    *("not", "if", "then", "else", "contains", "propertyNames", "additionalProperties"),
    *("additionalItems", "unevaluatedItems", "unevaluatedProperties"),
}
_NAMED: Final = {
    *("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"),
    "dependencies",
}
_LISTS: Final = {"allOf", "anyOf", "oneOf", "prefixItems"}

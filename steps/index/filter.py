"""Filters on attributes, with OpenAI's meaning: comparisons, and `and` and `or` of filters.

Called by the engines, which evaluate a filter before they rank, and by the parsers of requests. Pure. A comparison
with an attribute that is missing, or of another kind, does not hold; `ne` and `nin` do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventing.errors import BadRequest

Scalar = str | int | float | bool
_DEEPEST: Final = 8
_MOST_PARTS: Final = 100
_MOST_VALUES: Final = 2000


@dataclass(frozen=True, slots=True)
class Comparison:
    """An attribute compared with a value; `in` and `nin` compare with a tuple."""

    key: str
    type: str
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Compound:
    """All (`and`) or any (`or`) of some filters."""

    type: str
    filters: tuple["Filter", ...]


Filter = Comparison | Compound


def matches(wanted: Filter, attributes: Mapping[str, Any]) -> bool:
    """True when the attributes pass the filter."""
    if isinstance(wanted, Compound):
        tested = (matches(one, attributes) for one in wanted.filters)
        return all(tested) if wanted.type == "and" else any(tested)
    return _COMPARE[wanted.type](attributes.get(wanted.key), wanted.value)


def both(first: Filter | None, second: Filter | None) -> Filter | None:
    """Both filters as one."""
    if first is None or second is None:
        return first or second
    return Compound("and", (first, second))


def parse_filter(raw: Any, where: str = "filters") -> Filter | None:
    """The filter in a request; None for none. Raises `BadRequest` naming the wrong part."""
    return None if raw is None else _parse(raw, where, 0)


def _parse(raw: Any, where: str, depth: int) -> Filter:
    if not isinstance(raw, Mapping) or depth > _DEEPEST:
        raise BadRequest(f"{where} must be an object, at most {_DEEPEST} deep", where)
    kind = raw.get("type")
    if kind in ("and", "or"):
        parts = raw.get("filters")
        if not isinstance(parts, list) or not 1 <= len(parts) <= _MOST_PARTS:
            message = f"{where}.filters must be a list of 1 to {_MOST_PARTS} filters"
            raise BadRequest(message, f"{where}.filters")
        inner = (_parse(one, f"{where}.filters[{n}]", depth + 1) for n, one in enumerate(parts))
        return Compound(kind, tuple(inner))
    if not isinstance(kind, str) or kind not in _COMPARE:
        known = ", ".join((*_COMPARE, "and", "or"))
        raise BadRequest(f"{where}.type must be one of {known}", f"{where}.type")
    key, value = raw.get("key"), raw.get("value")
    if not isinstance(key, str) or not key:
        raise BadRequest(f"{where}.key must be the name of an attribute", f"{where}.key")
    return Comparison(key, kind, _value(kind, value, f"{where}.value"))


def _value(kind: str, value: Any, where: str) -> Scalar | tuple[Scalar, ...]:
    if kind in ("in", "nin"):
        is_list = isinstance(value, list) and 1 <= len(value) <= _MOST_VALUES
        if not is_list or not all(isinstance(one, Scalar) for one in value):
            raise BadRequest(f"{where} must be a list of texts, numbers or booleans", where)
        return tuple(value)
    if not isinstance(value, Scalar):
        raise BadRequest(f"{where} must be a text, a number or a boolean", where)
    if kind in _ORDERED and isinstance(value, str | bool):
        raise BadRequest(f"{where} must be a number for {kind}", where)
    return value


def _is_same(left: Any, right: Any) -> bool:
    """Equality that keeps `true` and 1 apart."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _ordered(compare: Callable[[float, float], bool]) -> Callable[[Any, Any], bool]:
    def holds(left: Any, right: Any) -> bool:
        is_number = isinstance(left, int | float) and not isinstance(left, bool)
        return is_number and compare(left, right)

    return holds


_ORDERED: Final = {
    "gt": _ordered(lambda left, right: left > right),
    "gte": _ordered(lambda left, right: left >= right),
    "lt": _ordered(lambda left, right: left < right),
    "lte": _ordered(lambda left, right: left <= right),
}
_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "eq": _is_same,
    "ne": lambda left, right: not _is_same(left, right),
    **_ORDERED,
    "in": lambda left, right: any(_is_same(left, one) for one in right),
    "nin": lambda left, right: not any(_is_same(left, one) for one in right),
}

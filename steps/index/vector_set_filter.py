"""A filter in the expression language of Redis vector sets, and attributes as those expressions read them. Pure.

Called by `steps.index.vector_set`. An expression is false as a whole where one of its attributes is missing, so a
filter becomes alternatives, each of which may be so: a chunk passes the filter when it passes one of them. Names and
texts are hashed, so that a caller's text is never a part of an expression.
"""

import math
from collections.abc import Mapping
from functools import reduce
from hashlib import blake2b
from typing import Any, Final

import orjson

from eventing.errors import BadRequest
from steps.index.filter import Comparison, Filter, Scalar

_MOST_ALTERNATIVES: Final = 32
_FEW: Final = 8
"""Values that are looked up one by one, each in the list of all attributes: longer lists in one comparison."""
_ORDER: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_Alternatives = dict[frozenset[str], str]
"""An expression for each set of attributes without which it is false."""


def filterable(attributes: Mapping[str, Any]) -> bytes:
    """JSON with all that `expressions` read: `all` lists names and values, `v...` and `n...` are one attribute's value
    and number.
    """
    held: dict[str, Any] = {"all": []}
    for name, value in attributes.items():
        key = _digest(name)
        held["all"] += [key, _value(name, value)]
        held[f"v{key}"] = _value(name, value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            held[f"n{key}"] = _number(value)
    return orjson.dumps(held)


def expressions(wanted: Filter) -> list[str]:
    """A chunk passes the filter when one of these holds. Raises `BadRequest` for a filter that needs too many."""
    return list(_alternatives(wanted).values())


def _alternatives(wanted: Filter) -> _Alternatives:
    if isinstance(wanted, Comparison):
        return _compared(wanted)
    parts = [_alternatives(one) for one in wanted.filters]
    found = reduce(_each_with_each if wanted.type == "and" else _together, parts)
    return found


def _compared(wanted: Comparison) -> _Alternatives:
    key = _digest(wanted.key)
    if wanted.type in _ORDER:
        # As a text, which the server reads as a number: its own numbers have no exponents.
        limit = f'"{_number(wanted.value)!r}"'
        return {frozenset({f"n{key}"}): f".n{key} {_ORDER[wanted.type]} {limit}"}
    values = wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)
    texts = [f'"{_value(wanted.key, value)}"' for value in values]
    one_of = f".v{key} in [{','.join(texts)}]"
    if wanted.type in ("eq", "in"):
        return {frozenset({f"v{key}"}): one_of}
    if len(texts) <= _FEW:
        return {frozenset(): " and ".join(f"(not ({text} in .all))" for text in texts)}
    return {frozenset(): f'(not ("{key}" in .all))', frozenset({f"v{key}"}): f"(not ({one_of}))"}


def _together(left: _Alternatives, right: _Alternatives) -> _Alternatives:
    """Those of both; two that need the same attributes are one."""
    found = dict(left)
    for needed, text in right.items():
        found[needed] = f"({found[needed]}) or ({text})" if needed in found else text
    return _bounded(found)


def _each_with_each(left: _Alternatives, right: _Alternatives) -> _Alternatives:
    pairs = [{a | b: f"({x}) and ({y})"} for a, x in left.items() for b, y in right.items()]
    return reduce(_together, pairs)


def _bounded(found: _Alternatives) -> _Alternatives:
    if len(found) > _MOST_ALTERNATIVES:
        message = "the filter has too many attributes in its `or`s for this index"
        raise BadRequest(message, "filters")
    return found


def _value(name: str, value: Scalar) -> str:
    """One attribute with its value. Equal numbers give one text, whatever their type; true is not 1."""
    kind = "text" if isinstance(value, str) else "bool" if isinstance(value, bool) else "number"
    shown = repr(_number(value)) if kind == "number" else value
    return _digest(f"{len(name)} {name} {kind} {shown}")


def _number(value: Any) -> float:
    try:
        return float(value) + 0.0  # -0.0 is 0.0
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()

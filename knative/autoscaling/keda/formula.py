"""Evaluates the formula of KEDA's `scalingModifiers`, such as `(lag > 0 ? lag : 0) + pend`.

Called by `keda.py` with names and numbers. KEDA uses the Go library expr-lang; this is the part of its language
that gives numbers: arithmetic, comparison, logic, `?:`, `??`, and its numeric functions over numbers and lists.
Python's `eval` is not used.
"""

import math
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Union

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<op>\?\?|\*\*|&&|\|\||==|!=|<=|>=|[-+*/%^<>!?:(),\[\]]))"
)
_WORDS = {"and": "&&", "or": "||", "not": "!"}
# Binary operators: how tightly they bind, in expr's own numbers. `?:` binds least, handled apart.
_POWER = {
    "||": 10,
    "&&": 15,
    "==": 20,
    "!=": 20,
    "<": 20,
    ">": 20,
    "<=": 20,
    ">=": 20,
    "+": 30,
    "-": 30,
    "*": 60,
    "/": 60,
    "%": 60,
    "**": 100,
    "^": 100,
    "??": 500,
}
_RIGHT_TO_LEFT = {"**", "^"}
_UNARY_POWER = {"!": 50, "-": 90, "+": 90}
_DEEPEST = 50

Value = Union[float, bool, None, list["Value"]]  # noqa: UP007 - recursive
Node = Callable[[Mapping[str, float | None]], Value]


class FormulaError(ValueError):
    """The formula is invalid, or cannot be computed from the given values."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula: its text, the names it uses, and its evaluator."""

    text: str
    names: frozenset[str]
    _root: Node

    def value(self, values: Mapping[str, float | None]) -> float:
        """The number for these trigger values; None is a trigger that failed.

        Raises FormulaError when the result is not a number.
        """
        result = self._root(values)
        if isinstance(result, bool) or not isinstance(result, int | float):
            raise FormulaError(f"{self.text!r} gives {result!r}, not a number")
        return float(result)


def parse(text: str) -> Formula:
    """Parse a formula; raises FormulaError with the position of the error."""
    parser = _Parser(text)
    root = parser.expression(0)
    parser.expect_end()
    return Formula(text, frozenset(parser.names), root)


class _Parser:
    """A precedence-climbing parser."""

    def __init__(self, text: str) -> None:
        self.names: set[str] = set()
        self._text = text
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0

    def expression(self, power: int) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise FormulaError("the formula is nested too deeply")
        left = self._prefix()
        while (operator := self._peek()) in _POWER and _POWER[operator] >= max(power, 1):
            self._next()
            stronger = _POWER[operator] + (0 if operator in _RIGHT_TO_LEFT else 1)
            left = _binary(operator, left, self.expression(stronger))
        if power == 0 and self._peek() == "?":
            left = self._choice(left)
        self._depth -= 1
        return left

    def expect_end(self) -> None:
        if self._at < len(self._tokens):
            raise FormulaError(f"{self._text!r}: unexpected {self._peek()!r}")

    def _choice(self, condition: Node) -> Node:
        self._next()
        yes = self.expression(0)
        self._expect(":")
        no = self.expression(0)
        return lambda values: yes(values) if _truth(condition(values)) else no(values)

    def _prefix(self) -> Node:
        token = self._next()
        if token in _UNARY_POWER:
            return _unary(token, self.expression(_UNARY_POWER[token]))
        if token == "(":  # noqa: S105 - a bracket, no password
            inner = self.expression(0)
            self._expect(")")
            return inner
        if token == "[":  # noqa: S105
            return _list(self._arguments("]"))
        if token[0].isdigit() or token[0] == ".":
            number = float(token)
            return lambda _: number
        if token[0].isalpha() or token[0] == "_":
            return self._named(token)
        raise FormulaError(f"{self._text!r}: unexpected {token!r}")

    def _named(self, name: str) -> Node:
        constants: dict[str, Value] = {"nil": None, "true": True, "false": False}
        if name in constants:
            constant = constants[name]
            return lambda _: constant
        if self._peek() == "(":
            self._next()
            return _call(name, self._arguments(")"))
        self.names.add(name)
        return lambda values: _looked_up(values, name)

    def _arguments(self, end: str) -> list[Node]:
        arguments: list[Node] = []
        while self._peek() != end:
            arguments.append(self.expression(0))
            if self._peek() != end:
                self._expect(",")
        self._next()
        return arguments

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        if not token:
            raise FormulaError(f"{self._text!r} ends too early")
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._peek() != token:
            raise FormulaError(f"{self._text!r}: expected {token!r}, got {self._peek()!r}")
        self._at += 1


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    stripped = text.rstrip()
    while at < len(stripped):
        match = _TOKEN.match(stripped, at)
        if match is None:
            raise FormulaError(f"{text!r}: cannot read {stripped[at:].strip()[:10]!r}")
        token = match.group(match.lastgroup or 0)
        tokens.append(_WORDS.get(token, token))
        at = match.end()
    return tokens


def _looked_up(values: Mapping[str, float | None], name: str) -> Value:
    if name not in values:
        raise FormulaError(f"no trigger is named {name!r}")
    return values[name]


def _list(items: list[Node]) -> Node:
    return lambda values: [item(values) for item in items]


def _unary(operator: str, operand: Node) -> Node:
    if operator == "!":
        return lambda values: not _truth(operand(values))
    sign = -1.0 if operator == "-" else 1.0
    return lambda values: sign * _number(operand(values))


def _binary(operator: str, left: Node, right: Node) -> Node:
    match operator:
        case "??":
            return lambda values: right(values) if left(values) is None else left(values)
        case "&&":
            return lambda values: _truth(left(values)) and _truth(right(values))
        case "||":
            return lambda values: _truth(left(values)) or _truth(right(values))
        case "==":
            return lambda values: left(values) == right(values)
        case "!=":
            return lambda values: left(values) != right(values)
        case _:
            compute = _ARITHMETIC[operator]
            return lambda values: compute(_number(left(values)), _number(right(values)))


def _divided(a: float, b: float) -> float:
    if b == 0:
        # Go gives Inf or NaN; neither can become a number of pods.
        raise FormulaError("division by zero")
    return a / b


def _remainder(a: float, b: float) -> float:
    if b == 0:
        raise FormulaError("division by zero")
    return math.fmod(a, b)


def _power(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except (OverflowError, ValueError) as error:
        raise FormulaError(f"{a} ** {b} is no number") from error


_ARITHMETIC: dict[str, Callable[[float, float], Value]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divided,
    "%": _remainder,
    "**": _power,
    "^": _power,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}

_FUNCTIONS: dict[str, Callable[[list[float]], float]] = {
    "max": max,
    "min": min,
    "sum": math.fsum,
    "mean": statistics.fmean,
    "median": statistics.median,
    "len": len,
    "abs": lambda n: abs(_only(n)),
    "ceil": lambda n: math.ceil(_only(n)),
    "floor": lambda n: math.floor(_only(n)),
    "round": lambda n: math.floor(abs(_only(n)) + 0.5) * (1 if _only(n) >= 0 else -1),
    "int": lambda n: math.trunc(_only(n)),
    "float": lambda n: _only(n),
}


def _call(name: str, arguments: list[Node]) -> Node:
    function = _FUNCTIONS.get(name)
    if function is None:
        known = ", ".join(sorted(_FUNCTIONS))
        raise FormulaError(f"unknown function {name!r}; known: {known}")

    def call(values: Mapping[str, float | None]) -> Value:
        numbers = _flat([argument(values) for argument in arguments])
        if not numbers:
            raise FormulaError(f"{name}() of nothing")
        return float(function(numbers))

    return call


def _flat(items: list[Value]) -> list[float]:
    numbers: list[float] = []
    for item in items:
        numbers.extend(_flat(item) if isinstance(item, list) else [_number(item)])
    return numbers


def _only(numbers: list[float]) -> float:
    if len(numbers) != 1:
        raise FormulaError(f"expected one number, got {len(numbers)}")
    return numbers[0]


def _number(value: Value) -> float:
    if value is None or isinstance(value, bool | list):
        raise FormulaError(f"{value!r} is not a number")
    return value


def _truth(value: Value) -> bool:
    if not isinstance(value, bool):
        raise FormulaError(f"{value!r} is not true or false")
    return value

"""KEDA formulas are computed, and nothing else is."""

import pytest

from knative.autoscaling.keda.formula import FormulaError, parse


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("(lag > 0 ? lag : 0) + pend", {"lag": -1, "pend": 3}, 3),
        ("(lag > 0 ? lag : 0) + pend", {"lag": 2, "pend": 3}, 5),
        ("a + b * c", {"a": 1, "b": 2, "c": 3}, 7),
        ("(a + b) * c", {"a": 1, "b": 2, "c": 3}, 9),
        ("a / b", {"a": 7, "b": 2}, 3.5),
        ("10 - 3 - 2", {}, 5),
        ("2 ** 3 ** 2", {}, 512),
        ("-2 ** 2", {}, -4),
        ("7 % 4", {}, 3),
        ("max(a, b)", {"a": 1, "b": 4}, 4),
        ("sum([a, b, 3])", {"a": 1, "b": 4}, 8),
        ("a ?? b", {"a": None, "b": 4}, 4),
        ("a > 1 && b < 5 || not true ? 1 : 2", {"a": 2, "b": 4}, 1),
        ("a == 1 ? 10 : a == 2 ? 20 : 30", {"a": 2}, 20),
        ("round(2.5) + floor(-0.5)", {}, 2),
        ("1e3", {}, 1000),
    ],
)
def test_a_formula_gives_its_number(
    text: str, values: dict[str, float | None], expected: float
) -> None:
    assert parse(text).value(values) == pytest.approx(expected)


def test_a_formula_knows_the_triggers_it_needs() -> None:
    assert parse("max(lag, 0) + pend").names == {"lag", "pend"}


@pytest.mark.parametrize(
    "text",
    ["", "1 +", "(1", "1 2", "a.b", "exit(1)", "__import__('os')", "a ? 1", "1 = 2", "(" * 99],
)
def test_an_invalid_formula_is_refused(text: str) -> None:
    with pytest.raises(FormulaError):
        parse(text)


@pytest.mark.parametrize("text", ["a > 1", "a / 0", "missing", "b + 1", "[a]", "1 && true"])
def test_a_result_that_is_not_a_number_is_an_error(text: str) -> None:
    with pytest.raises(FormulaError):
        parse(text).value({"a": 1, "b": None})

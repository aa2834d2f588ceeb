"""The formulas that we render mean in KEDA's own language what our reader makes of them.

KEDA compiles a formula with the Go library expr over a map of float64 by trigger name, and wraps it
in `float( )` unless it begins with that. `expr_results.json` is what expr itself gave (its release
1.8.9, the newest that could be run here): the common part of the language, mistakes among them.
What came later, `??` and `float`, is read from expr's table of operators and its definition.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from knative.autoscaling.keda.formula import FormulaError, parse
from knative.deploy.render.scaling import WORK, pressure_formula
from knative.deploy.values import Values

RECORDED = json.loads((Path(__file__).parent / "expr_results.json").read_text())
RENDERED = [WORK, pressure_formula(Values())]
# What expr's definition knows, of what we use: names, numbers, brackets, and these operators.
LANGUAGE = re.compile(r"\s*(float|lag|pend|p95|gpu|\d+(\.\d+)?|\?\?|[-+*/><?:()])")


def ours(formula: str, values: dict[str, Any]) -> float | None:
    """What our reader gives, or None where it refuses."""
    try:
        return parse(formula).value(values)
    except FormulaError:
        return None


@pytest.mark.parametrize("formula", RECORDED["results"])
def test_our_reader_gives_what_expr_gave(formula: str) -> None:
    given = [ours(formula, values) for values in RECORDED["values"]]

    assert given == RECORDED["results"][formula]


@pytest.mark.parametrize("values", RECORDED["values"])
def test_the_pressure_formula_is_what_expr_was_run_with(values: dict[str, float]) -> None:
    """Without `float` and `??`, which change nothing when every trigger answers."""
    plain = re.sub(r"\((p95|gpu) \?\? 0\)", r"\1", pressure_formula(Values()))
    plain = plain.removeprefix("float(").removesuffix(")")

    assert plain in RECORDED["results"]
    assert ours(pressure_formula(Values()), values) == ours(plain, values)


@pytest.mark.parametrize("formula", RENDERED)
def test_a_rendered_formula_stays_within_exprs_language(formula: str) -> None:
    at = 0
    while at < len(formula):
        match = LANGUAGE.match(formula, at)
        assert match, formula[at:]
        at = match.end()


@pytest.mark.parametrize("formula", RENDERED)
def test_a_formula_that_begins_with_float_is_entirely_inside_its_parentheses(formula: str) -> None:
    """KEDA adds its own `float( )` otherwise, and only looks at the beginning."""
    depths = [
        formula[: i + 1].count("(") - formula[: i + 1].count(")") for i in range(len(formula))
    ]

    assert not formula.startswith("float(") or depths.index(0, len("float")) == len(formula) - 1


def test_a_missing_value_binds_tighter_than_everything_as_in_expr() -> None:
    assert ours("p95 ?? 0 > 60 ? 2 : 1", {"p95": 100.0}) == 2
    assert ours("1 + p95 ?? 5", {"p95": None}) == 6


def test_lag_and_pending_have_no_default_so_that_a_lost_store_moves_nothing() -> None:
    """A trigger that failed is nil; the formula then fails and KEDA leaves the replicas alone."""
    for formula in RENDERED:
        assert ours(formula, {"lag": None, "pend": None, "p95": 0, "gpu": 0}) is None

"""Errors in exception groups reach their caller as one, on every supported Python."""

import ast
from pathlib import Path

import pytest

from eventing.errors import NotFound, Unavailable, first_of

ROOT = Path(__file__).parents[3]
ROOMS = ("api", "eventing", "knative", "predictor")


def test_the_first_of_a_group_of_groups_is_what_its_caller_gets() -> None:
    first = NotFound("gone")

    assert first_of(ExceptionGroup("", [ExceptionGroup("", [first]), Unavailable("away")])) is first
    assert first_of(first) is first


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_raised_where_an_older_python_would_wrap_it(room: str) -> None:
    wrapped = [
        f"{path}:{raised.lineno}"
        for path in (ROOT / room).rglob("*.py")
        for tried in ast.walk(ast.parse(path.read_text()))
        if isinstance(tried, ast.TryStar)
        for handler in tried.handlers
        for raised in ast.walk(handler)
        if isinstance(raised, ast.Raise)
    ]

    assert not wrapped

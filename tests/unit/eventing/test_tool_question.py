"""What a person answers to a tool's question, whose schema the tool wrote."""

from typing import Any

import pytest

from eventing.errors import BadRequest
from eventing.job.tools.question import check_content


def checked(value: Any, rule: Any) -> Any:
    return check_content({"x": value}, {"properties": {"x": rule}}, "content")["x"]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("red", {"enum": ["red", "blue"]}),
        ("red", {"oneOf": [{"const": "red", "title": "Red"}]}),
        (["a"], {"type": "array", "items": {"enum": ["a"]}, "maxItems": 1}),
        (3, {"type": "integer", "minimum": 3, "maximum": 3}),
        (True, {"type": "boolean"}),
        ("x", {"enum": 5, "oneOf": 7, "anyOf": "x"}),
        ({}, {"minimum": 1}),
        (None, {"minLength": 1, "maxItems": "many"}),
        ("x", "any"),
        ("x", {"type": ["string"]}),
    ],
)
def test_an_answer_is_taken_however_wrong_the_schema_is(value: Any, rule: Any) -> None:
    assert checked(value, rule) == value


@pytest.mark.parametrize(
    ("value", "rule", "why"),
    [
        (1, {"type": "string"}, "of type string"),
        (True, {"type": "integer"}, "of type integer"),
        ("green", {"enum": ["red"]}, "offered"),
        ({}, {"enum": ["red"]}, "offered"),
        ("green", {"anyOf": [{"const": "red"}]}, "offered"),
        ("", {"type": "string", "minLength": 1}, "at least 1"),
        (4, {"type": "number", "maximum": 3.5}, "at most 3.5"),
        ([1], {"type": "array"}, "of type array"),
    ],
)
def test_an_answer_that_the_schema_refuses_is_refused_by_its_field(
    value: Any, rule: Any, why: str
) -> None:
    with pytest.raises(BadRequest, match=why) as refused:
        checked(value, rule)
    assert refused.value.field == "content.x"


@pytest.mark.parametrize("schema", [None, 5, {"properties": [], "required": 5}, {"required": [5]}])
def test_a_question_without_a_readable_schema_takes_nothing_but_an_empty_answer(
    schema: Any,
) -> None:
    assert check_content({}, schema, "content") == {}
    with pytest.raises(BadRequest, match="was not asked for"):
        check_content({"x": 1}, schema, "content")

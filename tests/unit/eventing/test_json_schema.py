"""What can be the parameters of a function, judged as the published meta-schemas do."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator, SchemaError

from eventing.errors import InvalidJob
from eventing.job.call.json_schema import DEEPEST, check_parameters, schema_fault

WRONG: dict[str, tuple[Any, str]] = {
    "a type that is none": ({"properties": {"n": {"type": "int"}}}, "p.properties.n.type"),
    "a list of types": ({"properties": {"n": {"type": []}}}, "p.properties.n.type"),
    "properties as a list": ({"properties": ["n"]}, "p.properties"),
    "a property as a text": ({"properties": {"n": "string"}}, "p.properties.n"),
    "required as a text": ({"required": "n"}, "p.required"),
    "an enum as a text": ({"properties": {"n": {"enum": "a"}}}, "p.properties.n.enum"),
    "a bound as a text": ({"properties": {"n": {"minimum": "1"}}}, "p.properties.n.minimum"),
    "a length below 0": ({"properties": {"n": {"maxLength": -1}}}, "p.properties.n.maxLength"),
    "items as a text": ({"properties": {"n": {"items": "string"}}}, "p.properties.n.items"),
    "no alternatives": ({"anyOf": []}, "p.anyOf"),
    "an alternative": ({"oneOf": [{}, {"type": "text"}]}, "p.oneOf[1].type"),
    "a definition": ({"$defs": {"a": {"not": 3}}}, "p.$defs.a.not"),
    "a reference": ({"properties": {"n": {"$ref": 1}}}, "p.properties.n.$ref"),
    "a description": ({"description": None}, "p.description"),
    "another type": ({"type": "string"}, "p.type"),
    "a list": ([], "p"),
    "true": (True, "p"),
    "a number as a name": ({"properties": {1: {}}}, "p.properties"),
}


@pytest.mark.parametrize(("schema", "field"), WRONG.values(), ids=WRONG)
def test_what_is_no_schema_is_refused_by_its_place(schema: Any, field: str) -> None:
    with pytest.raises(InvalidJob, match=r"^p\S* must ") as refused:
        check_parameters(schema, "p")
    assert refused.value.field == field


def test_a_schema_that_is_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"not": schema}
    with pytest.raises(InvalidJob, match=f"nested deeper than {DEEPEST}"):
        check_parameters(schema, "p")


def test_infinity_is_no_count() -> None:
    assert schema_fault({"maxLength": float("inf")}) is not None


names = st.sampled_from(
    [
        *("type", "enum", "required", "properties", "items", "anyOf", "allOf", "not", "minimum"),
        *("maxLength", "multipleOf", "uniqueItems", "pattern", "$defs", "additionalProperties"),
        *("title", "description", "const", "default", "minItems", "if", "prefixItems", "format"),
    ]
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(0.5, 2),
    st.sampled_from(["string", "object", "a", ""]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2, unique_by=repr), st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(names, values, max_size=4))
def test_what_is_a_schema_is_what_the_meta_schemas_say(schema: dict[str, Any]) -> None:
    valid = []
    for draft in (Draft202012Validator, Draft7Validator):
        try:
            draft.check_schema(schema)
            valid.append(True)
        except SchemaError:
            valid.append(False)

    found = schema_fault(schema)

    if valid[0]:
        assert found is None, found
    elif found is None and not valid[1]:
        assert _is_of_before(schema)


def _is_of_before(value: Any) -> bool:
    """True where a keyword has a form of a draft before 7, or of one draft in one place and another in the next."""
    if isinstance(value, list):
        return any(map(_is_of_before, value))
    if not isinstance(value, dict):
        return False
    return (
        isinstance(value.get("required"), bool)
        or isinstance(value.get("items"), list)
        or isinstance(value.get("type"), list)
        or "prefixItems" in value
        or any(map(_is_of_before, value.values()))
    )

"""The OpenAPI document: complete in what schemathesis does not ask about."""

import ast
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import api
from api.app import create_app
from api.http.described import DESCRIBED
from api.routes import response_socket, socket
from api.settings import ApiSettings
from api.wiring.parts import make_parts
from api.wiring.routers import routers
from eventing.redis.connection import connect
from tests.integration.api.fakes import FakeBroker

Operations = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    settings = ApiSettings()
    redis = connect(settings.redis_url.get_secret_value(), timeout_s=1.0, max_connections=2)
    parts = make_parts(settings, redis, FakeBroker())
    return create_app(routers(parts), lambda _: nullcontext()).openapi()


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> Operations:
    """By method and path."""
    paths = document["paths"]
    return {f"{m.upper()} {path}": op for path, ms in paths.items() for m, op in ms.items()}


def contents(operation: dict[str, Any]) -> list[dict[str, Any]]:
    """What the body and the good answers hold."""
    good = [answer for status, answer in operation["responses"].items() if status < "300"]
    parts = (operation.get("requestBody", {}), *good)
    return [content for part in parts for content in part.get("content", {}).values()]


def name_of(reference: str) -> str:
    return reference.rsplit("/", 1)[-1]


def test_every_body_and_every_answer_has_an_example(
    document: dict[str, Any], operations: Operations
) -> None:
    schemas = document["components"]["schemas"]
    without = {
        name
        for name, operation in operations.items()
        for content in contents(operation)
        if "example" not in content
        and "examples" not in schemas[name_of(content["schema"]["$ref"])]
    }

    assert without == set()


def test_every_schema_is_valid_json_schema(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_example_is_valid_by_its_schema(document: dict[str, Any]) -> None:
    wrong = {}
    for name, schema in document["components"]["schemas"].items():
        judge = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
        for example in schema.get("examples", ()):
            if errors := [error.message for error in judge.iter_errors(example)]:
                wrong[name] = errors

    assert wrong == {}


def test_every_object_says_which_fields_it_has(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    objects = {name: one for name, one in schemas.items() if one.get("type") == "object"}
    assert [name for name, one in objects.items() if not one.get("properties")] == []


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    kinds = document["components"]

    for where in references(document):
        _, _, kind, name = where.split("/")
        assert name in kinds[kind]


def references(part: Any) -> set[str]:
    if isinstance(part, dict):
        own = {part["$ref"]} if "$ref" in part else set()
        return own.union(*map(references, part.values()))
    return set().union(*map(references, part)) if isinstance(part, list) else set()


def test_every_call_names_the_key_and_the_scope_that_it_needs(
    document: dict[str, Any], operations: Operations
) -> None:
    bearer = document["components"]["securitySchemes"]["bearer"]

    assert (bearer["type"], bearer["scheme"]) == ("http", "bearer")
    assert all(len(operation["security"][0]["bearer"]) == 1 for operation in operations.values())


def test_the_document_has_both_websockets_and_no_internal_route(
    document: dict[str, Any], operations: Operations
) -> None:
    for path in (socket.PATH, response_socket.PATH):
        assert f"**WebSocket** `{path}`" in document["info"]["description"]
    assert [name for name in operations if "/v1/" not in name] == ["POST /invocations"]


def test_every_tag_is_explained(document: dict[str, Any], operations: Operations) -> None:
    used = {tag for operation in operations.values() for tag in operation["tags"]}

    assert {tag["name"] for tag in document["tags"]} == used


def test_the_paths_that_openai_has_too_and_no_others_refuse_in_its_form(
    operations: Operations,
) -> None:
    theirs = {
        tag
        for operation in operations.values()
        for tag in operation["tags"]
        if name_of(operation["responses"]["401"]["$ref"]) == "OpenAI401"
    }

    assert theirs == {"openai", "batches", "files", "vector stores", "organization"}


def test_a_field_of_a_base_has_its_description_in_the_object_that_extends_it(
    document: dict[str, Any],
) -> None:
    schemas = document["components"]["schemas"]
    said = schemas["AcceptedJob"]["properties"]["deadline_ms"]["description"]

    assert schemas["Job"]["properties"]["deadline_ms"]["description"] == said


def test_every_refusal_shows_its_own_status(document: dict[str, Any]) -> None:
    shown = {}
    for name, refusal in document["components"]["responses"].items():
        ((media_type, content),) = refusal["content"].items()
        if media_type == "application/problem+json":
            shown[name] = f"Problem{content['example']['status']}"

    assert shown
    assert list(shown) == list(shown.values())


def test_every_call_says_that_it_may_be_limited_and_when_to_come_back(
    document: dict[str, Any], operations: Operations
) -> None:
    refusals = document["components"]["responses"]
    for name, operation in operations.items():
        for status in ("429", "503"):
            refusal = refusals[name_of(operation["responses"][status]["$ref"])]
            assert "Retry-After" in refusal["headers"], (name, status)


def test_each_text_in_a_type_of_an_answer_stands_below_a_field_and_is_shown() -> None:
    lost = []
    for path in Path(api.__file__).parent.rglob("*.py"):
        for kind in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(kind, ast.ClassDef) and _is_typed_dict(kind):
                lost += [f"{path.name}: {kind.name}" for _ in _lost_texts(kind)]

    assert lost == []


def _is_typed_dict(kind: ast.ClassDef) -> bool:
    bases = {base.id for base in kind.bases if isinstance(base, ast.Name)}
    return bool(bases & {"TypedDict", *(each.__name__ for each in DESCRIBED)})


def _lost_texts(kind: ast.ClassDef) -> list[ast.stmt]:
    """The texts that no field gets."""
    is_shown = any(isinstance(d, ast.Name) and d.id == "described" for d in kind.decorator_list)
    return [
        text
        for above, text in zip(kind.body, kind.body[1:], strict=False)
        if isinstance(text, ast.Expr) and not (is_shown and isinstance(above, ast.AnnAssign))
    ]

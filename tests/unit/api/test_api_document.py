"""The OpenAPI document: complete in what schemathesis does not ask about."""

from typing import Any

import pytest

from api.app import create_app
from api.front import Front
from api.job.catalog import Catalog
from api.settings import ApiSettings
from eventing.store.memory_store import MemoryStore
from tests.integration.api.fakes import FakeBroker


@pytest.fixture(scope="module")
def operations() -> dict[str, dict[str, Any]]:
    """By method and path."""
    front = Front(
        settings=ApiSettings(),
        store=MemoryStore(),
        publisher=FakeBroker(),
        live=None,  # type: ignore[arg-type]
        catalog=Catalog(()),
    )
    paths = create_app(front).openapi()["paths"]
    return {f"{m.upper()} {path}": op for path, ms in paths.items() for m, op in ms.items()}


def has_example(content: dict[str, Any]) -> bool:
    return "example" in content or "examples" in content or "example" in content["schema"]


def test_every_body_and_every_answer_has_an_example(operations: dict[str, dict[str, Any]]) -> None:
    without = []
    for name, operation in operations.items():
        good = [answer for status, answer in operation["responses"].items() if status < "300"]
        for part in (operation.get("requestBody", {}), *good):
            for content in part.get("content", {}).values():
                if not has_example(content):
                    without.append(name)

    assert without == []


def test_an_example_has_what_its_schema_requires(operations: dict[str, dict[str, Any]]) -> None:
    lacking = {}
    for name, operation in operations.items():
        for status, answer in operation["responses"].items():
            for content in answer.get("content", {}).values():
                example, schema = content.get("example"), content["schema"]
                required = {*schema.get("required", ())} if isinstance(example, dict) else set()
                if missing := required - {*(example or ())}:
                    lacking[name, status] = missing

    assert lacking == {}


def test_every_call_says_that_it_may_be_limited_and_when_to_come_back(
    operations: dict[str, dict[str, Any]],
) -> None:
    for name, operation in operations.items():
        for status in ("429", "503"):
            assert "Retry-After" in operation["responses"][status]["headers"], (name, status)

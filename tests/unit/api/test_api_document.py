"""The OpenAPI document: complete in what schemathesis does not ask about."""

from contextlib import nullcontext
from typing import Any

import pytest

from api import wiring
from api.app import create_app
from api.settings import ApiSettings
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.integration.api.fakes import FakeBroker


@pytest.fixture(scope="module")
def operations() -> dict[str, dict[str, Any]]:
    """By method and path."""
    settings = ApiSettings()
    redis = connect(settings.redis_url.get_secret_value(), timeout_s=1.0, max_connections=2)
    parts = wiring.make_parts(settings, redis, RedisStore(redis), FakeBroker())
    paths = create_app(wiring.routers(parts), lambda _: nullcontext()).openapi()["paths"]
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

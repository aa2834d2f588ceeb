"""Which model stands in for another, as `pipelines.yaml` says it."""

from typing import Any

import pytest

from eventing.errors import BadRequest
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.pipelines.fallback import (
    Fallback,
    check_fallbacks,
    fallback_word,
    parse_fallbacks,
    stand_in,
)

FALLBACKS = {
    "own": Fallback(model="other"),
    "close": Fallback(model="other", tenants=frozenset({"trusted"})),
}


def test_a_fallback_is_a_name_or_a_name_for_some_tenants() -> None:
    document = {
        "own": {"fallback": "other"},
        "close": {"fallback": {"model": "other", "tenants": ["trusted"]}, "steps": ["no-op"]},
        "plain": {"steps": ["no-op"]},
    }

    assert parse_fallbacks(document) == FALLBACKS
    assert set(parse_pipelines(document)) == {"close", "plain"}


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (7, "own.fallback"),
        ("", "own.fallback"),
        ("two words", "own.fallback"),
        ("none", "own.fallback"),
        ({"tenants": []}, "own.fallback"),
        ({"model": "other", "tenants": "acme"}, "own.fallback.tenants"),
        ({"model": "other", "after_s": 3}, "own.fallback"),
    ],
)
def test_an_invalid_fallback_is_named(entry: Any, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_fallbacks({"own": {"fallback": entry}})

    assert refused.value.field == field


@pytest.mark.parametrize(
    ("model", "served"), [("other", {"own"}), ("own", {"own", "other"}), ("other", {"other"})]
)
def test_both_models_must_be_served_and_differ(model: str, served: set[str]) -> None:
    with pytest.raises(BadRequest):
        check_fallbacks({"own": Fallback(model=model)}, served)


@pytest.mark.parametrize(
    ("model", "tenant", "asked", "found"),
    [
        ("own", "acme", "", ("own", "other")),
        ("own", "acme", "none", None),
        ("own", "acme", "own none", None),
        ("close", "trusted", "", ("close", "other")),
        ("close", "acme", "", None),
        ("plain", "acme", "", None),
        ("plain", "acme", "own other", None),
    ],
)
def test_what_stands_in_for_a_jobs_model(
    model: str, tenant: str, asked: str, found: tuple[str, str] | None
) -> None:
    assert stand_in(fallback_word(FALLBACKS, model, tenant, asked)) == found

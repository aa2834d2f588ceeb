"""The exact cache's key, and what a caller and a rule ask of it."""

import random
from collections.abc import Mapping
from typing import Any, Final

import pytest

from eventing.errors import BadRequest
from eventing.job.cache.cache import (
    CacheControl,
    CacheKind,
    CacheRule,
    CacheStatus,
    CacheUse,
    cache_ask,
    cache_use_of,
    parse_cache_control,
    parse_cache_rules,
)
from eventing.job.cache.key import IGNORED, cache_key
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.plan import Plan, PlannedStep
from tests.unit.eventing.cache_twins import TWINS, twin

CHAT: Final = "/v1/chat/completions"
BODY: Final = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "why?"}]}


def key(body: Mapping[str, Any], *, url: str = CHAT, tenant: str = "a", plan: str = "") -> str:
    return cache_key(url, body, tenant=tenant, plan_version=plan)


def ask(
    body: Mapping[str, Any],
    rule: CacheRule | None = None,
    control: str = "",
    plan: Plan | None = None,
) -> Any:
    parsed = parse_cache_control(control)
    return cache_ask(CHAT, body, tenant="a", rule=rule, control=parsed, plan=plan)


@pytest.mark.parametrize(
    "same",
    [
        {"temperature": 0.0},
        {"n": 1},
        {"stop": []},
        {"presence_penalty": 0.0, "frequency_penalty": 0},
        {"logprobs": False, "top_logprobs": 0},
        {"seed": None},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "u", "metadata": {"k": "v"}, "store": True, "background": True},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h"},
    ],
)
def test_a_call_that_means_the_same_has_the_same_key(same: Mapping[str, Any]) -> None:
    assert key({**BODY, **same}) == key(BODY)
    assert key(dict(reversed(BODY.items()))) == key(BODY)


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.1},
        {"seed": 1},
        {"seed": True},
        {"max_tokens": 5},
        {"messages": [{"role": "user", "content": "why? "}]},
        {"messages": [{"role": "system", "content": "s"}, *BODY["messages"]]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"model": "m2"},
        {"a_field_of_the_engine": 1},
    ],
)
def test_another_call_has_another_key(other: Mapping[str, Any]) -> None:
    assert key({**BODY, **other}) != key(BODY)


def test_tenant_url_plan_kind_and_versions_of_indexes_are_part_of_the_key() -> None:
    keys = {
        key(BODY),
        key(BODY, tenant="b"),
        key(BODY, url="/v1/completions"),
        key(BODY, plan="v2"),
        cache_key(CHAT, BODY, tenant="a", kind="responses"),
        cache_key(CHAT, BODY, tenant="a", index_versions={"vs": "1"}),
        cache_key(CHAT, BODY, tenant="a", index_versions={"vs": "2"}),
    }
    assert len(keys) == 7


@pytest.mark.parametrize("seed", range(4))
def test_each_changed_field_of_a_twin_changes_the_key_or_is_ignored(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(TWINS // 4):
        body, changed, name, is_same = twin(source)
        assert (key(changed) == key(body)) is is_same, (name, body, changed)


def test_what_the_generator_of_twins_ignores_is_what_the_key_ignores() -> None:
    for name in IGNORED:
        assert key({**BODY, name: "x"}) == key(BODY)


def test_without_a_rule_only_a_caller_who_accepts_cached_answers_is_served() -> None:
    assert ask(BODY) is None
    assert ask(BODY, control="no-cache") is None
    assert ask(BODY, control="max-age=0") is None
    assert ask(BODY, control="max-age=60").key == key(BODY)
    assert ask(BODY, control="only-if-cached").only_if_cached


def test_no_store_asks_for_nothing_and_says_so() -> None:
    for rule in (None, CacheRule()):
        found = ask(BODY, rule, "no-store")
        assert (found.key, found.use.status, found.use.reason) == ("", "bypass", "no-store")


def test_no_cache_keeps_an_answer_without_reading_one() -> None:
    for control in ("no-cache", "max-age=0", "max-age=soon"):
        found = ask(BODY, CacheRule(ttl_s=60), control)
        assert (found.key, found.reads, found.ttl_s) == (key(BODY), False, 60)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({**BODY, "temperature": 0.7}, "sampled"),
        ({k: v for k, v in BODY.items() if k != "temperature"}, "sampled"),
        ({**BODY, "n": 2}, "sampled"),
        ({**BODY, "tools": [{"type": "function", "function": {"name": "clock"}}]}, "tools"),
    ],
)
def test_a_call_whose_answer_may_differ_is_cached_only_when_asked(
    body: Mapping[str, Any], reason: str
) -> None:
    assert ask(body, CacheRule()).reason == reason
    assert ask(body, CacheRule(sampled=True, tools=True)).key == key(body)
    assert ask(body, CacheRule(), "max-age=60").key == key(body)


def test_a_call_whose_answer_depends_on_a_conversation_is_never_cached() -> None:
    plan = Plan(steps=(PlannedStep(name="memory"),))
    assert ask(BODY, CacheRule(), "max-age=60", plan).reason == "context"
    control = parse_cache_control("max-age=60")
    turn = cache_ask(CHAT, BODY, tenant="a", rule=None, control=control, has_context=True)
    assert turn is not None
    assert turn.reason == "context"
    routed = Plan(steps=(PlannedStep(name="route"),))
    assert ask(BODY, CacheRule(), plan=routed).key == key(BODY, plan=routed.version)


def test_directives_are_read_as_rfc_9111_writes_them() -> None:
    read = parse_cache_control(' No-Cache , max-age="60", x-other=1,only-if-cached')
    assert read == CacheControl(no_cache=True, only_if_cached=True, max_age_s=60)
    assert parse_cache_control("max-age=99999999").max_age_s == 24 * 3600
    assert parse_cache_control("") == CacheControl()


def test_a_lifetime_is_a_day_at_most() -> None:
    assert ask(BODY, control="max-age=99999999").ttl_s == 24 * 3600
    assert ask(BODY, control="max-age=60").ttl_s == 3600


def test_rules_are_read_beside_plans() -> None:
    document = {
        "a": {"cache": {"exact": {"ttl_s": 60, "sampled": True}}},
        "b": {"steps": ["route"], "cache": {"exact": None}},
        "c": {"steps": ["route"]},
    }
    assert parse_cache_rules(document) == {"a": CacheRule(ttl_s=60, sampled=True), "b": CacheRule()}
    assert set(parse_pipelines(document)) == {"b", "c"}


@pytest.mark.parametrize(
    "cache",
    [
        1,
        {},
        {"exact": {"ttl_s": 0}},
        {"exact": {"ttl_s": 86401}},
        {"exact": {"ttl": 1}},
        {"exact": 1, "x": 2},
        {"exact": {"tools": "yes"}},
    ],
)
def test_a_wrong_rule_names_its_field(cache: Any) -> None:
    with pytest.raises(BadRequest, match=r"m\.cache"):
        parse_cache_rules({"m": {"cache": cache}})


def test_a_use_is_read_as_it_was_written_and_by_an_older_process() -> None:
    use = CacheUse(
        status=CacheStatus.HIT, kind=CacheKind.EXACT, key="k", age_s=3, saved_usage={"t": 1}
    )
    assert cache_use_of(use.to_json()) == use
    assert cache_use_of(b'{"status":"miss","of_a_newer_version":1}').status is CacheStatus.MISS

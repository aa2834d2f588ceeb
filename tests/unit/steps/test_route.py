"""Which tier a request goes to, and why."""

from typing import Any

import pytest

from eventing.errors import BadRequest
from eventing.job.job import JobRequest
from eventing.telemetry.metric.routing import TIER_RULES
from steps.route.tiers import Tier, TierChoice, TierRule, choose, parse_rule

TIERS = (Tier(model="small"), Tier(model="middle"), Tier(model="large"))
RULE = TierRule(tiers=TIERS, holdout=0.0, marks=True)


def asked(text: str = "What is a bird?", rule: TierRule = RULE, **body: Any) -> TierChoice:
    request = JobRequest(
        url="/v1/chat/completions",
        body={"model": "auto", "messages": [{"role": "user", "content": text}], **body},
    )
    choice = choose(rule, request, tenant="acme", job_id="job_1")
    assert choice is not None
    return choice


def test_a_short_plain_question_goes_to_the_cheapest() -> None:
    assert asked() == TierChoice(model="small", reason="short and plain", rules=("plain",))


SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}


@pytest.mark.parametrize(
    ("text", "body", "rule", "reason"),
    [
        ("word " * 151, {}, "words", "151 words"),
        ("?", {"max_tokens": 4000}, "answer_tokens", "up to 4000 tokens asked for"),
        ("?", {"tools": [{"type": "function"}]}, "tools", "tools"),
        ("?", {"response_format": SCHEMA}, "format", "a schema"),
        ("Why does this fail: def f(x): return x()", {}, "code", "code"),
        ("```\nls\n```", {}, "code", "code"),
        ("Solve 3x + 4 = 5 * 7", {}, "maths", "mathematics"),
        (r"Simplify \frac{a}{b}", {}, "maths", "mathematics"),
    ],
    ids=["long", "much", "tools", "schema", "code", "fence", "maths", "latex"],
)
def test_one_thing_asks_for_one_tier_more_and_is_named(
    text: str, body: dict[str, Any], rule: str, reason: str
) -> None:
    assert asked(text, **body) == TierChoice(model="middle", reason=reason, rules=(rule,))
    assert rule in TIER_RULES


def test_several_things_ask_for_the_best() -> None:
    choice = asked("word " * 200 + "3 + 4 = 7", tools=[{"type": "function"}])

    assert choice.model == "large"
    assert "tools" in choice.reason


@pytest.mark.parametrize(("effort", "model"), [("low", "small"), ("high", "large")])
def test_the_callers_effort_is_heeded_before_the_rule(effort: str, model: str) -> None:
    choice = asked("word " * 500, reasoning_effort=effort)

    assert choice == TierChoice(
        model=model, reason=f"reasoning effort is {effort}", rules=("effort",)
    )


@pytest.mark.parametrize(
    "text",
    ["A 3-day trip to Rome", "Is C# a class of notes?", "Give me $5 off", "1999-2004", "open 24/7"],
)
def test_ordinary_text_has_no_marks(text: str) -> None:
    assert asked(text).model == "small"


def test_a_rule_may_only_choose_what_the_tenant_may_use() -> None:
    tiers = (Tier(model="small"), Tier(model="large", tenants=frozenset({"other"})))

    assert asked("word " * 500, TierRule(tiers=tiers, holdout=0)).model == "small"


def test_a_tenant_without_any_tier_gets_none() -> None:
    rule = TierRule(tiers=(Tier(model="large", tenants=frozenset({"other"})),))
    request = JobRequest(url="/v1/completions", body={"prompt": "?"})

    assert choose(rule, request, tenant="acme", job_id="job_1") is None


def test_the_holdout_is_a_share_of_jobs_and_the_same_job_always_gets_the_same() -> None:
    rule = TierRule(tiers=TIERS)
    request = JobRequest(url="/v1/completions", body={"prompt": "?"})
    ids = [f"job_{number}" for number in range(5000)]
    first = [choose(rule, request, tenant="t", job_id=each) for each in ids]

    assert first == [choose(rule, request, tenant="t", job_id=each) for each in ids]
    held_out = sum(1 for each in first if each and each.reason == "holdout")
    assert 60 <= held_out <= 140


def test_a_job_of_the_holdout_says_what_the_rule_would_have_chosen() -> None:
    rule = TierRule(tiers=TIERS, holdout=1.0)
    request = JobRequest(url="/v1/completions", body={"prompt": "?"})
    choice = choose(rule, request, tenant="t", job_id="job_1")

    assert choice is not None
    assert (choice.model, choice.reason, choice.instead_of) == ("large", "holdout", "small")


@pytest.mark.parametrize("effort", [None, "low", "high"])
@pytest.mark.parametrize("holdout", [0.0, 1.0])
def test_no_rule_chooses_a_model_that_the_key_may_not_use(
    effort: str | None, holdout: float
) -> None:
    rule = TierRule(tiers=TIERS, holdout=holdout)
    body = {"prompt": "word " * 900, "reasoning_effort": effort, "tools": [{}]}
    request = JobRequest(url="/v1/completions", body=body)

    def may_use(model: str) -> bool:
        return model == "middle"

    choice = choose(rule, request, tenant="t", job_id="job_1", may_use=may_use)

    assert choice is not None
    assert choice.model == "middle"


def test_images_in_a_message_are_no_words() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "a b"}]
    request = JobRequest(
        url="/v1/chat/completions", body={"messages": [{"role": "user", "content": parts}]}
    )

    choice = choose(RULE, request, tenant="t", job_id="job_1")

    assert choice is not None
    assert choice.model == "small"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "tiers"),
        ({"tiers": "small"}, "tiers"),
        ({"tiers": [{"name": "x"}]}, "tiers[0]"),
        ({"tiers": [{"model": "x", "tenants": "all"}]}, "tiers[0].tenants"),
        ({"tiers": ["x"], "words": -1}, "words"),
        ({"tiers": ["x"], "holdout": 2}, "holdout"),
        ({"tiers": ["x"], "marks": 1}, "marks"),
        ({"tiers": ["x"], "colour": 1}, "colour"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_rule(settings)

    assert refused.value.field == field

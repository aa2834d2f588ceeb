"""The steps that a request's `moderation` adds to a plan."""

import pytest

from eventing.errors import InvalidJob
from eventing.job.job import JobRequest
from eventing.job.moderation.inline import inline_names, inline_steps, moderation_of
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.plan import Hold, Plan, PlannedStep, StepRecord, StepStatus

RULES = [{"words": ["duel"]}]
PIPELINES = parse_pipelines(
    {
        "judge": {"steps": [{"step": "moderate", "settings": {"inline": True, "rules": RULES}}]},
        "closed": {"steps": [{"step": "moderate", "settings": {"rules": RULES}}]},
        "support": {
            "steps": [
                {"step": "moderate-input", "settings": {"mode": "block", "rules": RULES}},
                {"step": "route", "settings": {"tiers": ["small"]}},
                {"step": "validate-output", "settings": {"mode": "block", "rules": RULES}},
                "ground",
            ]
        },
    }
)


def request(moderation: object, url: str = "/v1/chat/completions") -> JobRequest:
    return JobRequest(url=url, body={"model": "support", "moderation": moderation})


def test_a_request_can_not_weaken_what_its_models_plan_checks() -> None:
    scored = {side: {"mode": "score"} for side in ("input", "output")}
    plan = PIPELINES["support"]
    for step in inline_steps(request({"model": "judge", "policy": scored}), PIPELINES):
        plan = plan.with_step(step)

    assert plan.names == (
        *("moderate-input", "moderation-input", "route"),
        *("validate-output", "moderation-output", "ground"),
    )
    for name in ("moderate-input", "validate-output"):
        assert plan.step(name) == PIPELINES["support"].step(name)
    assert plan.hold is Hold.WHOLE


def test_an_answer_is_held_back_where_the_request_wants_it_blocked() -> None:
    steps = inline_steps(
        request({"model": "judge", "policy": {"output": {"mode": "block"}}}), PIPELINES
    )

    assert Plan(steps=steps).hold is Hold.WHOLE
    assert Plan(steps=inline_steps(request({"model": "judge"}), PIPELINES)).hold is Hold.NONE


@pytest.mark.parametrize("model", ["closed", "support", "nobody"])
def test_only_a_model_that_allows_it_judges_requests_of_others(model: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        inline_steps(request({"model": model}), PIPELINES)
    assert refused.value.field == "body.moderation.model"


def test_other_calls_and_requests_without_it_add_nothing() -> None:
    assert inline_steps(request(None), PIPELINES) == ()
    assert inline_steps(request({"model": "judge"}, "/v1/embeddings"), PIPELINES) == ()
    assert inline_names({}) == ()
    assert inline_names(PIPELINES) == ("moderation-input", "moderation-output")


def test_a_side_that_was_not_judged_is_an_error() -> None:
    said = {"type": "moderation_results", "model": "judge", "results": []}
    record = StepRecord(
        step="moderation-input", status=StepStatus.COMPLETED, detail={"moderation": said}
    )

    found = moderation_of([record])
    assert found is not None
    assert found["input"] == said
    assert (found["output"]["type"], found["output"]["code"]) == ("error", "not_judged")
    assert moderation_of([StepRecord(step="route")]) is None
    assert PlannedStep(name="moderation-output").is_after

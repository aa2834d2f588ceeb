"""Requests that are judged by rules before anything is woken for them."""

from dataclasses import replace
from typing import Any

import pytest

from eventing.clock import SystemClock
from eventing.errors import BadRequest
from eventing.job.job import Job, JobId, JobRequest, JobState
from steps.handler import Continue, Refuse, StepCall, StepOutcome
from steps.validation.model_client import ModelClient
from steps.validation.moderate_input import ModerateInput, parse_input_rule
from steps.validation.rule_check import check_rules
from steps.validation.step import parse_rule

GUARDS = ModelClient(SystemClock())  # asks none here
SETTINGS = {"rules": [{"words": ["torpor"], "category": "illicit"}, {"personal_data": ["card"]}]}


async def judged(body: dict[str, Any], **more: Any) -> StepOutcome:
    request = JobRequest(url="/v1/chat/completions", body=body)
    job = Job(id=JobId("job_1"), state=JobState.QUEUED, request=request)
    settings = {**SETTINGS, **more}
    call = StepCall(job=job, request=request, settings=settings, attempt=1, deadline_ms=0)
    return await ModerateInput(GUARDS)(call)


async def test_a_request_with_a_forbidden_word_is_refused_by_the_words_category() -> None:
    outcome = await judged({"messages": [{"role": "user", "content": "what is Torpor?"}]})

    assert isinstance(outcome, Refuse)
    assert (outcome.error.code, outcome.error.field) == ("content_filter", "body.messages")
    assert "illicit" in outcome.error.message
    assert "torpor" not in outcome.error.message.lower()


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "my card is 4111 1111 1111 1111"},
        {"messages": [{"content": [{"type": "text", "text": "4111-1111-1111-1111"}]}]},
        {"messages": [{"tool_calls": [{"function": {"arguments": '{"q": "torpor"}'}}]}]},
        {"input": [["harmless"], "torpor"]},
        {"messages": [{"tool_calls": [{"function": {"arguments": '{"q": "\\u0074orpor"}'}}]}]},
        {"prompt": [1, 2, 3]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": "torpor"}}]},
        {"messages": [{"content": "data: torpor"}]},
    ],
    ids=["prompt", "part", "tool call", "nested", "escaped", "token ids", "tool", "data"],
)
async def test_every_text_that_the_model_would_read_is_judged(body: dict[str, Any]) -> None:
    assert isinstance(await judged(body), Refuse)


async def test_with_score_the_job_goes_on_and_says_what_was_found() -> None:
    body = {"messages": [{"role": "user", "content": "torpor"}]}

    outcome = await judged(body, mode="score")

    assert isinstance(outcome, Continue)
    assert outcome.detail == {"flagged": True, "categories": ["illicit"]}


async def test_a_harmless_request_goes_on() -> None:
    outcome = await judged({"messages": [{"role": "user", "content": "hello"}]})

    assert isinstance(outcome, Continue)
    assert outcome.detail == {"flagged": False}


async def test_a_text_of_brackets_without_end_is_judged_as_it_is() -> None:
    brackets = "[" * 100_000

    assert isinstance(await judged({"prompt": brackets}), Continue)
    assert isinstance(await judged({"prompt": brackets + " torpor"}), Refuse)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "rules"),
        ({"rules": []}, "rules"),
        ({"rules": [{"regex": "("}]}, "rules[0].regex"),
        ({**SETTINGS, "mode": "warn"}, "mode"),
        ({**SETTINGS, "hold": "window"}, "hold"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_input_rule(settings)

    assert refused.value.field == field


@pytest.mark.parametrize(
    "settings",
    [
        {"hold": "window"},
        {"hold": "window", "mode": "block"},
        {"hold": "window", **SETTINGS},
        {"hold": "window", "mode": "block", "format": {"max_characters": 5}, **SETTINGS},
        {"hold": "window", "mode": "block", "repairs": 1, **SETTINGS},
        {"hold": "some", "mode": "block", **SETTINGS},
    ],
)
def test_only_rules_that_block_judge_by_windows(settings: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_rule(settings)

    assert refused.value.field == "hold"


def test_rules_that_block_may_judge_by_windows() -> None:
    assert parse_rule({"hold": "window", "mode": "block", **SETTINGS}).mode == "block"


@pytest.mark.parametrize(
    ("text", "is_found"), [("data: an ass", True), ("assisting", False)], ids=["data", "word"]
)
async def test_an_answers_text_is_judged_whole_whatever_it_begins_with(
    text: str, is_found: bool
) -> None:
    request = JobRequest(url="/v1/chat/completions", body={})
    job = Job(id=JobId("job_1"), state=JobState.IN_PROGRESS, request=request)
    tokens = [{"token": "ass"}, {"token": "isting"}]
    choice = {"message": {"content": text}, "logprobs": {"content": tokens}}
    settings = {"mode": "block", "rules": [{"words": ["ass"]}]}
    call = StepCall(job=job, request=request, settings=settings, attempt=1, deadline_ms=0)

    verdict = await check_rules(replace(call, candidate={"choices": [choice]}))

    assert bool(verdict.problems) is is_found


async def test_a_data_url_of_an_image_is_no_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,torpor"}}

    assert isinstance(await judged({"messages": [{"content": [image]}]}), Continue)

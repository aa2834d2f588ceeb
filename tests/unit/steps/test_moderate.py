"""The step that answers moderations, against OpenAI's own types."""

from typing import Any

import pytest
from openai.types import ModerationCreateResponse

from eventing.clock import SystemClock
from eventing.errors import BadRequest
from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.job.moderation.categories import CATEGORIES
from steps.handler import Answer, Refuse, StepCall, StepOutcome
from steps.validation.model_client import ModelClient
from steps.validation.moderate import Moderate, Moderator, parse_moderation

GUARDS = ModelClient(SystemClock())  # asks none here
RULES = [
    {"words": ["torpor"], "category": "illicit"},
    {"personal_data": ["card"]},
    {"words": ["duel"], "category": "violence"},
]


async def judged(given: Any, url: str = "/v1/moderations") -> StepOutcome:
    request = JobRequest(url=url, body={"model": "judge", "input": given})
    job = Job(id=JobId("job_1"), state=JobState.QUEUED, request=request)
    settings = {"rules": RULES}
    return await Moderate(Moderator(GUARDS))(
        StepCall(job=job, request=request, settings=settings, attempt=1, deadline_ms=0)
    )


def results(outcome: StepOutcome) -> list[dict[str, Any]]:
    assert isinstance(outcome, Answer)
    ModerationCreateResponse.model_validate({"id": "modr-1", **outcome.result})
    found: list[dict[str, Any]] = outcome.result["results"]
    return found


async def test_each_text_has_a_result_with_all_of_openais_categories() -> None:
    first, second = results(await judged(["what is Torpor?", "hello"]))

    assert (first["flagged"], second["flagged"]) == (True, False)
    assert set(CATEGORIES) <= set(first["categories"])
    assert [name for name, is_found in first["categories"].items() if is_found] == ["illicit"]
    assert first["category_scores"]["illicit"] == 1.0
    assert first["category_scores"]["violence"] == 0.0
    assert second["category_applied_input_types"]["violence"] == ["text"]
    assert second["category_applied_input_types"]["hate"] == []  # no rule looks for it


async def test_a_category_that_openai_does_not_have_stands_beside_its_own() -> None:
    (found,) = results(await judged("4111 1111 1111 1111"))

    assert found["flagged"]
    assert found["categories"]["pii"]


async def test_the_parts_of_an_input_are_judged_as_one() -> None:
    parts = [{"type": "text", "text": "a duel"}, {"type": "text", "text": "about torpor"}]
    (found,) = results(await judged(parts))

    assert {name for name, flag in found["categories"].items() if flag} == {"illicit", "violence"}


async def test_an_image_is_refused_by_its_place() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}
    outcome = await judged([{"type": "text", "text": "a"}, image])

    assert isinstance(outcome, Refuse)
    assert outcome.error.field == "body.input[1]"


async def test_another_call_is_refused() -> None:
    assert isinstance(await judged("hi", "/v1/embeddings"), Refuse)


@pytest.mark.parametrize("settings", [{}, {"rules": []}, {"mode": "block", "rules": RULES}])
def test_settings_without_a_rule_or_of_another_step_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        parse_moderation(settings)

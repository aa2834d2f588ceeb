"""Steps after the predictor in a whole stack: a wrong answer is asked again, goes one model up, and is never shown."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.stack import LocalStack, planned_stack

PIPELINES = """
checked:
  steps:
    - step: route
      settings: {tiers: [small], holdout: 0}
    - step: validate-output
      settings: {mode: block, repairs: 1, cascade: [large]}
scored:
  steps:
    - step: route
      settings: {tiers: [small], holdout: 0}
    - step: validate-output
"""
JSON = {"response_format": {"type": "json_object"}}  # the seeded engine writes words


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    models = ("--model", "small=seeded", "--model", "large=seeded")
    folder = tmp_path_factory.mktemp("validation")
    with planned_stack(folder, PIPELINES, *models) as made:
        yield made


def body(model: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": model, "messages": messages, "max_tokens": 8, **more}


def submit(stack: LocalStack, model: str, **more: Any) -> str:
    line = {"url": "/v1/chat/completions", "body": body(model, **more)}
    answer = httpx.post(stack.addresses["api"] + "/v1/jobs", json=line)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def events(stack: LocalStack, job_id: str) -> list[tuple[str, Any]]:
    """Every event of the job until its end."""
    url = f"{stack.addresses['api']}/v1/jobs/{job_id}/events"
    text = httpx.get(url, headers={"accept": "text/event-stream"}, timeout=120).text
    blocks = [
        dict(line.partition(": ")[::2] for line in b.splitlines()) for b in text.split("\n\n")
    ]
    return [(each["event"], json.loads(each["data"])) for each in blocks if each.get("event")]


def test_a_valid_answer_is_shown_once_it_was_judged(stack: LocalStack) -> None:
    job_id = submit(stack, "checked")
    told = events(stack, job_id)
    job = stack.job(job_id, wait_s=50)

    assert (job["state"], job["attempt"]) == ("completed", 1)
    assert job["pipeline"][1]["detail"] == {"valid": True}
    names = [name for name, _ in told]
    judged = told.index(("state", {"state": "in_progress", "attempt": 1, "phase": "validating"}))
    assert judged < names.index("tokens")  # nothing before the verdict
    text = "".join(
        choice["delta"].get("content") or ""
        for name, data in told
        if name == "tokens"
        for choice in data["delta"]
    )
    assert text == job["result"]["choices"][0]["message"]["content"]


def test_an_answer_that_stays_wrong_goes_one_model_up_and_is_withheld_from_every_view(
    stack: LocalStack,
) -> None:
    job_id = submit(stack, "checked", **JSON)
    told = events(stack, job_id)
    job = stack.job(job_id, wait_s=50)

    assert (job["state"], job["incomplete_reason"]) == ("incomplete", "content_filter")
    assert [each["outcome"] for each in job["attempts"]] == ["rejected", "rejected", "completed"]
    assert job["routing"]["answered"] == "large"
    assert job["routing"]["reason"] == "2 answers were not valid"
    (choice,) = job["result"]["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("content_filter", "")
    assert job["usage"]["completion_tokens"] > 8  # all three were made
    assert "tokens" not in [name for name, _ in told]
    api = stack.addresses["api"]
    assert httpx.get(f"{api}/v1/jobs/{job_id}/result").json()["choices"] == [choice]
    again = events(stack, job_id)  # from the start, after the end
    assert "tokens" not in [name for name, _ in again]


def test_a_chat_stream_ends_with_content_filter_and_without_text(stack: LocalStack) -> None:
    api = stack.addresses["api"]
    asked = body("checked", stream=True, **JSON)
    lines = httpx.post(f"{api}/v1/chat/completions", json=asked, timeout=120).text.splitlines()

    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices] == ["content_filter"]
    assert not any(choice["delta"].get("content") for choice in choices)
    assert lines[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in lines


def test_a_response_says_what_cut_it_short(stack: LocalStack) -> None:
    api = stack.addresses["api"]
    asked = {"model": "checked", "input": "hello", "max_output_tokens": 8}
    asked |= {"text": {"format": {"type": "json_object"}}}
    answer = httpx.post(f"{api}/v1/responses", json=asked, timeout=120).json()

    assert (answer["status"], answer["incomplete_details"]) == (
        "incomplete",
        {"reason": "content_filter"},
    )
    assert "output_text" not in json.dumps(answer["output"]) or not any(
        part["text"] for item in answer["output"] for part in item.get("content", [])
    )


def test_a_plan_that_only_scores_shows_tokens_at_once_and_its_verdict_at_the_end(
    stack: LocalStack,
) -> None:
    job_id = submit(stack, "scored", **JSON)
    told = events(stack, job_id)
    job = stack.job(job_id, wait_s=50)

    names = [name for name, _ in told]
    judged = told.index(("state", {"state": "in_progress", "attempt": 1, "phase": "validating"}))
    assert names.index("tokens") < judged
    assert job["state"] == "completed"
    assert job["pipeline"][1]["detail"] == {"valid": False, "failed": ["format"]}
    assert job["result"]["choices"][0]["message"]["content"]

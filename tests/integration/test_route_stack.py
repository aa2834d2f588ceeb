"""A public name over two models in a whole stack: only the model that is chosen wakes, and the answer says which."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.stack import LocalStack, planned_stack

PIPELINES = """
auto:
  steps:
    - step: route
      settings: {tiers: [small, large], words: 20, holdout: 0}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    models = ("--model", "small=seeded", "--model", "large=seeded")
    folder = tmp_path_factory.mktemp("route")
    with planned_stack(folder, PIPELINES, *models) as made:
        yield made


def ask(stack: LocalStack, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer to a chat call, and its job."""
    api = stack.addresses["api"]
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    answer = httpx.post(f"{api}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    job = httpx.get(f"{api}/v1/jobs/{answer.headers['torpor-job-id']}", timeout=120)
    return answer.json(), job.json()


def test_a_short_question_wakes_the_small_model_only(stack: LocalStack) -> None:
    answer, job = ask(stack, "What is a bird?")

    awake = {m["model"] for m in stack.status()["models"] if m["replicas"]["list"]}
    assert answer["model"] == "small"
    assert job["model"] == "auto"
    assert job["routing"] == {"asked": "auto", "answered": "small", "reason": "short and plain"}
    assert awake == {"small"}


def test_a_long_one_goes_to_the_large_model_and_says_why(stack: LocalStack) -> None:
    answer, job = ask(stack, "word " * 30)

    assert answer["model"] == "large"
    assert job["routing"]["reason"] == "30 words"


def test_a_stream_names_the_model_that_answers(stack: LocalStack) -> None:
    api = stack.addresses["api"]
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    lines = httpx.post(f"{api}/v1/chat/completions", json=body, timeout=120).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    assert {chunk["model"] for chunk in chunks if chunk["choices"]} == {"small"}


def test_the_public_name_is_listed_as_a_model(stack: LocalStack) -> None:
    listed = httpx.get(stack.addresses["api"] + "/v1/models", timeout=120).json()["data"]

    assert {model["id"] for model in listed} == {"small", "large", "auto"}

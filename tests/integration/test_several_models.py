"""Two models in one stack: each wakes for its own jobs, and sleeps again by itself."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.stack import LocalStack

pytestmark = pytest.mark.timeout(90)  # two cold starts


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    flags = ("--model", "left=seeded", "--model", "right/one=seeded", "--window", "6s")
    made = LocalStack(tmp_path_factory.mktemp("two") / "data", *flags).start()
    yield made
    made.stop()


def submit(stack: LocalStack, model: str) -> str:
    line = {"url": "/v1/completions", "body": {"model": model, "prompt": "hello"}}
    answer = httpx.post(stack.addresses["api"] + "/v1/jobs", json=line)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def by_model(stack: LocalStack) -> dict[str, dict[str, Any]]:
    return {each["model"]: each for each in stack.status()["models"]}


def test_each_model_wakes_for_its_own_jobs_and_sleeps_again(stack: LocalStack) -> None:
    listed = httpx.get(stack.addresses["api"] + "/v1/models").json()["data"]
    assert {model["id"] for model in listed} == {"left", "right/one"}

    job = stack.job(submit(stack, "right/one"), wait_s=20)

    assert (job["state"], job["result"]["model"]) == ("completed", "right/one")
    assert by_model(stack)["right/one"]["replicas"]["ready"] == 1
    assert by_model(stack)["left"]["replicas"]["list"] == []

    assert stack.job(submit(stack, "left"), wait_s=20)["state"] == "completed"
    stack.until(lambda: not any(m["replicas"]["list"] for m in by_model(stack).values()))


def test_an_unknown_model_is_refused_and_the_others_are_named(stack: LocalStack) -> None:
    line = {"url": "/v1/completions", "body": {"model": "other", "prompt": "hello"}}

    answer = httpx.post(stack.addresses["api"] + "/v1/jobs", json=line)

    assert answer.status_code in (404, 422)
    assert "left" in answer.json()["detail"]

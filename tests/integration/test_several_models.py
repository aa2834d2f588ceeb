"""Two models in one stack: each wakes for its own jobs, and sleeps again by itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.stack import LocalStack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    flags = ("--model", "left=seeded", "--model", "right/one=seeded", "--window", "6s")
    made = LocalStack(tmp_path_factory.mktemp("two") / "data", *flags).start()
    yield made
    made.stop()


def submit(stack: LocalStack, model: str, **body: int) -> str:
    line = {"url": "/v1/completions", "body": {"model": model, "prompt": "hello", **body}}
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


@pytest.fixture
def one_place(tmp_path: Path) -> Iterator[LocalStack]:
    flags = ("--model", "left=seeded", "--model", "right=seeded", "--window", "6s")
    slow = {"TORPOR_SEEDED_TOKENS_PER_S": "3"}
    made = LocalStack(tmp_path / "data", *flags, "--most-running", "1", env=slow).start()
    yield made
    made.stop()


def test_models_that_share_one_place_take_turns_and_a_long_job_goes_on_after_its_own(
    one_place: LocalStack,
) -> None:
    seen: list[int] = []

    def running() -> dict[str, list[str]]:
        found = {
            name: [each["state"] for each in model["replicas"]["list"]]
            for name, model in by_model(one_place).items()
        }
        seen.append(sum(len(states) for states in found.values()))
        return found

    long = submit(one_place, "left")  # 72 tokens: 24 s of work
    one_place.until(lambda: running()["left"] == ["ready"])
    short = submit(one_place, "right", max_tokens=2)

    one_place.until(lambda: bool(running()) and one_place.job(short)["state"] == "completed")
    assert one_place.job(long)["state"] in ("queued", "in_progress")
    one_place.until(lambda: bool(running()) and one_place.job(long)["attempt"] == 2)
    one_place.until(lambda: one_place.job(long)["token_count"] > 0)
    assert by_model(one_place)["right"]["replicas"]["list"] == []
    assert max(seen) == 1

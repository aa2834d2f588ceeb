"""Jobs that pass through steps before their predictor, in a whole stack: `torpor up --pipelines-file`."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.stack import TORPOR, LocalStack, planned_stack

PIPELINES = """
planned:
  steps:
    - step: no-op
      settings: {detail: {seen: 1}}
      skippable: true
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    flags = ("--model", "planned=seeded", "--model", "plain=seeded", "--window", "6s")
    flags += ("--min-replicas", "1")  # only the steps start from zero
    folder = tmp_path_factory.mktemp("steps")
    with planned_stack(folder, PIPELINES, *flags) as made:
        yield made


def submit(stack: LocalStack, model: str = "planned", **more: Any) -> str:
    line = {"url": "/v1/completions", "body": {"model": model, "prompt": "hello", "max_tokens": 4}}
    answer = httpx.post(stack.addresses["api"] + "/v1/jobs", json=line | more)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def steps_of(stack: LocalStack) -> dict[str, Any]:
    found: dict[str, Any] = stack.status()["steps"]["replicas"]
    return found


def test_a_job_passes_its_step_and_the_process_sleeps_before_and_after(stack: LocalStack) -> None:
    stack.until(lambda: not steps_of(stack)["list"])

    job = stack.job(submit(stack), wait_s=50, include="timeline")

    assert (job["state"], job["attempt"]) == ("completed", 1)
    (step,) = job["pipeline"]
    assert (step["step"], step["status"], step["attempts"]) == ("no-op", "completed", 1)
    assert step["detail"] == {"seen": 1}
    assert job["created_ms"] <= step["started_ms"] <= step["ended_ms"] <= job["started_ms"]
    told = [each for each in job["timeline"]["steps"] if each["step"] == "step"]
    assert [(each["name"], each["outcome"]) for each in told] == [("no-op", "completed")]
    stack.until(lambda: not steps_of(stack)["list"])


def test_a_model_without_a_plan_wakes_no_step(stack: LocalStack) -> None:
    stack.until(lambda: not steps_of(stack)["list"])

    job = stack.job(submit(stack, "plain"), wait_s=50)

    assert job["state"] == "completed"
    assert "pipeline" not in job
    assert steps_of(stack)["list"] == []


def test_a_step_that_is_left_out_is_not_woken(stack: LocalStack) -> None:
    stack.until(lambda: not steps_of(stack)["list"])

    job = stack.job(submit(stack, skip_steps=["no-op"]), wait_s=50)

    assert (job["state"], job["pipeline"]) == ("completed", [])
    assert steps_of(stack)["list"] == []


def test_a_step_that_may_not_be_left_out_is_named(stack: LocalStack) -> None:
    for model in ("planned", "plain"):
        line = {"url": "/v1/completions", "body": {"model": model, "prompt": "hi"}}

        answer = httpx.post(
            stack.addresses["api"] + "/v1/jobs",
            json=line,
            headers={"torpor-skip-steps": "retrieve"},
        )

        assert answer.status_code == 422
        assert "'retrieve' can not be left out" in answer.json()["detail"]


def test_readers_are_told_of_each_step(stack: LocalStack) -> None:
    job_id = submit(stack)
    stack.job(job_id, wait_s=50)

    shown = subprocess.run(
        [TORPOR, "watch", "--json", job_id, "--data-dir", str(stack.folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )

    events = [json.loads(line) for line in shown.stdout.splitlines()]
    steps = [each["data"] for each in events if each["event"] == "step"]
    assert [(each["name"], each["status"]) for each in steps] == [
        ("no-op", "in_progress"),
        ("no-op", "completed"),
    ]
    assert steps[0]["ms"] is None
    assert events[-1]["data"]["pipeline"][0]["status"] == "completed"


def test_a_foreign_producers_event_gets_the_plan_of_its_model(stack: LocalStack) -> None:
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "order-8",
        "ce-source": "/shop",
        "ce-type": "dev.torpor.inference.requested.v1",
        "ce-model": "planned",
        "content-type": "application/json",
    }
    line = {"url": "/v1/completions", "body": {"model": "planned", "prompt": "hi", "max_tokens": 2}}

    for _ in range(2):  # the second is a duplicate
        taken = httpx.post(stack.addresses["broker"] + "/", json=line, headers=headers)
        assert taken.status_code == 202

    job = stack.job(taken.json()["id"], wait_s=50)
    assert (job["state"], job["attempt"]) == ("completed", 1)
    assert [each["status"] for each in job["pipeline"]] == ["completed"]


def test_a_pipelines_file_that_can_not_be_meant_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipelines.yaml").write_text("m: {step: no-op}")

    ended = subprocess.run(
        [TORPOR, "up", "--pipelines", str(tmp_path / "pipelines.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )

    assert ended.returncode == 2
    assert "m.step is not supported" in ended.stderr

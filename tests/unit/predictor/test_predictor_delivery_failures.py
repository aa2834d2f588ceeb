"""Requests that are refused, fail, or are ended before they are done."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventing.clock import SystemClock
from eventing.cloudevent.job_event import job_of
from eventing.cloudevent.result_event import FAILED
from eventing.errors import BadRequest
from eventing.job.job import API_SOURCE, JobState
from predictor.delivery.answer import Ended
from predictor.delivery.settlement import Settlement
from predictor.engine.engine import DecodeStep, EngineRequest
from predictor.engine.seeded_engine import SeededEngine
from predictor.generation.generation import Attempt, EngineFailed
from tests.unit.predictor.harness import (
    LONG,
    asking,
    data_of,
    event_of,
    job_id_of,
    open_harness,
)


async def test_what_is_no_event_is_refused() -> None:
    async with open_harness() as harness:
        answer = await harness.deliveries.handle({"content-type": "application/json"}, b"{}")

        assert answer.status == 400


@pytest.mark.parametrize(
    ("data", "field"),
    [
        pytest.param(b"no json", "data", id="not-json"),
        pytest.param({"url": "/v1/images", "body": {}}, "url", id="unknown-url"),
        pytest.param({"url": "/v1/completions", "body": {"prompt": "x"}}, "body.model", id="model"),
    ],
)
async def test_an_invalid_job_is_recorded_as_failed_with_a_dead_letter(
    data: object, field: str
) -> None:
    async with open_harness() as harness:
        event = event_of(data)
        answer = await harness.deliver(event)

        assert (answer.status, answer.event) == (202, None)
        job = await harness.store.get(job_id_of(event))
        assert job is not None
        assert job.is_dead_letter
        assert job.error is not None
        assert job.error.field == field


async def test_without_a_shared_store_an_invalid_job_is_reported_in_the_reply() -> None:
    async with open_harness(is_store_shared=False) as harness:
        answer = await harness.deliver(event_of(b"no json"))

        assert answer.status == 200
        assert answer.event is not None
        assert answer.event.type == FAILED


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({"model": "other"}, "model", id="a-model-of-somebody-else"),
        pytest.param({"seeded": {"heat": 1}}, "seeded", id="refused-fields"),
        pytest.param({"text": "word " * 5000}, "messages", id="longer-than-the-context"),
    ],
)
async def test_a_request_that_the_engine_can_never_serve_is_a_dead_letter_naming_the_field(
    body: dict[str, Any], field: str
) -> None:
    async with open_harness() as harness:
        answer = await harness.deliver(asking(**body))

        assert answer.status == 200
        assert data_of(answer)["state"] == JobState.FAILED
        assert data_of(answer)["error"]["field"] == field
        job = await harness.store.get(job_id_of(asking()))
        assert job is not None
        assert job.is_dead_letter


@pytest.mark.parametrize("body", [{"model": "other"}, {"seeded": {"heat": 1}}])
async def test_a_refused_job_of_our_api_is_no_dead_letter(
    body: dict[str, Any],
) -> None:
    """The caller has his 400; an operator need not look at it, nor be alerted."""
    async with open_harness(is_store_shared=False) as harness:
        event = replace(asking(**body), source=API_SOURCE)
        answer = await harness.deliver(event)

        job = await harness.store.get(job_id_of(event))
        assert job is not None
        assert (job.state, job.is_dead_letter) == (JobState.FAILED, False)
        assert data_of(answer)["error"]["field"] in body


async def test_a_job_past_its_deadline_is_failed_without_a_run() -> None:
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async with open_harness() as harness:
        answer = await harness.deliver(asking(extensions={"expirytime": past}))

        assert data_of(answer)["error"]["code"] == "expired"
        assert data_of(answer)["attempts"] == []


async def test_a_deadline_ends_a_running_job() -> None:
    soon = (datetime.now(UTC) + timedelta(milliseconds=300)).isoformat()
    async with open_harness() as harness:
        event = asking(seeded=LONG, extensions={"expirytime": soon})
        answer = await harness.deliver(event)

        assert data_of(answer)["error"]["code"] == "expired"
        assert harness.engine.running == frozenset()


async def test_a_cancelled_job_frees_its_slot_and_is_answered_as_cancelled() -> None:
    async with open_harness() as harness:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(harness.deliver(event))
        await harness.wait_tokens(event, 1)
        await harness.store.cancel(job_id_of(event))
        answer = await asyncio.wait_for(running, 10)

        assert data_of(answer)["state"] == JobState.CANCELLED
        assert harness.engine.running == frozenset()


async def test_a_request_that_the_engine_fails_is_tried_again_and_then_set_aside() -> None:
    async with open_harness(max_attempts=2) as harness:
        event = asking(seeded={"fail_at": 3})
        first = await harness.deliver(event)
        second = await harness.deliver(event)

        assert first.status == 500
        assert data_of(second)["error"]["code"] == "engine_request_failed"
        assert [a["outcome"] for a in data_of(second)["attempts"]] == ["failure", "failure"]


async def test_a_stalled_request_is_aborted_and_counted() -> None:
    async with open_harness(stall_s=0.1, max_attempts=1) as harness:
        answer = await harness.deliver(asking(seeded={"stall_at": 3}))

        assert data_of(answer)["error"]["code"] == "stalled"
        assert harness.engine.running == frozenset()


async def test_an_invalid_event_cannot_end_a_job_that_has_its_identity() -> None:
    async with open_harness() as harness:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(harness.deliver(event))
        await harness.wait_tokens(event, 1)
        answer = await harness.deliver(event_of(b"no json"))
        job = await harness.store.get(job_id_of(event))
        running.cancel()

        assert (answer.status, answer.event) == (202, None)
        assert job is not None
        assert job.state is JobState.IN_PROGRESS


@pytest.mark.parametrize("is_reported_to_caller", [False, True])
async def test_an_error_found_during_the_run_is_a_dead_letter_unless_its_caller_gets_it(
    is_reported_to_caller: bool,
) -> None:
    async with open_harness() as harness:
        await harness.store.submit(job_of(asking()))
        taken = await harness.store.acquire(job_id_of(asking()), "p", can_resume=True)
        attempt = Attempt(
            lease=taken.lease,
            acquired_s=0,
            token_count=0,
            can_resume=True,
            is_reported_to_caller=is_reported_to_caller,
        )
        settlement = Settlement(harness.store, SystemClock(), lease_s=30)
        fault = EngineFailed(BadRequest("longer than the context", "messages"))
        outcome, _ = await settlement.settle(attempt, fault, new_tokens=0)

        assert outcome == Ended(taken.lease.job_id)
        job = await harness.store.get(taken.lease.job_id)
        assert job is not None
        assert job.is_dead_letter is not is_reported_to_caller
        assert job.error is not None
        assert job.error.field == "messages"


class BrokenCheck(SeededEngine):
    """An engine with a bug in the check of requests."""

    def validate(self, request: EngineRequest) -> None:
        raise ZeroDivisionError(request.body["messages"][0]["content"])


async def test_a_bug_in_the_check_of_a_request_ends_in_the_dead_letters(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_harness(max_attempts=2, engine_type=BrokenCheck) as harness:
        answers = [await harness.deliver(asking("canary-5d1e")) for _ in range(2)]

        assert answers[0].status == 500
        assert data_of(answers[1])["error"]["code"] == "internal_error"
        assert "canary-5d1e" not in caplog.text + capsys.readouterr().out


class BrokenRun(SeededEngine):
    """An engine with a bug in its running."""

    async def run(
        self, request: EngineRequest, prior_token_ids: Sequence[int]
    ) -> AsyncGenerator[DecodeStep, None]:
        async for step in super().run(request, prior_token_ids):
            yield step
            raise ZeroDivisionError(request.body["messages"][0]["content"])


async def test_a_bug_in_an_attempt_counts_and_gives_the_job_back_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with open_harness(max_attempts=2, engine_type=BrokenRun) as harness:
        answers = [await harness.deliver(asking("canary-8e2f")) for _ in range(2)]

        assert answers[0].status == 500
        assert data_of(answers[1])["error"]["code"] == "internal_error"
        assert [a["outcome"] for a in data_of(answers[1])["attempts"]] == ["failure", "failure"]
        assert "canary-8e2f" not in capsys.readouterr().out


@pytest.mark.parametrize("is_edited", [False, True])
async def test_without_a_shared_store_a_redriven_job_runs_again_under_a_higher_attempt(
    is_edited: bool,
) -> None:
    # Its own memory said that the job had ended: the new life was told the end of the old one, which the api refuses.
    first = asking(text="word " * 5000)
    asked = asking(text="short") if is_edited else first
    redriven = replace(asked, extensions={**asked.extensions, "attempt": "3"})
    async with open_harness(is_store_shared=False) as harness:
        failed = await harness.deliver(first)
        assert data_of(failed)["state"] == JobState.FAILED

        answer = await harness.deliver(redriven)
        late = await harness.deliver(first)

    state = JobState.COMPLETED if is_edited else JobState.FAILED
    assert data_of(answer)["state"] == state
    assert data_of(answer)["attempt"] >= 3
    assert data_of(late) == data_of(answer)
    assert data_of(failed)["attempt"] < 3

"""The life of a delivery, on the test engine and the store in memory."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from eventing.clock import SystemClock
from eventing.errors import BadRequest
from eventing.event import Event
from eventing.job import JobState
from eventing.job_event import COMPLETED, FAILED, job_of, request_event
from eventing.log import stamp
from eventing.store import EntryKind, LeaseSettings, Release
from predictor.answer import Ended
from predictor.engine import EngineRequest, Step
from predictor.generation import Attempt, Broke
from predictor.seeded_engine import SeededEngine
from predictor.settlement import Settlement, release_after_engine_death
from tests.unit.predictor.desk import (
    UnreliableStore,
    asking,
    data_of,
    event_of,
    job_id_of,
    open_desk,
    read_ids,
    read_text,
    text_of,
)

TEN = {"output_tokens": 10}
LONG = {"output_tokens": 2000, "tokens_per_s": 100}


async def test_a_request_is_answered_with_its_result() -> None:
    async with open_desk() as desk:
        answer = await desk.deliver(asking(seeded=TEN))

        assert answer.status == 200
        assert answer.event is not None
        assert answer.event.type == COMPLETED
        assert answer.event.subject == job_id_of(asking())
        assert data_of(answer)["usage"]["completion_tokens"] == 11
        assert len(text_of(answer).split()) == 10


async def test_readers_see_what_the_result_says() -> None:
    async with open_desk(tokens_per_s=200) as desk:
        event = asking(seeded={**TEN, "reasoning_tokens": 4})
        answer = await desk.deliver(event)
        entries = await desk.entries(event)

        message = data_of(answer)["response"]["choices"][0]["message"]
        assert read_text(entries) == message["content"]
        assert read_text(entries, "reasoning_content") == message["reasoning"]
        assert len(read_ids(entries)) == 11


async def test_a_duplicate_of_a_finished_job_is_told_the_same_and_runs_nothing() -> None:
    async with open_desk() as desk:
        event = asking(seeded=TEN)
        first = await desk.deliver(event)
        second = await desk.deliver(event)

        assert second == first
        job = await desk.store.get(job_id_of(event))
        assert job is not None
        assert job.attempt == 1


async def test_a_duplicate_of_a_running_job_is_told_to_come_again() -> None:
    async with open_desk() as desk:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(desk.deliver(event))
        await desk.wait_tokens(event, 1)

        answer = await desk.deliver(event)
        running.cancel()

        assert answer.status == 409
        assert answer.headers["retry-after"] == "5"  # not the 30 s of its lease: it may end sooner


async def test_a_hundred_deliveries_at_once_make_one_run() -> None:
    async with open_desk(max_concurrency=100) as desk:
        event = asking(seeded=TEN)
        answers = await asyncio.gather(*[desk.deliver(event) for _ in range(100)])

        assert sorted({answer.status for answer in answers}) == [200, 409]
        job = await desk.store.get(job_id_of(event))
        assert job is not None
        assert job.attempt == 1


async def test_what_is_no_event_is_refused() -> None:
    async with open_desk() as desk:
        answer = await desk.deliveries.handle({"content-type": "application/json"}, b"{}")

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
    async with open_desk() as desk:
        event = event_of(data)
        answer = await desk.deliver(event)

        assert (answer.status, answer.event) == (202, None)
        job = await desk.store.get(job_id_of(event))
        assert job is not None
        assert job.is_dead_letter
        assert job.error is not None
        assert job.error.field == field


async def test_without_a_shared_store_an_invalid_job_is_told_in_the_reply() -> None:
    async with open_desk(is_store_shared=False) as desk:
        answer = await desk.deliver(event_of(b"no json"))

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
async def test_what_the_engine_can_never_serve_is_a_dead_letter_that_names_the_field(
    body: dict[str, Any], field: str
) -> None:
    async with open_desk() as desk:
        answer = await desk.deliver(asking(**body))

        assert answer.status == 200
        assert data_of(answer)["state"] == JobState.FAILED
        assert data_of(answer)["error"]["field"] == field
        job = await desk.store.get(job_id_of(asking()))
        assert job is not None
        assert job.is_dead_letter


async def test_an_event_of_another_type_is_taken_and_leaves_no_trace() -> None:
    async with open_desk() as desk:
        event = event_of({}, type=COMPLETED)
        answer = await desk.deliver(event)

        assert (answer.status, answer.event) == (202, None)
        assert await desk.store.get(job_id_of(event)) is None


async def test_while_the_engine_starts_deliveries_are_put_off() -> None:
    async with open_desk(is_open=False) as desk:
        answer = await desk.deliver(asking())

        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1


async def test_while_draining_deliveries_are_put_off() -> None:
    async with open_desk() as desk:
        desk.admission.drain()

        assert (await desk.deliver(asking())).status == 503


async def test_more_than_the_batch_holds_is_put_off() -> None:
    async with open_desk(max_concurrency=2) as desk:
        events = [asking(event_id=f"e{i}", seeded=LONG) for i in range(3)]
        running = [asyncio.ensure_future(desk.deliver(event)) for event in events[:2]]
        await desk.wait_tokens(events[1], 1)

        assert (await desk.deliver(events[2])).status == 503
        assert await desk.store.get(job_id_of(events[2])) is None
        for task in running:
            task.cancel()


async def test_a_job_takes_a_slot_for_each_of_its_choices() -> None:
    async with open_desk(max_concurrency=4) as desk:
        wide, other = asking(event_id="wide", n=4, seeded=LONG), asking(event_id="other")
        running = asyncio.ensure_future(desk.deliver(wide))
        await desk.wait_tokens(wide, 1)
        answer = await desk.deliver(other)
        running.cancel()

        assert answer.status == 503


async def test_while_the_store_is_away_deliveries_are_put_off() -> None:
    store = UnreliableStore()
    store.is_away = True
    async with open_desk(store=store) as desk:
        assert (await desk.deliver(asking())).status == 503
        assert (await desk.deliver(event_of(b"no json"))).status == 503


async def test_a_job_past_its_deadline_is_failed_without_a_run() -> None:
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async with open_desk() as desk:
        answer = await desk.deliver(asking(extensions={"expirytime": past}))

        assert data_of(answer)["error"]["code"] == "expired"
        assert data_of(answer)["attempts"] == []


async def test_a_deadline_ends_a_running_job() -> None:
    soon = (datetime.now(UTC) + timedelta(milliseconds=300)).isoformat()
    async with open_desk() as desk:
        event = asking(seeded=LONG, extensions={"expirytime": soon})
        answer = await desk.deliver(event)

        assert data_of(answer)["error"]["code"] == "expired"
        assert desk.engine.running == frozenset()


async def test_a_cancelled_job_frees_its_slot_and_is_told_as_cancelled() -> None:
    async with open_desk() as desk:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(desk.deliver(event))
        await desk.wait_tokens(event, 1)
        await desk.store.cancel(job_id_of(event))
        answer = await asyncio.wait_for(running, 1)

        assert data_of(answer)["state"] == JobState.CANCELLED
        assert desk.engine.running == frozenset()


async def test_a_request_that_the_engine_fails_is_tried_again_and_then_set_aside() -> None:
    async with open_desk(max_attempts=2) as desk:
        event = asking(seeded={"fail_at": 3})
        first = await desk.deliver(event)
        second = await desk.deliver(event)

        assert first.status == 500
        assert data_of(second)["error"]["code"] == "engine_request_failed"
        assert [a["outcome"] for a in data_of(second)["attempts"]] == ["failure", "failure"]


async def test_a_stalled_request_is_aborted_and_counted() -> None:
    async with open_desk(stall_s=0.1, max_attempts=1) as desk:
        answer = await desk.deliver(asking(seeded={"stall_at": 3}))

        assert data_of(answer)["error"]["code"] == "stalled"
        assert desk.engine.running == frozenset()


async def test_a_dead_engine_gives_its_jobs_back_for_nothing_when_they_got_further() -> None:
    async with open_desk() as desk:
        event = asking(seeded={"engine_dies_at": 5})
        answer = await desk.deliver(event)

        assert answer.status == 503
        job = await desk.store.get(job_id_of(event))
        assert job is not None
        assert (job.state, job.history[0].outcome) == (JobState.QUEUED, "handover")


@pytest.mark.parametrize(
    ("new_tokens", "can_resume", "price"),
    [
        pytest.param(5, True, Release.HANDOVER, id="got-further"),
        pytest.param(0, True, Release.LOST, id="got-nowhere-twice-at-the-same-token"),
        pytest.param(5, False, Release.LOST, id="starts-over-each-time"),
    ],
)
def test_a_job_that_may_be_what_kills_engines_pays_for_it(
    new_tokens: int, can_resume: bool, price: Release
) -> None:
    assert release_after_engine_death(new_tokens=new_tokens, can_resume=can_resume) is price


async def test_a_job_that_may_be_what_kills_predictors_runs_when_nobody_else_does() -> None:
    suspect, slow = asking(event_id="suspect"), asking(event_id="slow")
    async with open_desk(tokens_per_s=200, max_attempts=2) as desk:
        await desk.store.create_and_make(suspect, 3)
        desk.store.lapse(suspect)  # one attempt of two is lost
        beside = asyncio.create_task(desk.deliver(slow))
        await desk.wait_tokens(slow, 1)

        answer = await desk.deliver(suspect)

        assert answer.status == 200
        assert beside.done(), "it did not wait"
        assert (await beside).status == 200
        assert [a["outcome"] for a in data_of(answer)["attempts"]] == ["lost", "completed"]


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("cut", [1, 7, 39])
async def test_a_thought_goes_on_in_another_process(url: str, cut: int) -> None:
    knobs = {"output_tokens": 40, "reasoning_tokens": 20 if "chat" in url else 0}
    async with open_desk() as desk:
        whole = await desk.deliver(asking(url=url, seeded=knobs))
    store = UnreliableStore(LeaseSettings(lease_ms=200))
    event = asking(url=url, seeded=knobs)
    async with open_desk(store=store, lease_s=0.5) as desk:
        await store.create_and_make(event, cut)
        await asyncio.sleep(0.25)  # its lease lapses
        answer = await desk.deliver(event)
        entries = await desk.entries(event)

    assert text_of(answer) == text_of(whole)
    assert len(read_ids(entries)) == 41
    assert data_of(answer)["usage"] == data_of(whole)["usage"]
    assert [e.is_restart for e in entries if e.kind is EntryKind.ATTEMPT] == [False, False]
    shown = read_text(entries, "content") or read_text(entries, "text")
    assert shown == text_of(whole)


async def test_a_request_that_cannot_go_on_starts_over_and_says_so() -> None:
    knobs = {"output_tokens": 40, "resumable": False}
    store = UnreliableStore(LeaseSettings(lease_ms=200))
    event = asking(seeded=knobs)
    async with open_desk(store=store, lease_s=0.5) as desk:
        await store.create_and_make(event, 10)
        await asyncio.sleep(0.25)
        before = made_again()
        answer = await desk.deliver(event)
        entries = await desk.entries(event)

    assert made_again() - before == 10
    assert [e.is_restart for e in entries if e.kind is EntryKind.ATTEMPT] == [False, True]
    assert read_text(entries) == text_of(answer)


def made_again() -> float:
    return REGISTRY.get_sample_value("torpor_tokens_regenerated_total") or 0


async def test_the_recorded_request_counts_and_not_what_a_later_event_says() -> None:
    async with open_desk() as desk:
        event = asking(seeded=TEN)
        first = await desk.deliver(event)
        other = await desk.deliver(asking("something else", seeded=TEN))

        assert other == first


async def test_a_result_outlives_a_store_that_is_away_for_a_moment() -> None:
    async with open_desk(tokens_per_s=200) as desk:
        event = asking(seeded=TEN)
        running = asyncio.ensure_future(desk.deliver(event))
        await desk.wait_tokens(event, 1)
        desk.store.is_away = True
        await asyncio.sleep(0.3)
        desk.store.is_away = False
        answer = await running

        assert read_text(await desk.entries(event)) == text_of(answer)


async def test_a_write_whose_answer_was_lost_is_not_written_twice() -> None:
    async with open_desk(tokens_per_s=100) as desk:
        event = asking(seeded=TEN)
        desk.store.lost_answers = 2
        answer = await desk.deliver(event)
        entries = await desk.entries(event)

        assert len(read_ids(entries)) == 11
        assert read_text(entries) == text_of(answer)


async def test_an_answer_that_does_not_go_on_from_what_is_stored_does_not_end_its_job() -> None:
    async with open_desk() as desk:
        event = asking(seeded={"output_tokens": 1})
        desk.store.has_foreign_token = True  # what no writer of ours does
        answer = await desk.deliver(event)

        job = await desk.store.get(job_id_of(event))
        assert job is not None
        assert (answer.status, job.state, job.result) == (500, JobState.QUEUED, None)


async def test_a_store_away_for_longer_than_the_lease_stops_the_engine() -> None:
    async with open_desk(lease_s=0.5) as desk:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(desk.deliver(event))
        await desk.wait_tokens(event, 1)
        desk.store.is_away = True
        answer = await asyncio.wait_for(running, 1)

        assert answer.status == 503
        assert desk.engine.running == frozenset()


async def test_an_attempt_that_was_overtaken_writes_nothing_more() -> None:
    async with open_desk(lease_s=30) as desk:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(desk.deliver(event))
        await desk.wait_tokens(event, 1)
        await desk.store.overtake(event)
        answer = await asyncio.wait_for(running, 1)

        assert answer.status == 409
        job = await desk.store.get(job_id_of(event))
        assert job is not None
        assert (job.attempt, job.lease_owner) == (2, "another")


async def test_embeddings_are_answered_too() -> None:
    async with open_desk() as desk:
        event = event_of({"url": "/v1/embeddings", "body": {"model": "seeded", "input": "a"}})
        answer = await desk.deliver(event)

        assert len(data_of(answer)["response"]["data"][0]["embedding"]) == 8


async def test_several_choices_are_all_in_the_result() -> None:
    async with open_desk() as desk:
        answer = await desk.deliver(asking(n=2, seeded=TEN))

        assert [c["index"] for c in data_of(answer)["response"]["choices"]] == [0, 1]


async def test_an_answer_cut_by_its_limit_is_completed_and_says_length() -> None:
    async with open_desk() as desk:
        answer = await desk.deliver(asking(max_tokens=3, seeded=TEN))

        assert data_of(answer)["state"] == JobState.COMPLETED
        assert data_of(answer)["response"]["choices"][0]["finish_reason"] == "length"


async def test_a_job_of_the_api_is_found_by_its_event() -> None:
    async with open_desk() as desk:
        await desk.deliver(asking(seeded=TEN))
        job = await desk.store.get(job_id_of(asking()))
        assert job is not None
        again: Event = request_event(job)

        assert (await desk.deliver(again)).status == 200


async def test_a_checkpoint_that_is_not_whole_makes_the_job_start_over() -> None:
    store = UnreliableStore(LeaseSettings(lease_ms=200))
    event = asking(seeded={"output_tokens": 40})
    async with open_desk(store=store, lease_s=0.5) as desk:
        await store.create_and_make(event, 10)
        store.evict_stream(event)
        await asyncio.sleep(0.25)
        answer = await desk.deliver(event)
        entries = await desk.entries(event)

    assert answer.status == 200
    assert read_text(entries) == text_of(answer)
    assert len(read_ids(entries)) == 41


async def test_a_whole_answer_waits_for_a_store_that_is_away() -> None:
    async with open_desk() as desk:
        desk.store.failing_ends = 2
        answer = await desk.deliver(asking(seeded=TEN))

        assert answer.status == 200
        assert data_of(answer)["attempt"] == 1


async def test_an_event_that_has_arrived_is_not_sent_again() -> None:
    async with open_desk() as desk:
        await desk.deliver(asking(seeded=TEN))
        desk.store.clock.ahead_ms = 60_000

        assert await desk.store.take_unpublished(10) == []


async def test_every_line_about_a_job_names_the_request_and_the_trace_of_its_caller() -> None:
    asked = {
        "correlationid": "order-17",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    async with open_desk() as desk:
        with capture_logs([stamp]) as lines:
            await desk.deliver(asking(seeded=TEN, extensions=asked))
            await desk.deliver(asking(event_id="e2", seeded=TEN))

    named = [(line.get("request_id"), line.get("trace_id")) for line in lines]
    ours = ("order-17", "0af7651916cd43dd8448eb211c80319c")
    assert named == [ours, ours, (None, None), (None, None)]


async def test_an_invalid_event_cannot_end_a_job_that_has_its_identity() -> None:
    async with open_desk() as desk:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(desk.deliver(event))
        await desk.wait_tokens(event, 1)
        answer = await desk.deliver(event_of(b"no json"))
        job = await desk.store.get(job_id_of(event))
        running.cancel()

        assert (answer.status, answer.event) == (202, None)
        assert job is not None
        assert job.state is JobState.IN_PROGRESS


async def test_without_a_shared_store_the_whole_result_is_in_the_reply() -> None:
    async with open_desk(is_store_shared=False) as desk:
        answer = await desk.deliver(asking(n=4, seeded={"output_tokens": 3500}))

        assert answer.event is not None
        assert len(answer.event.data) > 64 * 1024
        assert len(data_of(answer)["response"]["choices"]) == 4


async def test_what_only_a_run_finds_out_is_a_dead_letter_too() -> None:
    async with open_desk() as desk:
        attempt = Attempt(
            job_id=job_id_of(asking()), number=1, acquired_s=0, token_count=0, can_resume=True
        )
        await desk.store.create(job_of(asking()))
        await desk.store.acquire(attempt.job_id, "p", can_resume=True)
        settlement = Settlement(desk.store, SystemClock(), lease_s=30)
        fault = Broke(BadRequest("longer than the context", "messages"))
        outcome, _ = await settlement.settle(attempt, fault, new_tokens=0)

        assert isinstance(outcome, Ended)
        assert outcome.job.is_dead_letter
        assert outcome.job.error is not None
        assert outcome.job.error.field == "messages"


class BrokenCheck(SeededEngine):
    """An engine with a bug in the check of requests."""

    def validate(self, request: EngineRequest) -> None:
        raise ZeroDivisionError(request.body["messages"][0]["content"])


async def test_a_bug_in_the_check_of_a_request_ends_in_the_dead_letters(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_desk(max_attempts=2, engine_type=BrokenCheck) as desk:
        answers = [await desk.deliver(asking("canary-5d1e")) for _ in range(2)]

        assert answers[0].status == 500
        assert data_of(answers[1])["error"]["code"] == "internal_error"
        assert "canary-5d1e" not in caplog.text + capsys.readouterr().out


class BrokenRun(SeededEngine):
    """An engine with a bug in its running."""

    async def run(
        self, request: EngineRequest, prior_token_ids: Sequence[int]
    ) -> AsyncGenerator[Step, None]:
        async for step in super().run(request, prior_token_ids):
            yield step
            raise ZeroDivisionError(request.body["messages"][0]["content"])


async def test_a_bug_in_an_attempt_counts_and_gives_the_job_back_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with open_desk(max_attempts=2, engine_type=BrokenRun) as desk:
        answers = [await desk.deliver(asking("canary-8e2f")) for _ in range(2)]

        assert answers[0].status == 500
        assert data_of(answers[1])["error"]["code"] == "internal_error"
        assert [a["outcome"] for a in data_of(answers[1])["attempts"]] == ["failure", "failure"]
        assert "canary-8e2f" not in capsys.readouterr().out

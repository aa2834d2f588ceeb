"""What a delivery is answered with, on the test engine and the store in memory."""

from structlog.testing import capture_logs

from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import request_event
from eventing.cloudevent.result_event import COMPLETED
from eventing.job.job import JobState
from eventing.telemetry.log import stamp
from tests.unit.predictor.harness import (
    TEN,
    asking,
    data_of,
    event_of,
    job_id_of,
    open_harness,
    read_ids,
    read_text,
    text_of,
)


async def test_a_request_is_answered_with_its_result() -> None:
    async with open_harness() as harness:
        answer = await harness.deliver(asking(seeded=TEN))

        assert answer.status == 200
        assert answer.event is not None
        assert answer.event.type == COMPLETED
        assert answer.event.subject == job_id_of(asking())
        assert data_of(answer)["usage"]["completion_tokens"] == 11
        assert len(text_of(answer).split()) == 10


async def test_a_broker_that_wants_no_result_event_gets_none() -> None:
    async with open_harness() as harness:
        answer = await harness.deliver(asking(seeded=TEN), prefer="return=minimal")

        assert (answer.status, answer.event) == (200, None)
        job = await harness.store.get(job_id_of(asking()))
        assert job is not None
        assert job.state is JobState.COMPLETED


async def test_readers_see_what_the_result_says() -> None:
    async with open_harness(tokens_per_s=200) as harness:
        event = asking(seeded={**TEN, "reasoning_tokens": 4})
        answer = await harness.deliver(event)
        entries = await harness.entries(event)

        message = data_of(answer)["response"]["choices"][0]["message"]
        assert read_text(entries) == message["content"]
        assert read_text(entries, "reasoning_content") == message["reasoning"]
        assert len(read_ids(entries)) == 11


async def test_a_duplicate_of_an_ended_job_gets_the_same_answer_and_runs_nothing() -> None:
    async with open_harness() as harness:
        event = asking(seeded=TEN)
        first = await harness.deliver(event)
        second = await harness.deliver(event)

        assert second == first
        job = await harness.store.get(job_id_of(event))
        assert job is not None
        assert job.attempt == 1


async def test_an_event_of_another_type_is_taken_and_leaves_no_trace() -> None:
    async with open_harness() as harness:
        event = event_of({}, type=COMPLETED)
        answer = await harness.deliver(event)

        assert (answer.status, answer.event) == (202, None)
        assert await harness.store.get(job_id_of(event)) is None


async def test_embeddings_are_answered_too() -> None:
    async with open_harness() as harness:
        event = event_of({"url": "/v1/embeddings", "body": {"model": "seeded", "input": "a"}})
        answer = await harness.deliver(event)

        assert len(data_of(answer)["response"]["data"][0]["embedding"]) == 8


async def test_several_choices_are_all_in_the_result() -> None:
    async with open_harness() as harness:
        answer = await harness.deliver(asking(n=2, seeded=TEN))

        assert [c["index"] for c in data_of(answer)["response"]["choices"]] == [0, 1]


async def test_an_answer_cut_by_its_limit_is_completed_and_says_length() -> None:
    async with open_harness() as harness:
        answer = await harness.deliver(asking(max_tokens=3, seeded=TEN))

        assert data_of(answer)["state"] == JobState.COMPLETED
        assert data_of(answer)["response"]["choices"][0]["finish_reason"] == "length"


async def test_a_job_of_the_api_is_found_by_its_event() -> None:
    async with open_harness() as harness:
        await harness.deliver(asking(seeded=TEN))
        job = await harness.store.get(job_id_of(asking()))
        assert job is not None
        again: Event = request_event(job)

        assert (await harness.deliver(again)).status == 200


async def test_an_event_that_has_arrived_is_not_sent_again() -> None:
    async with open_harness() as harness:
        await harness.deliver(asking(seeded=TEN))
        harness.store.clock.ahead_ms = 60_000

        assert await harness.store.take_unpublished(10) == []


async def test_every_line_about_a_job_names_the_request_and_the_trace_of_its_caller() -> None:
    asked = {
        "correlationid": "order-17",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    async with open_harness() as harness:
        with capture_logs([stamp]) as lines:
            await harness.deliver(asking(seeded=TEN, extensions=asked))
            await harness.deliver(asking(event_id="e2", seeded=TEN))

    named = [(line.get("request_id"), line.get("trace_id")) for line in lines]
    ours = ("order-17", "0af7651916cd43dd8448eb211c80319c")
    assert named == [ours, ours, (None, None), (None, None)]


async def test_without_a_shared_store_the_whole_result_is_in_the_reply() -> None:
    async with open_harness(is_store_shared=False) as harness:
        answer = await harness.deliver(asking(n=4, seeded={"output_tokens": 3500}))

        assert answer.event is not None
        assert len(answer.event.data) > 64 * 1024
        assert len(data_of(answer)["response"]["choices"]) == 4

"""Events of a response out of a token stream: deterministic, numbered, well-formed."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from api.view.response_stream import Translator
from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.job.stream import EntryKind, StreamEntry

RECORD: dict[str, Any] = {"background": True, "stream": True, "store": True, "input": []}
JOB = Job(
    id=JobId("job_" + "a" * 24),
    state=JobState.QUEUED,
    request=JobRequest(url="/v1/chat/completions", body={"model": "m", "messages": []}),
    created_ms=1_700_000_000_000,
)

deltas = st.one_of(
    st.builds(lambda t: {"content": t}, st.text(min_size=1, max_size=5)),
    st.builds(lambda t: {"reasoning_content": t}, st.text(min_size=1, max_size=5)),
    st.builds(
        lambda i, t: {
            "tool_calls": [{"index": i, "id": f"c{i}", "function": {"name": "f", "arguments": t}}]
        },
        st.integers(0, 2),
        st.text(max_size=5),
    ),
)


def tokens(*choices: dict[str, Any]) -> StreamEntry:
    listed = [{"index": 0, "delta": delta} for delta in choices]
    return StreamEntry(
        cursor="1-0", kind=EntryKind.TOKENS, attempt=1, delta=orjson.dumps(listed).decode()
    )


def attempt(number: int, *, is_restart: bool = False) -> StreamEntry:
    return StreamEntry(cursor="1-0", kind=EntryKind.ATTEMPT, attempt=number, is_restart=is_restart)


entries = st.lists(
    st.one_of(
        st.lists(deltas, min_size=1, max_size=3).map(lambda ds: tokens(*ds)),
        st.builds(attempt, st.integers(2, 5), is_restart=st.booleans()),
    ),
    max_size=12,
)


def events_of(stream: list[StreamEntry]) -> list[dict[str, Any]]:
    translator = Translator(JOB, RECORD)
    events = list(translator.begin())
    for entry in [attempt(1), *stream]:
        events += translator.feed(entry)
    ended = Job(id=JOB.id, state=JobState.COMPLETED, request=JOB.request, created_ms=1, result={})
    return events + list(translator.end(ended))


@given(entries)
def test_the_same_stream_gives_the_same_events(stream: list[StreamEntry]) -> None:
    assert events_of(stream) == events_of(stream)


@given(entries)
def test_numbers_have_no_gap_and_no_repeat(stream: list[StreamEntry]) -> None:
    numbers = [event["sequence_number"] for event in events_of(stream)]

    assert numbers == list(range(len(numbers)))


@given(entries)
def test_every_item_that_begins_ends_before_the_next_begins(stream: list[StreamEntry]) -> None:
    steps = [
        (event["type"].rsplit(".", 1)[1], event["output_index"])
        for event in events_of(stream)
        if event["type"].startswith("response.output_item.")
    ]

    count = len(steps) // 2
    assert steps == [step for n in range(count) for step in (("added", n), ("done", n))]


@given(entries)
def test_the_whole_text_is_the_sum_of_its_deltas(stream: list[StreamEntry]) -> None:
    said = ""
    for event in events_of(stream):
        match event["type"]:
            case "response.output_text.delta":
                said += event["delta"]
            case "response.output_text.done":
                assert event["text"] == said
                said = ""


@given(entries)
def test_the_last_event_repeats_the_items_that_were_streamed(stream: list[StreamEntry]) -> None:
    events = events_of(stream)

    done = [e["item"]["id"] for e in events if e["type"] == "response.output_item.done"]
    assert [item["id"] for item in events[-1]["response"]["output"]] == done


@given(entries)
def test_ids_of_items_are_unique(stream: list[StreamEntry]) -> None:
    ids = [
        event["item"]["id"]
        for event in events_of(stream)
        if event["type"] == "response.output_item.added"
    ]

    assert len(ids) == len(set(ids))


def test_a_background_response_is_queued_first() -> None:
    names = [event["type"] for event in events_of([])]

    assert names == [
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.completed",
    ]

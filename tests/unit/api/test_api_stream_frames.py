"""Frames of a job's stream: the quick way says what the general one says."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.sse import frame
from api.routes.stream import entry_event, parse_cursor, token_frame
from eventing.errors import BadRequest
from eventing.job.stream import EntryKind, StreamEntry
from eventing.job.tools.call import CallState
from eventing.redis.stream_entry import parse_entry, parse_flat_entry

numbers = st.integers(0, 10**9)


@given(attempt=numbers, index=numbers, ids=st.lists(numbers, max_size=5), text=st.text())
def test_a_token_frame_is_the_frame_of_its_event(
    attempt: int, index: int, ids: list[int], text: str
) -> None:
    delta = orjson.dumps([{"index": 0, "delta": {"content": text}}]).decode()
    for shown in (delta, ""):
        entry = StreamEntry("17-3", EntryKind.TOKENS, attempt, index, tuple(ids), shown)
        name, data, cursor = entry_event(entry)

        assert token_frame(entry) == frame(name, data, cursor=cursor)


@pytest.mark.parametrize(
    "fields",
    [
        {b"kind": b"tokens", b"attempt": b"1", b"index": b"2", b"ids": b"7 8", b"delta": b"[]"},
        {b"kind": b"tokens", b"delta": b"[]", b"attempt": b"1", b"index": b"2", b"ids": b""},
        {b"kind": b"state", b"state": b"completed", b"attempt": b"3"},
        {b"kind": b"attempt", b"attempt": b"2", b"index": b"5", b"restarted": b"1"},
    ],
)
def test_an_entry_is_read_the_same_with_and_without_a_layout(fields: dict[bytes, bytes]) -> None:
    flat = [part for pair in fields.items() for part in pair]

    assert parse_flat_entry(b"17-3", flat) == parse_entry(b"17-3", fields)


@pytest.mark.parametrize("text", ["5-", "-5", "5", "a-b", "5-5-5", "٣-١", "1" * 20 + "-0"])
def test_a_cursor_that_no_stream_gave_out_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_cursor(text)


def test_a_turn_and_its_calls_are_events_with_arguments_and_results_cut_to_a_line() -> None:
    calls = orjson.dumps([{"place": 0, "name": "web__fetch", "arguments": "a" * 5_000}]).decode()
    turn = StreamEntry("5-0", EntryKind.TURN, 1, 9, turn=1, calls=calls)
    state = CallState.RETURNED
    call = StreamEntry("6-0", EntryKind.CALL, 0, turn=1, call_state=state, output="r" * 5_000)

    name, data, cursor = entry_event(turn)
    assert (name, cursor, data["turn"], data["index"]) == ("turn", "5-0", 1, 9)
    assert data["calls"] == [{"place": 0, "name": "web__fetch", "arguments": "a" * 1_000}]

    name, data, _ = entry_event(call)
    assert (name, data["turn"], data["call"], data["status"]) == ("call", 1, 0, "returned")
    assert data["output"] == "r" * 1_000

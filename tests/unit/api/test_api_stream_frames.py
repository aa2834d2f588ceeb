"""Frames of a job's stream: the quick way says what the general one says."""

from typing import cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.protocol import ResponseWriter
from api.http.sse import frame
from api.job.live import DirectTokens
from api.routes.stream import entry_event, parse_cursor, token_frame
from eventing.errors import BadRequest
from eventing.job.stream import EntryKind, StreamEntry
from eventing.job.tools.call import CallState
from eventing.redis.stream_entry import TokensEntry, parse_flat_entry, tokens_entries

numbers = st.integers(0, 10**9)


@given(attempt=numbers, index=numbers, ids=st.lists(numbers, max_size=5), text=st.text())
def test_a_token_frame_is_the_frame_of_its_event(
    attempt: int, index: int, ids: list[int], text: str
) -> None:
    delta = orjson.dumps([{"index": 0, "delta": {"content": text}}]).decode()
    for shown in (delta, ""):
        fields = {
            "kind": "tokens",
            "attempt": attempt,
            "index": index,
            "ids": " ".join(map(str, ids)),
            "delta": shown,
        }
        flat = [str(part).encode() for pair in fields.items() for part in pair]
        (entry,) = tokens_entries([(b"17-3", flat)]) or ()
        assert entry.parsed() == parse_flat_entry(b"17-3", flat)
        name, data, cursor = entry_event(entry.parsed())

        assert token_frame(entry) == frame(name, data, cursor=cursor)


@pytest.mark.parametrize(
    "fields",
    [
        {b"kind": b"tokens", b"delta": b"[]", b"attempt": b"1", b"index": b"2", b"ids": b""},
        {b"kind": b"state", b"attempt": b"1", b"index": b"2", b"ids": b"", b"delta": b"[]"},
        {b"kind": b"tokens", b"attempt": b"1", b"index": b"2", b"ids": b"", b"shown": b"7"},
        {
            b"kind": b"tokens",
            b"attempt": b"1",
            b"index": b"2",
            b"ids": b"",
            b"delta": b"",
            b"shown": b"7",
        },
        {b"kind": b"attempt", b"attempt": b"2", b"index": b"5", b"restarted": b"1"},
    ],
)
def test_an_entry_that_is_not_of_tokens_alone_is_not_passed_on_as_it_is(
    fields: dict[bytes, bytes],
) -> None:
    tokens = [b"kind", b"tokens", b"attempt", b"1", b"index", b"1", b"ids", b"7", b"delta", b"[]"]
    flat = [part for pair in fields.items() for part in pair]

    assert tokens_entries([(b"17-2", tokens)]) is not None
    assert tokens_entries([(b"17-2", tokens), (b"17-3", flat)]) is None


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


class Wire:
    """A connection that keeps what is written."""

    def __init__(self) -> None:
        self.is_writable = True
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


@pytest.mark.parametrize(
    ("entries", "is_writable", "written"),
    [
        ([(1, 5, b"7"), (1, 6, b"8 9")], True, [b"5;6;"]),
        ([(1, 5, b"7"), (1, 6, b"8")], False, []),
        ([(1, 5, b"7"), (1, 7, b"8")], True, []),
        ([(1, 4, b"7")], True, []),
        ([(2, 5, b"7")], True, []),
    ],
)
def test_tokens_are_written_directly_where_all_of_them_go_on_at_the_readers_position(
    entries: list[tuple[int, int, bytes]], is_writable: bool, written: list[bytes]
) -> None:
    wire = Wire()
    wire.is_writable = is_writable
    direct = DirectTokens(cast(ResponseWriter, wire), lambda entry: b"%d;" % entry.index)
    direct.position.place = (5, 1)
    made = [
        TokensEntry(b"1-1", attempt, index, len(ids.split()), ids, b"[]")
        for attempt, index, ids in entries
    ]

    assert direct(made) is bool(written)
    assert wire.written == written
    assert direct.position.place == ((8, 1) if written else (5, 1))

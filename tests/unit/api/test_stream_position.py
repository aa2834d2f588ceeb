"""The position of a token stream's reader."""

import pytest

from api.job.stream_position import StreamFault, StreamPosition, before
from eventing.job.stream import EntryKind, StreamEntry, cursor_order


def tokens(index: int, count: int, attempt: int = 1) -> StreamEntry:
    return StreamEntry("1-1", EntryKind.TOKENS, attempt, index, tuple(range(count)))


def attempt(number: int, index: int = 0, *, is_restart: bool = False) -> StreamEntry:
    return StreamEntry("1-1", EntryKind.ATTEMPT, number, index, is_restart=is_restart)


def turn(index: int) -> StreamEntry:
    return StreamEntry("1-1", EntryKind.TURN, 0, index, turn=1)


def behind(*entries: StreamEntry) -> StreamPosition:
    position = StreamPosition(is_start=True)
    move(position, *entries)
    return position


def move(position: StreamPosition, *entries: StreamEntry) -> None:
    for entry in entries:
        assert position.fault_of(entry) is None
        position.advance(entry)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (tokens(3, 1), None),
        (tokens(4, 1), StreamFault.GAP),
        (tokens(2, 1), StreamFault.REWOUND),
        (tokens(3, 1, attempt=2), StreamFault.GAP),
        (attempt(2, 3), None),
        (attempt(2, 5), StreamFault.GAP),
        (attempt(2, 1), StreamFault.REWOUND),
        (attempt(2, 0, is_restart=True), None),
        (attempt(2, 3, is_restart=True), None),
        (attempt(2, 4, is_restart=True), StreamFault.GAP),
        (turn(3), None),
        (turn(4), StreamFault.GAP),
        (turn(2), StreamFault.REWOUND),
        (StreamEntry("1-1", EntryKind.STATE, 1), None),
    ],
)
def test_entries_must_continue_at_the_last_token(
    entry: StreamEntry, fault: StreamFault | None
) -> None:
    assert behind(attempt(1), tokens(0, 2), tokens(2, 1)).fault_of(entry) is fault


def test_a_restart_within_a_later_turn_keeps_the_turns_before() -> None:
    position = behind(attempt(1), tokens(0, 3), turn(3), attempt(2, 3), tokens(3, 2, attempt=2))

    move(position, attempt(3, 3, is_restart=True), tokens(3, 4, attempt=3))

    assert position.place == (7, 3)


def test_a_reader_that_resumed_at_a_state_takes_the_next_entry_as_it_is() -> None:
    position = StreamPosition(is_start=False)

    assert position.fault_of(tokens(7, 1)) is None


@pytest.mark.parametrize("cursor", ["5-3", "5-1", "5-0", "1764000000000-0"])
def test_nothing_fits_between_a_cursor_and_the_one_before_it(cursor: str) -> None:
    milliseconds, sequence = cursor_order(before(cursor))

    following = (milliseconds, sequence + 1) if sequence < 2**64 - 1 else (milliseconds + 1, 0)
    assert following == cursor_order(cursor)

"""Readers of an answer that is held back: nothing behind the mark, whatever the pieces in which the stream comes."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from eventing.job.job import JobId, JobState
from eventing.job.plan import Hold, StepStatus
from eventing.job.stream import EntryKind, StreamEntry, cursor_order
from eventing.live.shown import ShownEntries

JOB = JobId("job_0")


class Stream:
    """A stored token stream, read in pieces."""

    def __init__(self, entries: Sequence[StreamEntry], pieces: Sequence[int]) -> None:
        self.entries, self._pieces = list(entries), list(pieces)
        self.place = 0
        self.cursor = ""

    async def next(self, timeout_s: float) -> list[StreamEntry]:
        count = self._pieces.pop(0) if self._pieces else len(self.entries)
        some = self.entries[self.place : self.place + count]
        self.place += len(some)
        return some

    async def catch_up(self) -> list[StreamEntry]:
        return await self.next(0)

    async def read_stream(
        self, job_id: JobId, after: str = "", limit: int = 1000
    ) -> list[StreamEntry]:
        known = self.entries[: self.place]
        return [each for each in known if cursor_order(each.cursor) > cursor_order(after)][:limit]


def entries(*made: StreamEntry) -> list[StreamEntry]:
    return [each._replace(cursor=f"{place}-0") for place, each in enumerate(made, 1)]


def attempt(index: int = 0, *, is_restart: bool = False) -> StreamEntry:
    return StreamEntry("", EntryKind.ATTEMPT, 1, index, is_restart=is_restart)


def tokens(index: int, count: int, *, shown: int = -1) -> StreamEntry:
    ids = tuple(range(index, index + count))
    return StreamEntry("", EntryKind.TOKENS, 1, index, ids, f'["t{index}"]', shown=shown)


def state(name: JobState, shown: int = -1) -> StreamEntry:
    return StreamEntry("", EntryKind.STATE, 1, state=name, shown=shown)


def step(status: StepStatus) -> StreamEntry:
    return StreamEntry("", EntryKind.STEP, 1, step="ground", step_status=status)


async def read(stream: Stream, hold: Hold = Hold.WHOLE) -> tuple[list[StreamEntry], ShownEntries]:
    reader = ShownEntries(stream, stream, JOB, lambda: hold)  # type: ignore[arg-type]
    shown: list[StreamEntry] = []
    for _ in range(len(stream.entries) + 1):
        shown += await reader.next(0)
    return shown, reader


def texts(shown: Sequence[StreamEntry]) -> list[str]:
    return [each.delta for each in shown if each.delta]


async def test_a_whole_answer_is_shown_at_its_end_and_in_order() -> None:
    made = entries(
        attempt(),
        tokens(0, 2),
        tokens(2, 1),
        state(JobState.IN_PROGRESS),
        step(StepStatus.COMPLETED),
        state(JobState.COMPLETED, shown=3),
    )

    shown, reader = await read(Stream(made, [1] * 9))

    # State and step came before the tokens that they overtook, under the cursor before these.
    assert [each.kind for each in shown] == [
        "attempt",
        "state",
        "step",
        "tokens",
        "tokens",
        "state",
    ]
    assert [each.cursor for each in shown] == ["1-0", "1-0", "1-0", "2-0", "3-0", "6-0"]
    assert reader.cursor == "6-0"


async def test_a_reader_who_comes_again_at_a_cursor_misses_nothing() -> None:
    made = entries(attempt(), tokens(0, 2), step(StepStatus.IN_PROGRESS), tokens(2, 1))
    before, reader = await read(Stream(made, [1] * 9))
    after = reader.cursor

    done = entries(attempt(), *made[1:], state(JobState.COMPLETED, shown=3))
    left = Stream([each for each in done if cursor_order(each.cursor) > cursor_order(after)], [])
    shown, _ = await read(left)

    assert (texts(before), texts(shown)) == ([], ['["t0"]', '["t2"]'])


async def test_an_answer_that_ends_without_a_mark_is_never_shown() -> None:
    for end in (JobState.INCOMPLETE, JobState.FAILED, JobState.CANCELLED):
        made = entries(attempt(), tokens(0, 2), state(end))

        shown, _ = await read(Stream(made, [2, 1]))

        assert [each.kind for each in shown] == ["attempt", "state"]


async def test_a_window_is_shown_up_to_its_mark() -> None:
    made = entries(attempt(), tokens(0, 2, shown=0), tokens(2, 2, shown=2), tokens(4, 2, shown=3))

    shown, reader = await read(Stream(made, [1] * 9), Hold.WINDOW)

    assert texts(shown) == ['["t0"]']  # the second batch is judged by half
    assert reader.cursor == "2-0"


async def test_what_was_held_of_an_earlier_start_is_void() -> None:
    made = entries(
        attempt(),
        tokens(0, 3),
        attempt(is_restart=True),
        tokens(0, 1),
        state(JobState.COMPLETED, shown=1),
    )

    shown, _ = await read(Stream(made, [1] * 9))

    assert texts(shown) == ['["t0"]']
    assert [each.cursor for each in shown] == ["1-0", "3-0", "4-0", "5-0"]


async def test_a_restart_at_an_index_voids_nothing_before_it() -> None:
    made = entries(
        attempt(),
        tokens(0, 3),
        StreamEntry("", EntryKind.TURN, 1, 3, turn=1),
        attempt(3),
        tokens(3, 2),
        attempt(3, is_restart=True),
        tokens(3, 1),
        state(JobState.COMPLETED, shown=4),
    )

    shown, _ = await read(Stream(made, [1] * 9))

    assert texts(shown) == ['["t0"]', '["t3"]']
    assert [each.cursor for each in shown if each.delta] == ["2-0", "7-0"]


async def test_a_mark_of_an_earlier_start_shows_nothing_of_the_next() -> None:
    made = entries(
        attempt(), tokens(0, 3, shown=3), attempt(is_restart=True), tokens(0, 2, shown=0)
    )

    shown, _ = await read(Stream(made, [1] * 9), Hold.WINDOW)

    assert [each.cursor for each in shown] == ["1-0", "2-0", "3-0"]


async def test_text_without_a_token_waits_for_the_end() -> None:
    tail = StreamEntry("", EntryKind.TOKENS, 1, 2, (), '["tail"]')
    made = entries(attempt(), tokens(0, 2, shown=2), tail)

    shown, _ = await read(Stream(made, [1] * 9), Hold.WINDOW)
    assert texts(shown) == ['["t0"]']

    made = entries(*made, state(JobState.COMPLETED, shown=2))
    shown, _ = await read(Stream(made, [1] * 9), Hold.WINDOW)
    assert texts(shown) == ['["t0"]', '["tail"]']


async def test_nothing_is_held_where_the_plan_holds_nothing() -> None:
    made = entries(attempt(), tokens(0, 2), step(StepStatus.COMPLETED), tokens(2, 1))

    shown, _ = await read(Stream(made, [2, 1, 1]), Hold.NONE)

    assert shown == made


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    lags=st.lists(st.integers(0, 6), min_size=8, max_size=8),
    pieces=st.lists(st.integers(1, 4), max_size=12),
    restart=st.integers(0, 8),
)
async def test_no_token_behind_the_newest_mark_is_shown(
    sizes: list[int], lags: list[int], pieces: list[int], restart: int
) -> None:
    made, index, judged = [attempt()], 0, 0
    for place, (size, lag) in enumerate(zip(sizes, lags, strict=False)):
        if place == restart:
            made.append(attempt(is_restart=True))
            index = judged = 0
        judged = max(judged, index + size - lag)
        made.append(tokens(index, size, shown=judged))
        index += size
    stream = Stream(entries(*made), pieces)
    reader = ShownEntries(stream, stream, JOB, lambda: Hold.WINDOW)  # type: ignore[arg-type]
    seen = 0
    for _ in range(len(made) + 1):
        for each in await reader.next(0):
            if each.is_restart:
                seen = 0
            if each.kind is EntryKind.TOKENS:
                assert each.index == seen  # in order, without a gap
                seen = each.index + len(each.token_ids)
                assert seen <= mark_of(stream, each)


def mark_of(stream: Stream, entry: StreamEntry) -> int:
    """How far the start that the entry is of may be shown, by what was read so far."""
    starts = 0
    marks = [0]
    of = 0
    for each in stream.entries[: stream.place]:
        if each.is_restart:
            starts += 1
            marks.append(0)
        marks[starts] = max(marks[starts], each.shown)
        if each.cursor == entry.cursor:
            of = starts
    return marks[of]

"""Tokens on their way to the store."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import orjson
import pytest
import pytest_asyncio

from eventing.cloudevent.job_event import job_of
from eventing.job.store import Lease, LeaseStatus, TokenBatch
from eventing.job.stream import EntryKind
from predictor.generation.append_batcher import AppendBatcher
from predictor.generation.checkpoint import CheckpointWriter, read_checkpoint
from tests.contract.rig import append
from tests.unit.predictor.harness import UnreliableStore, asking, read_ids, read_text


def word(text: str) -> dict[str, object]:
    return {"index": 0, "delta": {"content": text}}


class Rig:
    """A writer of the first attempt at one job."""

    def __init__(self, store: UnreliableStore, lease: Lease, flush_s: float) -> None:
        self.store = store
        self.job_id = lease.job_id
        self.refusals: list[LeaseStatus] = []
        self.writer = CheckpointWriter(
            store,
            AppendBatcher(store),
            lease,
            index=0,
            flush_s=flush_s,
            on_refusal=self.refusals.append,
        )

    async def until_written(self, count: int) -> None:
        while len(self.store.appended) < count:
            await asyncio.sleep(0.001)


async def rig(flush_s: float) -> Rig:
    store = UnreliableStore()
    job, _ = await store.submit(job_of(asking()))
    taken = await store.acquire(job.id, "p", can_resume=True)
    return Rig(store, taken.lease, flush_s)


@pytest_asyncio.fixture
async def slow() -> AsyncIterator[Rig]:
    """Flushes once in ten seconds, so that only the first flush and the last can be seen."""
    made = await rig(10)
    task = asyncio.ensure_future(made.writer.run())
    yield made
    made.writer.close()
    await asyncio.wait((task,))


async def test_the_first_token_is_written_at_once(slow: Rig) -> None:
    slow.writer.add([1], [word("a")])

    await asyncio.wait_for(slow.until_written(1), 1)


async def test_later_ones_wait_for_the_next_flush_and_go_together(slow: Rig) -> None:
    slow.writer.add([1], [word("a")])
    await slow.until_written(1)
    for token_id, text in ((2, "b"), (3, "c")):
        slow.writer.add([token_id], [word(text)])
    slow.writer.close()
    await slow.until_written(2)

    assert slow.store.appended[1].token_ids == (2, 3)
    assert slow.store.appended[1].delta == '[{"index":0,"delta":{"content":"bc"}}]'


async def test_adding_never_waits_for_the_store(slow: Rig) -> None:
    slow.store.is_away = True

    slow.writer.add([1], [word("a")])

    assert slow.writer.pending_tokens == 1
    slow.store.is_away = False


async def test_text_without_a_token_is_written_at_the_end(slow: Rig) -> None:
    slow.writer.add([], [word("late")])
    slow.writer.close()
    await slow.until_written(1)

    assert read_text(await slow.store.read_stream(slow.job_id)) == "late"


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_lost_answers_lose_and_repeat_nothing(lost: int) -> None:
    made = await rig(0.001)
    made.store.lost_answers = lost
    async with asyncio.TaskGroup() as group:
        group.create_task(made.writer.run())
        for i in range(20):
            made.writer.add([i], [word(f"{i} ")])
            await asyncio.sleep(0.002)
        made.writer.add([], [word("end")])
        made.writer.close()
    entries = await made.store.read_stream(made.job_id)

    assert read_ids(entries) == list(range(20))
    assert read_text(entries) == "".join(f"{i} " for i in range(20)) + "end"


async def test_text_without_tokens_whose_reply_was_lost_is_written_once() -> None:
    made = await rig(0.001)
    made.store.lost_answers = 1
    async with asyncio.TaskGroup() as group:
        group.create_task(made.writer.run())
        made.writer.add([], [word("end")])
        made.writer.close()

    assert read_text(await made.store.read_stream(made.job_id)) == "end"


async def test_a_write_that_a_pipeline_did_twice_is_a_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that forgot its scripts half-way: the first time was done, the second one is told of a gap."""
    made = await rig(0.001)
    append_all = made.store.append_all

    async def twice(appends: Sequence[tuple[Lease, TokenBatch]]) -> list[LeaseStatus]:
        await append_all(appends)
        return await append_all(appends)

    monkeypatch.setattr(made.store, "append_all", twice)
    async with asyncio.TaskGroup() as group:
        group.create_task(made.writer.run())
        made.writer.add([1], [word("a")])
        made.writer.close()

    assert made.refusals == []
    assert read_ids(await made.store.read_stream(made.job_id)) == [1]


async def test_a_refused_write_is_reported_once_and_ends_the_writer() -> None:
    made = await rig(0.001)
    await made.store.cancel(made.job_id)
    made.writer.add([1], [word("a")])
    await asyncio.wait_for(made.writer.run(), 1)

    assert made.refusals == [LeaseStatus.TERMINAL]
    assert made.writer.pending_tokens == 1


async def test_an_abandoned_writer_writes_nothing_more() -> None:
    made = await rig(0.001)
    made.writer.add([1], [word("a")])
    made.writer.abandon()
    await asyncio.wait_for(made.writer.run(), 1)

    assert made.store.appended == []


async def test_a_full_buffer_makes_the_engine_wait() -> None:
    made = await rig(0.001)
    made.writer.add(range(20_000), [])
    assert made.writer.is_full
    made.writer.close()
    await made.writer.run()

    assert not made.writer.is_full


async def test_only_the_newest_restart_is_continued() -> None:
    made = await rig(0.001)
    made.writer.add([1, 2, 3], [word("old")])
    made.writer.close()
    await made.writer.run()
    lease = await made.store.acquire_again(made.job_id, restart=True)
    await append(made.store, lease, TokenBatch(index=0, token_ids=(7,)))

    assert (await read_checkpoint(made.store, made.job_id, 1)).token_ids == (7,)


async def test_tokens_of_an_edited_request_are_not_continued() -> None:
    made = await rig(0.001)
    made.writer.add([1, 2, 3], [word("old")])
    made.writer.close()
    await made.writer.run()
    await made.store.acquire_again(made.job_id, restart=True)

    checkpoint = await read_checkpoint(made.store, made.job_id, 0)

    assert checkpoint.token_ids == ()
    assert list(checkpoint.shown.new_deltas([word("old")])) == [word("old")]


async def test_a_later_turn_is_continued_from_its_own_tokens_alone() -> None:
    made = await rig(0.001)
    record = made.store._records[made.job_id]
    said = orjson.dumps([word("first")]).decode()
    record.write(1, EntryKind.ATTEMPT)
    record.write(1, EntryKind.TOKENS, token_ids=(1, 2, 3), delta=said)
    record.write(1, EntryKind.TURN, turn=1, index=3)
    record.write(1, EntryKind.ATTEMPT, index=3)
    record.write(1, EntryKind.TOKENS, index=3, token_ids=(7, 8), delta=said)
    record.write(1, EntryKind.ATTEMPT, index=3, is_restart=True)
    record.write(1, EntryKind.TOKENS, index=3, token_ids=(4,), delta=orjson.dumps([word("se")]))
    record.write(1, EntryKind.ATTEMPT, index=4)

    checkpoint = await read_checkpoint(made.store, made.job_id, 4, begin=3)

    assert checkpoint.token_ids == (4,)
    # What the first turn said, and what was void, hides nothing of the present turn.
    assert list(checkpoint.shown.new_deltas([word("second")])) == [word("cond")]

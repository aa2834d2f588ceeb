"""Tokens of a job: written in order by the lease's holder only, read by any reader."""

import pytest

from eventing.job.store import LeaseStatus, ReleaseReason, TokenBatch
from eventing.job.stream import EntryKind
from tests.contract.rig import FAULT, LEASE_MS, NOBODYS, Rig, append, ids_of, job_id, started


class TestAppend:
    async def test_tokens_are_read_back_in_order_with_what_readers_see(self, rig: Rig) -> None:
        lease = await started(rig)

        for index, ids in ((0, (1, 2)), (2, (3,)), (3, (4, 5, 6))):
            batch = TokenBatch(index=index, token_ids=ids, delta=f'["{index} ☃"]')
            assert await append(rig.store, lease, batch) is LeaseStatus.OK

        tokens = [e for e in await rig.store.read_stream(job_id()) if e.kind is EntryKind.TOKENS]
        assert [(e.index, e.token_ids, e.delta, e.attempt) for e in tokens] == [
            (0, (1, 2), '["0 ☃"]', 1),
            (2, (3,), '["2 ☃"]', 1),
            (3, (4, 5, 6), '["3 ☃"]', 1),
        ]
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.token_count == 6
        assert job.first_token_ms >= job.started_ms

    @pytest.mark.parametrize("index", [0, 1, 3, 7])
    async def test_a_gap_or_a_repeat_is_refused_without_a_trace(self, rig: Rig, index: int) -> None:
        lease = await started(rig)
        await append(rig.store, lease, TokenBatch(index=0, token_ids=(1, 2)))
        before = await rig.store.read_stream(job_id())

        answer = await append(rig.store, lease, TokenBatch(index=index, token_ids=(9,)))

        assert answer is LeaseStatus.GAP
        assert await rig.store.read_stream(job_id()) == before

    async def test_an_overtaken_attempt_is_fenced_counted_and_leaves_no_trace(
        self, rig: Rig
    ) -> None:
        zombie = await started(rig)
        await rig.pass_time(LEASE_MS + 1)
        await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        before = await rig.store.read_stream(job_id())

        answer = await append(rig.store, zombie, TokenBatch(index=0, token_ids=(9,)))

        assert answer is LeaseStatus.FENCED
        assert await rig.store.read_stream(job_id()) == before
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.refused_writes, job.token_count) == (1, 0)

    async def test_after_a_hand_over_the_old_attempt_is_fenced(self, rig: Rig) -> None:
        lease = await started(rig)
        await rig.store.release(lease, ReleaseReason.HANDOVER, FAULT)

        answer = await append(rig.store, lease, TokenBatch(index=0, token_ids=(9,)))

        assert answer is LeaseStatus.FENCED

    async def test_after_the_end_nothing_is_appended(self, rig: Rig) -> None:
        lease = await started(rig)
        await rig.store.cancel(job_id())

        answer = await append(rig.store, lease, TokenBatch(index=0, token_ids=(9,)))

        assert answer is LeaseStatus.TERMINAL
        assert await ids_of(rig.store, job_id(), 10) == []

    async def test_a_write_to_a_deleted_job_is_missing_and_creates_nothing(self, rig: Rig) -> None:
        batch = TokenBatch(index=0, token_ids=(9,))

        assert await append(rig.store, NOBODYS, batch) is LeaseStatus.MISSING

        assert await rig.store.get(job_id()) is None
        assert await rig.store.read_stream(job_id()) == []


class TestStreams:
    async def test_a_reader_goes_on_after_its_cursor(self, rig: Rig) -> None:
        lease = await started(rig)
        for index in range(10):
            batch = TokenBatch(index=index, token_ids=(index,))
            await append(rig.store, lease, batch)

        entries = await rig.store.read_stream(job_id())
        assert len(entries) > 10
        for position, entry in enumerate(entries):
            final_batch = await rig.store.read_stream(job_id(), after=entry.cursor)
            assert final_batch == entries[position + 1 :]

    async def test_a_read_is_limited(self, rig: Rig) -> None:
        lease = await started(rig)
        for index in range(5):
            await append(rig.store, lease, TokenBatch(index=index, token_ids=(1,)))

        assert len(await rig.store.read_stream(job_id(), limit=3)) == 3

    async def test_token_ids_of_a_long_stream_are_whole(self, rig: Rig) -> None:
        lease = await started(rig)
        for index in range(1100):
            await append(rig.store, lease, TokenBatch(index=index, token_ids=(index,)))

        assert await ids_of(rig.store, job_id(), 1100) == list(range(1100))
        assert await ids_of(rig.store, job_id(), 7) == list(range(7))

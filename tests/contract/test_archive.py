"""Large results in the object store: moved whole, read as before, removed with their jobs."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from eventing.cloudevent.result_event import result_event
from eventing.errors import ObjectGone, ObjectsUnavailable
from eventing.job.cache.cache import CacheAsk
from eventing.job.job import Job, JobState
from eventing.job.store import Ending, ListField, TokenBatch
from eventing.job.stream import EntryKind, StreamEntry
from eventing.live.ended import EndedConsumer
from eventing.live.stream_multiplexer import StreamMultiplexer
from eventing.redis import keys
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.store.archive import Archive
from eventing.store.objects.object_store import ObjectStore
from eventing.store.redis_store import RedisStore
from tests.contract.rig import SETTINGS, RedisRig, append, job_id, new_job, started

LARGE = {"choices": [{"message": {"content": "long " * 40_000}}]}
SMALL = {"choices": [{"message": {"content": "short"}}]}


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path}/objects")


@pytest.fixture
def archive(redis: Redis, objects: ObjectStore) -> Archive:
    return Archive(redis, objects)


@pytest.fixture
def rig(redis: Redis, archive: Archive) -> RedisRig:
    made = RedisRig(redis)
    made.store = RedisStore(redis, SETTINGS, archive)
    return made


async def ended(
    rig: RedisRig, result: dict[str, object] | None = LARGE, *, batches: int = 3, size: int = 2
) -> tuple[Job, list[StreamEntry]]:
    """A job that completed, and its stream."""
    lease = await started(rig)
    for place in range(batches):
        ids = tuple(range(place * size, (place + 1) * size))
        batch = TokenBatch(index=place * size, token_ids=ids, delta=f'["☃ {place}"]')
        await append(rig.store, lease, batch)
    await rig.store.finish(lease, Ending(state=JobState.COMPLETED, result=result))
    job = await rig.store.get(job_id())
    assert job is not None
    return job, await whole_stream(rig)


async def whole_stream(rig: RedisRig) -> list[StreamEntry]:
    found: list[StreamEntry] = []
    while some := await rig.store.read_stream(job_id(), found[-1].cursor if found else "", 100):
        found += some
    return found


async def test_a_large_result_leaves_redis_and_is_read_as_before(
    rig: RedisRig, archive: Archive, redis: Redis
) -> None:
    job, entries = await ended(rig)
    before = await redis.memory_usage(keys.job(job_id()), samples=0) or 0

    assert await archive.take_due(10) == [job_id()]
    assert await archive.archive(job_id())

    assert before > 200_000
    assert (await redis.memory_usage(keys.job(job_id()), samples=0) or 0) < 4_000
    assert await redis.xlen(keys.tokens(job_id())) == 1
    now = await rig.store.get(job_id())
    assert now is not None
    assert now.archived_bytes > 200_000
    assert (now.result, now.usage, now.state) == (job.result, job.usage, job.state)
    assert await whole_stream(rig) == entries
    assert await archive.take_due(10) == []


async def test_a_small_result_stays_where_it_is(rig: RedisRig, archive: Archive) -> None:
    await ended(rig, SMALL)

    assert await archive.take_due(10) == []


async def test_a_small_result_with_many_tokens_stays_in_the_record_and_its_tokens_go(
    rig: RedisRig, archive: Archive, redis: Redis
) -> None:
    job, entries = await ended(rig, SMALL, batches=50, size=100)

    assert await archive.take_due(10) == [job_id()]
    assert await archive.archive(job_id())

    assert await redis.hexists(keys.job(job_id()), "result")
    assert await whole_stream(rig) == entries
    now = await rig.store.get(job_id())
    assert now is not None
    assert (now.archived_bytes, now.result) == (0, job.result)


async def test_a_long_stream_is_read_from_any_cursor_and_in_any_pages(
    rig: RedisRig, archive: Archive
) -> None:
    _, entries = await ended(rig, batches=1_500, size=100)
    await archive.archive(job_id())

    for place in (0, 1, 499, 700, 1_000, 1_499, len(entries) - 2):
        after = entries[place].cursor
        found: list[StreamEntry] = []
        while some := await rig.store.read_stream(
            job_id(), found[-1].cursor if found else after, 137
        ):
            assert len(some) <= 137
            found += some
        assert found == entries[place + 1 :]
    assert await rig.store.read_stream(job_id(), entries[-1].cursor) == []


async def test_a_failed_job_keeps_its_tokens_since_a_redrive_goes_on_from_them(
    rig: RedisRig, archive: Archive
) -> None:
    lease = await started(rig)
    await append(rig.store, lease, TokenBatch(index=0, token_ids=tuple(range(5_000)), delta="[]"))
    await rig.store.finish(lease, Ending(state=JobState.FAILED, is_dead_letter=True))

    assert await archive.take_due(10) == []


async def test_an_object_that_is_written_twice_leaves_one(
    rig: RedisRig, archive: Archive, objects: ObjectStore
) -> None:
    await ended(rig)

    answers = await asyncio.gather(archive.archive(job_id()), archive.archive(job_id()))

    assert sorted(answers) == [False, True]
    (day,) = await objects.names()
    assert len(await objects.names(day)) == 1
    now = await rig.store.get(job_id())
    assert now is not None
    assert now.result == LARGE


async def test_a_crash_between_object_and_record_leaves_the_job_whole_and_an_orphan_that_is_swept(
    rig: RedisRig, archive: Archive, objects: ObjectStore, redis: Redis
) -> None:
    await ended(rig)
    ttl_ms = await redis.pttl(keys.job(job_id()))
    await archive.archive(job_id())
    (day,) = await objects.names()
    (kept,) = await objects.names(day)
    two_hours_ago = await rig.now_ms() - 7_200_000
    orphan, young = (f"{day}/{job_id()}.{at}.0000" for at in (two_hours_ago, await rig.now_ms()))
    for name in (orphan, young, "2020-01-01/job_0123.1.00"):
        await objects.write(name, b"x")

    assert ttl_ms > 0
    assert await archive.sweep() == 2

    assert {f"{day}/{name}" for name in await objects.names(day)} == {f"{day}/{kept}", young}


async def test_with_the_object_store_away_nothing_is_lost_and_it_is_tried_again(
    rig: RedisRig, archive: Archive, objects: ObjectStore, tmp_path: Path
) -> None:
    await ended(rig)
    await archive.take_due(10)
    (tmp_path / "objects").write_bytes(b"a file where a folder should be")

    with pytest.raises(ObjectsUnavailable):
        await archive.archive(job_id())
    now = await rig.store.get(job_id())
    assert now is not None
    assert now.result == LARGE

    (tmp_path / "objects").unlink()
    await rig.pass_time(15_001)
    assert await archive.take_due(10) == [job_id()]
    assert await archive.archive(job_id())


async def test_a_deleted_job_takes_its_object_along(
    rig: RedisRig, archive: Archive, objects: ObjectStore
) -> None:
    await ended(rig)
    await archive.archive(job_id())

    assert await rig.store.delete(job_id())

    (day,) = await objects.names()
    assert await objects.names(day) == []
    assert await rig.store.read_stream(job_id()) == []
    assert await archive.archive(job_id()) is False


async def test_an_object_that_is_gone_is_said_so(
    rig: RedisRig, archive: Archive, objects: ObjectStore
) -> None:
    await ended(rig)
    await archive.archive(job_id())
    (day,) = await objects.names()
    await objects.remove(day)

    with pytest.raises(ObjectGone):
        await rig.store.get(job_id())


async def test_lists_give_archived_results_to_who_asks(rig: RedisRig, archive: Archive) -> None:
    await ended(rig)
    await archive.archive(job_id())

    plain = await rig.store.list_jobs("acme")
    wide = await rig.store.list_jobs("acme", include=[ListField.RESULT])

    assert [job.result for job in plain.jobs] == [None]
    assert [job.result for job in wide.jobs] == [LARGE]


async def test_a_process_without_the_archive_says_where_the_result_is(
    rig: RedisRig, archive: Archive, redis: Redis
) -> None:
    job, _ = await ended(rig)
    await archive.archive(job_id())

    bare = await RedisStore(redis, SETTINGS).get(job_id())

    assert bare is not None
    assert bare.result is None
    assert result_event(bare) == result_event(job)
    assert result_event(bare).extensions["dataref"] == f"/v1/jobs/{job_id()}/result"


async def test_a_live_reader_that_the_archive_overtakes_misses_nothing(
    rig: RedisRig, archive: Archive, redis: Redis, redis_url: str
) -> None:
    lease = await started(rig)
    await append(rig.store, lease, TokenBatch(index=0, token_ids=(1,), delta='["a"]'))
    streams = StreamMultiplexer(redis_url, rig.store, redis)
    async with streams.follow(job_id()) as reader:
        seen = await reader.next(0.1)
        assert await reader.next(0.01) == []  # it is on the live tail, which is not read yet
        await append(rig.store, lease, TokenBatch(index=1, token_ids=(2,), delta='["b"]'))
        await rig.store.finish(lease, Ending(state=JobState.COMPLETED, result=LARGE))
        await archive.archive(job_id())
        reading = asyncio.create_task(streams.run())
        while not any(entry.state is JobState.COMPLETED for entry in seen):
            seen += await reader.next(1.0)
        reading.cancel()
        await asyncio.wait([reading])
    await streams.close()

    assert [e.delta for e in seen if e.kind is EntryKind.TOKENS] == ['["a"]', '["b"]']
    assert all(entry.kind is not EntryKind.ARCHIVED for entry in seen)


async def test_an_end_is_notified_although_its_object_is_gone(
    rig: RedisRig, archive: Archive, objects: ObjectStore, redis: SharedRedis
) -> None:
    await ended(rig)
    await archive.archive(job_id())
    (day,) = await objects.names()
    await objects.remove(day)
    told: asyncio.Queue[Job] = asyncio.Queue()

    class Listener:
        async def ended(self, job: Job) -> None:
            told.put_nowait(job)

    consuming = asyncio.create_task(EndedConsumer(redis, rig.store, (Listener(),)).run())
    async with asyncio.timeout(60):
        job = await told.get()
    consuming.cancel()
    await asyncio.wait([consuming])

    assert (job.id, job.state) == (job_id(), JobState.COMPLETED)


async def test_a_job_answered_with_an_archived_result_gets_an_object_of_its_own(
    rig: RedisRig, archive: Archive, objects: ObjectStore
) -> None:
    """Its record may live a day longer than that of the job that gave the answer."""
    ask = CacheAsk(key="cache_1")
    await rig.store.submit(replace(new_job(), cache=ask))
    lease = (await rig.store.acquire(job_id(), "worker-1", can_resume=True)).lease
    await append(rig.store, lease, TokenBatch(index=0, token_ids=(7,), delta="[]"))
    await rig.store.finish(lease, Ending(state=JobState.COMPLETED, result=LARGE))
    await archive.archive(job_id())
    hit, _ = await rig.store.submit(replace(new_job("2"), cache=ask))
    assert (hit.state, hit.result) == (JobState.COMPLETED, LARGE)
    assert await archive.take_due(10) == [hit.id]
    assert await archive.archive(hit.id)
    assert not await archive.archive(hit.id)
    await rig.store.delete(job_id())
    again = await rig.store.get(hit.id)
    assert again is not None
    assert again.result == LARGE
    read = await rig.store.read_stream(hit.id)
    assert [entry.token_ids for entry in read if entry.token_ids] == [(7,)]
    await rig.store.delete(hit.id)
    assert [name for day in await objects.names() for name in await objects.names(day)] == []


async def test_a_job_answered_a_moment_before_its_source_was_deleted_has_no_result_any_more(
    rig: RedisRig, archive: Archive
) -> None:
    ask = CacheAsk(key="cache_1")
    await rig.store.submit(replace(new_job(), cache=ask))
    lease = (await rig.store.acquire(job_id(), "worker-1", can_resume=True)).lease
    await rig.store.finish(lease, Ending(state=JobState.COMPLETED, result=LARGE))
    await archive.archive(job_id())
    hit, _ = await rig.store.submit(replace(new_job("2"), cache=ask))
    await rig.store.delete(job_id())
    assert not await archive.archive(hit.id)
    assert await archive.take_due(10) == []
    with pytest.raises(ObjectGone):
        await rig.store.get(hit.id)


async def test_an_archived_answer_is_not_served_while_the_object_store_is_away(
    rig: RedisRig, archive: Archive, tmp_path: Path
) -> None:
    ask = CacheAsk(key="cache_1")
    await rig.store.submit(replace(new_job(), cache=ask))
    lease = (await rig.store.acquire(job_id(), "worker-1", can_resume=True)).lease
    await rig.store.finish(lease, Ending(state=JobState.COMPLETED, result=LARGE))
    await archive.archive(job_id())
    (tmp_path / "objects").rename(tmp_path / "away")
    (tmp_path / "objects").write_text("no folder")
    with pytest.raises(ObjectsUnavailable):
        await rig.store.submit(replace(new_job("2"), cache=ask))
    plain, _ = await rig.store.submit(replace(new_job("3"), cache=ask))
    assert plain.state is JobState.QUEUED

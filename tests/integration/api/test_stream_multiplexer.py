"""The hub: many readers, one connection, nobody slowed by anybody."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import count

import pytest
from redis.asyncio import Redis

from eventing.job.job import JobId, new_job_id, parse_request
from eventing.job.store import NewJob
from eventing.job.stream import EntryKind, StreamEntry
from eventing.live import stream_multiplexer as token_hub
from eventing.live.stream_multiplexer import Reader, ReaderCutOff, StreamMultiplexer
from eventing.redis.stream_entry import TokensEntry
from eventing.store.redis_store import RedisStore
from tests.awake import awake_s
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import FakePredictor, chat_result


@pytest.fixture
async def hub(redis_url: str, store: RedisStore, redis: Redis) -> AsyncIterator[StreamMultiplexer]:
    made = StreamMultiplexer(redis_url, store, redis)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(made.run())
        yield made
        reading.cancel()
    await made.close()


async def running(store: RedisStore) -> FakePredictor:
    """A job that has just been taken."""
    job_id = new_job_id()
    request = parse_request(chat_line())
    await store.submit(NewJob(id=job_id, request=request, source="/torpor/api", event_id=job_id))
    return await FakePredictor(store, job_id).start()


async def tokens_of(reader: Reader, count: int) -> list[int]:
    seen: list[int] = []
    async with asyncio.timeout(60):
        while len(seen) < count:
            for entry in await reader.next(1.0):
                seen.extend(entry.token_ids)
    return seen


async def caught_up(reader: Reader) -> None:
    """The reader has taken what there was and listens to the live tail."""
    while await reader.next(0.1):
        continue


async def test_a_reader_sees_each_token_once_whenever_it_joins(
    hub: StreamMultiplexer, store: RedisStore
) -> None:
    predictor = await running(store)

    async def write() -> None:
        for _ in range(300):
            await predictor.chat("x")

    async def read(delay_s: float) -> list[int]:
        await asyncio.sleep(delay_s)
        async with hub.follow(predictor.job_id) as reader:
            return await tokens_of(reader, 300)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        readers = [group.create_task(read(n * 0.01)) for n in range(12)]

    assert all(reader.result() == list(range(300)) for reader in readers)


async def test_a_reader_with_a_cursor_sees_only_what_comes_after(
    hub: StreamMultiplexer, store: RedisStore
) -> None:
    predictor = await running(store)
    for _ in range(5):
        await predictor.chat("x")
    entries = await store.read_stream(predictor.job_id)

    async with hub.follow(predictor.job_id, entries[2].cursor) as reader:
        assert await tokens_of(reader, 3) == [2, 3, 4]


async def test_a_new_stream_is_heard_at_once_while_others_are_silent(
    hub: StreamMultiplexer, store: RedisStore
) -> None:
    silent, busy = await running(store), await running(store)
    async with hub.follow(silent.job_id) as sleeper:
        await caught_up(sleeper)
        async with hub.follow(busy.job_id) as reader:
            await caught_up(reader)
            started_s = awake_s()
            await busy.chat("x")
            await reader.next(60.0)

    assert awake_s() - started_s < 0.3


async def test_a_slow_reader_is_cut_off_and_delays_no_other(
    hub: StreamMultiplexer, store: RedisStore
) -> None:
    predictor = await running(store)
    async with hub.follow(predictor.job_id) as slow, hub.follow(predictor.job_id) as quick:
        await caught_up(slow)
        await caught_up(quick)
        left = slow.cursor
        read = asyncio.create_task(tokens_of(quick, 60))
        for _ in range(60):
            await predictor.chat("x" * 5_000)
        assert await read == list(range(60))

        with pytest.raises(ReaderCutOff):
            await slow.next(0.1)

    async with hub.follow(predictor.job_id, left) as again:
        assert await tokens_of(again, 60) == list(range(60))


async def test_all_readers_share_one_connection(
    hub: StreamMultiplexer, store: RedisStore, redis: Redis
) -> None:
    predictors = [await running(store) for _ in range(30)]
    async with asyncio.TaskGroup() as group:
        all_read, done = asyncio.Barrier(len(predictors) + 1), asyncio.Event()

        async def read(job_id: JobId) -> None:
            async with hub.follow(job_id) as reader:
                await caught_up(reader)
                await all_read.wait()
                await done.wait()

        for predictor in predictors:
            group.create_task(read(predictor.job_id))
        await all_read.wait()
        while not (reading := [c for c in await redis.client_list() if "xread" in c["cmd"]]):
            await asyncio.sleep(0.01)
        done.set()

    assert len(reading) == 1


async def test_an_idle_hub_asks_the_store_for_nothing(hub: StreamMultiplexer, redis: Redis) -> None:
    await redis.config_resetstat()
    await asyncio.sleep(0.3)

    stats = await redis.info("commandstats")

    assert "cmdstat_xread" not in stats
    assert "cmdstat_client|unblock" not in stats


class Bucket:
    """A tap that may be shut."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.is_open = True

    def __call__(self, entries: Sequence[TokensEntry]) -> bool:
        if self.is_open:
            self.tokens += [token for entry in entries for token in entry.parsed().token_ids]
        return self.is_open


async def test_a_tap_takes_tokens_while_the_reader_waits_and_no_other_entry(
    hub: StreamMultiplexer, store: RedisStore
) -> None:
    predictor, bucket = await running(store), Bucket()
    async with hub.follow(predictor.job_id, on_tokens=bucket) as reader, asyncio.timeout(60):
        assert [entry.kind for entry in await reader.next(1.0)] == [EntryKind.ATTEMPT]
        waiting = asyncio.create_task(reader.next(4.0))
        await asyncio.sleep(0.05)
        for _ in range(5):
            await predictor.chat("x")
        while len(bucket.tokens) < 5:  # what comes in one read with another entry is kept with it
            await asyncio.sleep(0.005)
        await predictor.finish(chat_result("x"))

        assert [entry.kind for entry in await waiting] == [EntryKind.STATE]
    assert bucket.tokens == list(range(5))


async def test_entries_that_a_callback_declines_are_returned_in_order(
    hub: StreamMultiplexer, store: RedisStore
) -> None:
    predictor, bucket = await running(store), Bucket()
    async with hub.follow(predictor.job_id, on_tokens=bucket) as reader:
        await reader.next(1.0)
        bucket.is_open = False
        waiting = asyncio.create_task(reader.next(4.0))
        await asyncio.sleep(0.05)
        await predictor.chat("x")
        left = await waiting
        bucket.is_open = True
        await predictor.chat("x")  # nobody waits: kept for the reader, whatever the tap says
        await asyncio.sleep(0.1)
        left += await reader.next(1.0)

    assert [token for entry in left for token in entry.token_ids] == [0, 1]
    assert bucket.tokens == []


async def test_a_tap_that_declines_an_overlap_makes_no_entry_come_twice(
    store: RedisStore,
) -> None:
    predictor, bucket = await running(store), Bucket()
    bucket.is_open = False
    await predictor.chat("x")
    reader = Reader(store, predictor.job_id, "", lambda _: False, bucket)
    assert len(await reader.next(1.0)) == 2
    assert not await reader.next(0.01)
    waiting = asyncio.create_task(reader.next(4.0))
    await asyncio.sleep(0)
    await predictor.chat("y")

    reader.push((await store.read_stream(predictor.job_id))[1:])

    assert [token for entry in await waiting for token in entry.token_ids] == [1]


async def test_a_read_that_was_begun_for_a_reader_who_left_is_not_told_to_the_next(
    hub: StreamMultiplexer, store: RedisStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = await running(store)
    before = (await store.read_stream(predictor.job_id))[-1].cursor
    await predictor.chat("x")
    async with hub.follow(predictor.job_id) as first:
        await caught_up(first)

    async def unheard(_: int) -> None:
        """The read in flight ends by the next entry."""

    async def nothing_yet(*_: object) -> list[StreamEntry]:
        """The entry of `x` came after this read."""
        return []

    monkeypatch.setattr(redis, "client_unblock", unheard)
    monkeypatch.setattr(store, "read_stream", nothing_yet)
    async with hub.follow(predictor.job_id, before) as second:
        assert not await second.next(0.01)
        await predictor.chat("y")

        assert await tokens_of(second, 2) == [0, 1]


async def test_a_tap_that_breaks_is_its_own_readers_affair(
    hub: StreamMultiplexer, store: RedisStore
) -> None:
    def broken(entries: Sequence[TokensEntry]) -> bool:
        raise ZeroDivisionError

    predictor = await running(store)
    async with (
        hub.follow(predictor.job_id, on_tokens=broken) as reader,
        hub.follow(predictor.job_id) as other,
    ):
        await reader.next(1.0)
        await caught_up(other)
        waiting = asyncio.create_task(reader.next(4.0))
        await asyncio.sleep(0.05)
        await predictor.chat("x")

        with pytest.raises(ZeroDivisionError):
            await waiting
        assert await tokens_of(other, 1) == [0]


async def test_more_streams_than_one_read_holds_are_all_heard(
    hub: StreamMultiplexer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_hub, "_STREAMS_PER_READ", 2)
    predictors = [await running(store) for _ in range(5)]

    async def read(job_id: JobId) -> list[int]:
        async with hub.follow(job_id) as reader:
            return await tokens_of(reader, 2)

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(read(one.job_id)) for one in predictors]
        await asyncio.sleep(0.2)
        for predictor in [*predictors, *predictors]:
            await predictor.chat("x")

    assert [reader.result() for reader in readers] == [[0, 1]] * 5


async def test_it_ends_when_told_while_its_read_waits(
    redis_url: str, store: RedisStore, redis: Redis
) -> None:
    hub = StreamMultiplexer(redis_url, store, redis)
    reading = asyncio.ensure_future(hub.run())
    predictor = await running(store)
    async with hub.follow(predictor.job_id) as reader:
        await caught_up(reader)
        while not any(each["flags"].count("b") for each in await redis.client_list()):
            await asyncio.sleep(0.01)
        reading.cancel()
        ended, _ = await asyncio.wait([reading], timeout=120)
    await hub.close()

    assert ended
    assert reading.cancelled()


async def test_other_calls_get_their_turn_while_many_entries_are_passed_on(
    hub: StreamMultiplexer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(0, 0.001)
    monkeypatch.setattr(token_hub, "_now_s", clock.__next__)  # each look at it takes a millisecond
    turns, seen = 0, list[int]()

    async def other_calls() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def take(_: Sequence[TokensEntry]) -> bool:
        seen.append(turns)
        return True

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for _ in range(12):
            reader = await stack.enter_async_context(hub.follow(new_job_id(), "1-0", take))
            reader._is_live = hub._join(reader) or True
            reader._direct = take
        others = group.create_task(other_calls())
        entry = (b"2-0", [b"kind", b"tokens", b"attempt", b"1", b"index", b"0"])
        entry[1].extend([b"ids", b"7", b"delta", b"[]"])
        await token_hub._pass_on([(stream, [entry]) for stream in hub._streams.values()])
        others.cancel()

    assert len(seen) == 12
    assert len(set(seen)) >= 4

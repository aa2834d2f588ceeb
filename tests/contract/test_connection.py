"""How the store's connections behave when there are fewer of them than callers."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ClusterCrossSlotError, MovedError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from eventing.errors import StoreUnavailable
from eventing.redis.connection import connect, failures_named
from eventing.store.redis_store import RedisStore
from tests.contract.rig import new_job
from tests.time_limits import STORE_S


async def test_more_callers_than_connections_wait_their_turn(redis_url: str) -> None:
    # redis-py's plain pool raises at once, and a burst of 65 submits became 503s.
    store = RedisStore(connect(redis_url, timeout_s=STORE_S, max_connections=4))

    answers = await asyncio.gather(*(store.submit(new_job(f"burst-{n}")) for n in range(200)))

    assert len(answers) == 200
    await store.close()


async def test_a_cancel_that_the_client_swallowed_is_raised_all_the_same() -> None:
    # redis-py sends under asyncio.wait_for, which until Python 3.12 swallows a cancel that comes
    # as the bytes are gone: a predictor told to go just then never ended (F31).
    began = asyncio.Event()

    async def call() -> None:
        async with failures_named():
            began.set()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    task = asyncio.ensure_future(call())
    await began.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancel_is_raised_when_the_connection_that_it_closes_fails() -> None:
    # redis-py raises a TimeoutError in its place when closing takes too long: a busy machine, a store that stalls.
    began = asyncio.Event()

    async def call() -> None:
        async with failures_named():
            try:
                began.set()
                await asyncio.sleep(60)
            finally:
                raise RedisTimeoutError("Timed out closing connection")

    task = asyncio.ensure_future(call())
    await began.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cleanup_after_a_cancellation_can_use_the_store(redis_url: str) -> None:
    store = RedisStore(connect(redis_url, timeout_s=STORE_S))
    began = asyncio.Event()
    is_clean = False

    async def call() -> None:
        nonlocal is_clean
        try:
            began.set()
            await asyncio.sleep(60)
        finally:
            await store.ping()
            is_clean = True

    task = asyncio.ensure_future(call())
    await began.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

    assert is_clean
    await store.close()


def test_a_connection_that_is_reset_before_it_is_written_to_is_a_store_that_is_away(
    redis_url: str,
) -> None:
    # uvloop says RuntimeError then, which no caller knows: a partition ended the broker (F17).
    async def call() -> None:
        client = connect(redis_url, timeout_s=STORE_S)
        connection = await client.connection_pool.get_connection()
        transport = connection._writer.transport
        transport.abort()
        while not transport.is_closing():
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)  # uvloop closes it in its next turn
        try:
            async with failures_named():
                await connection.send_command("PING")
        finally:
            await client.aclose()

    with pytest.raises(StoreUnavailable):
        uvloop.run(call())


async def test_a_bug_is_not_reported_as_an_unavailable_store() -> None:
    with pytest.raises(RuntimeError, match="ours"):
        async with failures_named():
            raise RuntimeError("ours")


IN_PIPELINE = "Command # 1 (SET key LOADING words) of pipeline caused error: "


@pytest.mark.parametrize(
    "text",
    [
        "MISCONF Errors writing to the AOF file: No space left on device",
        IN_PIPELINE + repr(("MISCONF it's unable to persist to disk",)),
        IN_PIPELINE + repr(("NOREPLICAS Not enough good replicas to write.",)),
        "Error running script (call to f_1): @user_script: 1: -OOM command not allowed",
    ],
)
async def test_a_refused_write_is_known_wherever_its_code_stands(text: str) -> None:
    with pytest.raises(StoreUnavailable, match="takes no writes"):
        async with failures_named():
            raise ResponseError(text)


async def test_a_bug_whose_command_has_the_word_of_a_refusal_is_still_a_bug() -> None:
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        async with failures_named():
            raise ResponseError(IN_PIPELINE + repr(("WRONGTYPE Operation against a key",)))


@pytest.mark.parametrize(
    "answer", [MovedError("1 10.0.0.1:6379"), ClusterCrossSlotError("two slots")]
)
async def test_a_redis_cluster_is_refused_with_its_reason(answer: ResponseError) -> None:
    with pytest.raises(StoreUnavailable, match="Redis Cluster"):
        async with failures_named():
            raise answer


@pytest.mark.parametrize("way", ["alone", "in a pipeline", "in a script"])
async def test_a_primary_without_the_replicas_that_it_must_have_is_a_store_that_takes_no_writes(
    redis: Redis, way: str
) -> None:
    # A predictor's heartbeat is a pipeline, and redis-py writes that before the code: the process ended.
    writes: dict[str, Callable[[], Awaitable[object]]] = {
        "alone": lambda: redis.set("torpor:ping", 1),
        "in a pipeline": lambda: redis.pipeline().set("torpor:ping", 1).execute(),
        "in a script": lambda: redis.eval("return redis.call('SET', 'torpor:ping', 1)", 0),
    }
    await redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(StoreUnavailable, match="takes no writes"):
            async with failures_named():
                await writes[way]()
    finally:
        await redis.config_set("min-replicas-to-write", 0)

"""Commands of many tasks share one connection, against a real server."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from eventing.redis.connection import connect
from eventing.redis.multiplexed_connection import SharedRedis
from tests.redis_server import RedisServer
from tests.time_limits import STORE_S


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[SharedRedis]:
    client = connect(redis_url, timeout_s=STORE_S)
    yield client
    await client.aclose()


@pytest.fixture
def own_server(tmp_path: Path) -> RedisServer:
    return RedisServer(tmp_path / "own")


async def test_concurrent_callers_each_get_their_own_reply(redis: SharedRedis) -> None:
    answers = await asyncio.gather(*(redis.echo(f"word {n}") for n in range(500)))

    assert answers == [f"word {n}".encode() for n in range(500)]


async def test_five_hundred_commands_take_one_connection(redis: SharedRedis) -> None:
    before = len(await redis.client_list())

    await asyncio.gather(*(redis.echo("x") for _ in range(500)))

    assert len(await redis.client_list()) == before


async def test_the_reply_to_a_cancelled_caller_is_dropped(redis: SharedRedis) -> None:
    await redis.ping()
    left = asyncio.ensure_future(redis.echo("left"))
    await asyncio.sleep(0)  # it is sent
    left.cancel()

    assert await redis.echo("stays") == b"stays"


async def test_a_failing_command_does_not_fail_the_others(redis: SharedRedis) -> None:
    await redis.set("text", "x")

    asked = [redis.incr("text"), redis.echo("y")]
    answers = await asyncio.gather(*asked, return_exceptions=True)

    assert isinstance(answers[0], ResponseError)
    assert answers[1] == b"y"


async def test_the_first_error_of_several_commands_is_raised(redis: SharedRedis) -> None:
    await redis.set("text", "x")

    with pytest.raises(ResponseError):
        await redis.send([("ECHO", "a"), ("INCR", "text"), ("ECHO", "b")])


async def test_a_blocking_read_does_not_delay_other_commands(redis: SharedRedis) -> None:
    reading = asyncio.ensure_future(redis.xread({"nothing": "0"}, block=300_000))
    while not any("xread" in each["cmd"] for each in await redis.client_list()):
        await asyncio.sleep(0.01)

    assert await redis.echo("meanwhile") == b"meanwhile"
    assert not reading.done()

    await redis.xadd("nothing", {"x": "1"})
    await reading


async def test_a_server_that_hangs_is_given_up_in_time_and_found_again(
    own_server: RedisServer,
) -> None:
    own_server.start()
    client = connect(own_server.url, timeout_s=1.0)
    await client.ping()
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            asked = [client.echo("x") for _ in range(50)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        os.kill(own_server.pid, signal.SIGCONT)

    assert {type(answer) for answer in answers} == {TimeoutError}
    assert await client.echo("again") == b"again"
    await client.aclose()
    own_server.kill()


async def test_callers_that_wait_for_a_lost_server_fail_together(
    own_server: RedisServer,
) -> None:
    own_server.start()
    client = connect(own_server.url, timeout_s=0.5)
    await client.ping()
    own_server.kill()

    asked = [client.echo("x") for _ in range(50)]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*asked, return_exceptions=True)

    assert all(isinstance(answer, ConnectionError) for answer in answers)
    await client.aclose()


async def test_a_client_that_is_closed_while_it_connects_leaves_no_connection(
    own_server: RedisServer,
) -> None:
    own_server.start()
    client = connect(own_server.url, timeout_s=5)
    os.kill(own_server.pid, signal.SIGSTOP)  # the kernel still accepts; the handshake waits
    asking = asyncio.create_task(client.ping())
    try:
        async with asyncio.timeout(60):
            while "MultiplexedConnection._connect" not in running():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            await client.aclose()

            with pytest.raises(ConnectionError):
                await asking
        assert "MultiplexedConnection._connect" not in running()
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
        own_server.kill()


def running() -> list[str]:
    """What the tasks of the event loop run."""
    return [str(task.get_coro().__qualname__) for task in asyncio.all_tasks()]  # type: ignore[union-attr]

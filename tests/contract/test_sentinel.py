"""The store's client behind real sentinels: it follows the primary, and an address that moves."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eventing.errors import StoreUnavailable
from eventing.job.store import LeaseSettings
from eventing.process.store_url import parse_store_url
from eventing.redis import keys, script
from eventing.redis.connection import connect, failures_named
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.replicated import ReplicatedWrites
from eventing.store.redis_store import RedisStore
from tests.contract.rig import new_job
from tests.redis_server import VALKEY, RedisServer
from tests.sentinels import freeze, thaw, watched_store
from tests.time_limits import STORE_S

pytestmark = pytest.mark.timeout(180)


async def again(call: Callable[[], Awaitable[Any]], *, within_s: float = 60.0) -> Any:
    """The first answer of a call that may find the store away."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                async with failures_named():
                    return await call()
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_commands_scripts_and_blocking_reads_follow_the_primary(tmp_path: Path) -> None:
    async with watched_store(tmp_path) as store:
        client = connect(store.url)
        await client.set("before", "1")
        await client.wait(2, 5_000)
        old = store.primary()
        old.server.kill()
        await store.moved(old)

        assert await again(lambda: client.get("before")) == b"1"
        # No script is loaded on the server that was a replica.
        assert await again(lambda: script.run(client, "prune", [keys.LEAVING], [10])) == 0
        await again(lambda: client.xadd("stream", {"a": "b"}))
        assert await again(lambda: client.xread({"stream": "0"}, block=50))
        await client.aclose()


async def test_a_sentinel_that_hangs_and_one_that_is_gone_cost_no_call(tmp_path: Path) -> None:
    async with watched_store(tmp_path) as store:
        store.sentinels[0].signal(19)
        client = connect(store.url)
        async with failures_named():
            await client.set("one", "1")
        await client.aclose()
        store.sentinels[1].kill()
        client = connect(store.url)
        async with failures_named():
            assert await client.get("one") == b"1"
        await client.aclose()


async def test_a_primary_that_wakes_up_after_it_was_replaced_is_left(tmp_path: Path) -> None:
    async with watched_store(tmp_path) as store:
        client = connect(store.url)
        await client.set("x", "1")
        old = store.primary()
        freeze(old)
        await store.moved(old)
        thaw(old)
        await again(lambda: client.set("x", "2"))
        await store.in_step()
        await again(lambda: client.set("x", "3"))
        reader = connect(f"redis://127.0.0.1:{old.server.port}/0")
        async with asyncio.timeout(60):
            while (
                await reader.get("x") != b"3"
            ):  # it follows the new one, and nothing was written to it alone
                await asyncio.sleep(0.02)
        await reader.aclose()
        await client.aclose()


async def test_a_write_that_a_replica_of_a_replaced_server_confirmed_is_no_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A primary that wakes up has, for a moment, the replica that was not yet led to the next one."""
    async with watched_store(tmp_path, servers=2) as store:
        client = connect(store.url)
        writes = ReplicatedWrites(client, acks=1)
        await writes.send([("SET", "before", "1")])
        sentinels: Any = client.connection_pool
        (replica,) = store.replicas

        async def named(_: str) -> tuple[str, int]:
            return "127.0.0.1", replica.proxy.port

        monkeypatch.setattr(sentinels.sentinel_manager, "discover_master", named)
        with pytest.raises(StoreUnavailable):
            async with failures_named():
                await writes.send([("SET", "late", "1")])
        await client.aclose()


async def test_no_sentinel_that_knows_the_service_is_said(tmp_path: Path) -> None:
    async with watched_store(tmp_path, servers=1) as store:
        client = connect(store.url.replace("/torpor", "/other"))
        with pytest.raises(StoreUnavailable, match="no sentinel names a primary"):
            async with failures_named():
                await client.get("x")
        await client.aclose()


@dataclass
class Managed:
    """Two servers and an address that is one of them; the name server is the only part that is not real."""

    old: RedisServer
    new: RedisServer
    ports: dict[str, int]
    url: str = "redis://store.example:6379/0"

    async def move(self, *, demote: bool = True) -> None:
        self.ports["store.example"] = self.new.port
        primary = connect(self.new.url, timeout_s=STORE_S)
        await primary.execute_command("REPLICAOF", "NO", "ONE")
        await primary.aclose()
        if demote:
            demoted = connect(self.old.url, timeout_s=STORE_S)
            await demoted.execute_command("REPLICAOF", "127.0.0.1", str(self.new.port))
            await demoted.aclose()


@pytest.fixture
async def managed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Managed]:
    first, second = (RedisServer(tmp_path / name, binary=VALKEY) for name in ("a", "b"))
    await asyncio.to_thread(first.start)
    await asyncio.to_thread(second.start)
    loop, ports = asyncio.get_running_loop(), {"store.example": first.port}
    resolve = loop.getaddrinfo

    async def moved(host: Any, port: Any, **options: Any) -> Any:
        found = await resolve("127.0.0.1", ports.get(host, port), **options)
        return [row for row in found if row[0] is socket.AF_INET]

    monkeypatch.setattr(loop, "getaddrinfo", moved)
    yield Managed(first, second, ports)
    first.kill()
    second.kill()


async def test_a_managed_address_is_looked_up_again_when_its_server_refuses_writes(
    managed: Managed,
) -> None:
    client = connect(managed.url)
    await client.set("x", "first")
    await managed.move()
    await again(lambda: client.set("x", "second"))
    assert await again(lambda: client.get("x")) == b"second"
    await client.aclose()


async def test_connections_that_only_read_leave_a_server_that_was_demoted_under_their_wait(
    managed: Managed,
) -> None:
    """It keeps its connections, ends their blocking reads with UNBLOCKED, and may follow nobody."""
    client = connect(managed.url, timeout_s=STORE_S)
    line = client.dedicated_connection()
    reads = [
        asyncio.ensure_future(again(lambda: client.xread({"news": "0"}, block=20_000))),
        asyncio.ensure_future(
            again(lambda: line.send([("XREAD", "BLOCK", 20_000, "STREAMS", "news", "0")]))
        ),
    ]
    async with asyncio.timeout(60):
        admin = connect(managed.old.url)
        while (await admin.info("clients"))["blocked_clients"] < len(reads):
            await asyncio.sleep(0.01)
    await managed.move()
    new = connect(managed.new.url)
    await new.xadd("news", {"a": "b"})
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    assert all(await asyncio.gather(*reads))
    for each in (client, admin, new):
        await each.aclose()


async def test_a_connection_of_the_pool_leaves_a_server_that_was_demoted(managed: Managed) -> None:
    """A client whose plain commands are few: their connection is not who finds it out."""
    client = connect(managed.url, timeout_s=STORE_S)

    async def count() -> Any:
        async with client.pipeline(transaction=True) as pipe:
            pipe.incr("count")
            return (await pipe.execute())[0]

    await count()
    await managed.move()
    assert await again(count, within_s=20.0)
    await client.aclose()


async def test_a_server_that_hangs_while_its_address_moves_is_left(managed: Managed) -> None:
    client = connect(managed.url, timeout_s=1.5)
    await client.set("x", "first")
    managed.old.signal(signal.SIGSTOP)
    try:
        await managed.move(demote=False)
        await again(lambda: client.set("x", "second"))
        assert await again(lambda: client.xread({"x2": "0"}, block=10)) == []
    finally:
        managed.old.signal(signal.SIGCONT)
    new = connect(managed.new.url)
    assert await new.get("x") == b"second"
    await client.aclose()
    await new.aclose()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redis+sentinel://a,b", "no service"),
        ("redis+sentinel://a,/torpor", "no host"),
        ("redis+sentinel://a:port/torpor", "no number"),
        ("redis+sentinel://a,a:26379/torpor", "twice"),
        ("redis+sentinel://a/torpor/x", "write it as"),
        ("redis+sentinel://a/torpor?sentinel_username=u", "sentinel_password"),
        ("redis+sentinel://:p%zz@a/torpor", "percent-encoded"),
        ("redis+sentinel://a/torpor?nonsense=1", "write it as"),
        ("sentinel://a/torpor", r"redis\+sentinel://"),
    ],
)
def test_a_wrong_address_of_sentinels_is_refused_without_its_value(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_store_url(text)


def test_an_address_of_sentinels_has_both_logins_and_tls() -> None:
    found = parse_store_url(
        "rediss+sentinel://user:p%40ss@one:1,two,[::1]:3/torpor/2?sentinel_password=s%40&ssl_check_hostname=false"
    )
    assert found.sentinels == (("one", 1), ("two", 26379), ("::1", 3))
    assert (found.service, found.sentinel_password, found.is_tls) == ("torpor", "s@", True)
    assert found.url.startswith("rediss://user:p%40ss@sentinel/2?")
    assert "p%40ss" not in repr(found)


async def test_a_submit_waits_for_a_replica_and_a_repeat_by_another_process_waits_for_it_too(
    tmp_path: Path,
) -> None:
    async with watched_store(tmp_path, servers=2) as watched:
        (replica,) = watched.replicas
        settings = LeaseSettings(acks=1)
        # Of one call with a replica that is away: long enough not to take it for one that is down.
        one, two = (RedisStore(connect(watched.url, timeout_s=1.5), settings) for _ in range(2))
        assert (await one.submit(new_job("first")))[1]
        freeze(replica)
        for store in (one, two):
            with pytest.raises(StoreUnavailable, match="no replica"):
                await store.submit(new_job("second"))
        thaw(replica)
        job, is_new = await again(lambda: two.submit(new_job("second")))
        assert not is_new
        both = await asyncio.gather(*(one.submit(new_job(f"more-{n}")) for n in range(50)))
        assert all(is_new for _, is_new in both)
        copy = RedisStore(connect(f"redis://127.0.0.1:{replica.server.port}/0"))
        assert await copy.get(job.id) == job
        for store in (one, two, copy):
            await store.close()


async def test_without_acks_nothing_waits_for_a_replica(redis: SharedRedis) -> None:
    store = RedisStore(redis)
    await redis.config_resetstat()
    await store.submit(new_job("plain"))
    assert set(await redis.info("commandstats")) & {"cmdstat_wait", "cmdstat_set"} == set()

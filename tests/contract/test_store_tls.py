"""The store over TLS, with users that have passwords: behind sentinels through a failover, and what is said when a
certificate, a password or a right is wrong. With Debian's Redis, since the packaged Valkey is built without TLS.
"""

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventing.errors import StoreUnavailable
from eventing.job.store import LeaseSettings
from eventing.process.store_url import parse_store_url
from eventing.redis import keys, script
from eventing.redis.connection import connect, failures_named
from eventing.store.redis_store import RedisStore
from tests.contract.rig import new_job
from tests.contract.test_sentinel import again
from tests.integration.deploy.certificate import certificate
from tests.redis_server import RedisServer, debian_redis
from tests.sentinels import Guard, watched_store
from tests.time_limits import STORE_S

DEBIAN = debian_redis()
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(DEBIAN is None, reason="Debian's redis-server is not installed"),
]


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(certificate(tmp_path, "store"))


async def refusal(url: str) -> str:
    """What a caller is told."""
    client = connect(url, timeout_s=STORE_S)
    try:
        with pytest.raises(StoreUnavailable) as found:
            async with failures_named():
                await client.set("x", "1")
        return found.value.message
    finally:
        await client.aclose()


async def test_every_kind_of_connection_follows_the_primary_over_tls(
    tmp_path: Path, guard: Guard
) -> None:
    assert DEBIAN is not None
    async with watched_store(tmp_path, binary=DEBIAN, guard=guard) as watched:
        client = connect(watched.url)
        store = RedisStore(connect(watched.url), LeaseSettings(acks=1))
        job = await again(lambda: store.submit(new_job("before")))
        await again(lambda: client.wait(2, 5_000))
        old = watched.primary()
        old.server.kill()
        await watched.moved(old)

        assert (await again(lambda: store.get(job[0].id))).id == job[0].id
        assert (await again(lambda: store.submit(new_job("after"))))[1]
        assert await again(lambda: script.run(client, "prune", [keys.LEAVING], [10])) == 0
        await again(lambda: client.xadd("stream", {"a": "b"}))
        assert await again(lambda: client.xread({"stream": "0"}, block=50))
        async with client.pipeline(transaction=True) as pipe:
            pipe.set("x", "1")
            pipe.get("x")
            assert await again(pipe.execute) == [True, b"1"]
        await client.aclose()
        await store.close()


@pytest.fixture
async def server(tmp_path: Path, guard: Guard) -> AsyncIterator[RedisServer]:
    assert DEBIAN is not None
    users = [line for line in guard.of_servers() if line.startswith("user ")]
    users.append("user reader on >reads ~* +get +client +select")
    found = RedisServer(
        tmp_path / "server",
        binary=DEBIAN,
        options=[word for line in users for word in f"--{line}".split()],
        tls=guard.certificate,
        login=guard.of_server,
    )
    await asyncio.to_thread(found.start)
    yield found
    await asyncio.to_thread(found.kill)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("store.crt", "other.crt", "self-signed certificate: ssl_ca_certs"),
        ("127.0.0.1", "localhost", "Hostname mismatch.*name it as its certificate does"),
        ("of-servers", "wrong", "the store refused our password"),
        ("torpor:of-servers%40", "reader:reads", r"no permissions to run the 'set' command"),
    ],
    ids=["another authority", "another name", "another password", "no right"],
)
async def test_what_is_wrong_with_a_server_is_said_with_the_setting(
    tmp_path: Path, guard: Guard, server: RedisServer, old: str, new: str, said: str
) -> None:
    certificate(tmp_path, "other")
    where = f"127.0.0.1:{server.port}/0?ssl_ca_certs={guard.certificate}"
    message = await refusal(f"rediss://torpor:of-servers%40@{where}".replace(old, new))
    assert re.search(f"{said}.*TORPOR_REDIS_URL", message), message


async def test_a_server_that_asks_for_a_certificate_is_shown_ours_or_it_is_said(
    guard: Guard, server: RedisServer
) -> None:
    with server.client() as admin:
        admin.config_set("tls-auth-clients", "yes")
    url = (
        f"rediss://torpor:of-servers%40@127.0.0.1:{server.port}/0?ssl_ca_certs={guard.certificate}"
    )
    async with asyncio.timeout(
        60
    ):  # a server that closes before we read its reason only "does not answer"
        while "ssl_certfile" not in await refusal(url):
            await asyncio.sleep(0.05)
    key = guard.certificate.with_suffix(".key")
    client = connect(f"{url}&ssl_certfile={guard.certificate}&ssl_keyfile={key}")
    assert await client.set("x", "1")
    await client.aclose()


async def test_what_is_wrong_with_a_sentinel_is_said_with_the_setting(
    tmp_path: Path, guard: Guard
) -> None:
    assert DEBIAN is not None
    certificate(tmp_path, "other")
    async with watched_store(tmp_path, binary=DEBIAN, servers=1, guard=guard) as watched:
        for old, new, said in [
            ("store.crt", "other.crt", "a sentinel's certificate is refused, self-signed"),
            ("127.0.0.1", "localhost", "a sentinel's certificate is refused, Hostname mismatch"),
            ("of-sentinels", "wrong", "a sentinel of the store refused our password"),
            ("of-servers", "wrong", "the store refused our password"),
        ]:
            message = await refusal(watched.url.replace(old, new))
            assert re.search(f"{said}.*TORPOR_REDIS_URL", message), message


def test_a_file_of_the_address_that_cannot_be_read_is_refused_at_start(guard: Guard) -> None:
    for url in ("rediss://store/0?", "rediss+sentinel://one,two/torpor?"):
        parse_store_url(f"{url}ssl_ca_certs={guard.certificate}")
        for wrong in (guard.certificate.with_suffix(".none"), __file__):
            with pytest.raises(ValueError, match="ssl_ca_certs"):
                parse_store_url(f"{url}ssl_ca_certs={wrong}")


def test_connections_share_what_they_read_of_a_certificate_until_its_file_changes(
    guard: Guard,
) -> None:
    """redis-py makes a context for each connection: 22 ms of CPU, for all of them at once after a failover."""
    pool = connect(f"rediss://store/0?ssl_ca_certs={guard.certificate}").connection_pool

    def context() -> ssl.SSLContext:
        found: ssl.SSLContext = pool.make_connection()._connection_arguments()["ssl"]
        return found

    first = context()
    assert context() is first
    certificate(guard.certificate.parent, guard.certificate.stem)
    os.utime(guard.certificate, (1, 1))
    assert context() is not first
    assert first.verify_mode is context().verify_mode is ssl.CERT_REQUIRED

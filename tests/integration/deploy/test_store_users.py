"""The rendered store starts, and KEDA's user may look at queues and do nothing else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, ConnectionError, NoPermissionError

from eventing.cloudevent.event import Event, to_record
from eventing.redis import keys
from eventing.redis.connection import connect
from knative.deploy.first_secrets import redis_secret
from knative.deploy.render import parts, store
from knative.deploy.values import Values
from knative.external_scaler.queue_source import QueueSource
from tests.redis_server import RedisServer

EVENT = Event(id="job_1", source="/api", type=parts.REQUESTED)
STREAM = parts.stream_key("thinker")


@pytest.fixture
def secret() -> dict[str, str]:
    """The store's Secret, with passwords that a test may know."""
    given = iter(["ours" * 8, "kedas" * 8, "scalers" * 8])
    return redis_secret("torpor", lambda _: next(given))


@pytest.fixture
async def server(tmp_path: Path, secret: dict[str, str]) -> AsyncIterator[RedisServer]:
    """A Valkey with the rendered configuration; only the paths are this machine's."""
    users = tmp_path / "users.acl"
    users.write_text(secret["users.acl"])
    text = store.redis(Values())[0]["data"]["valkey.conf"]
    text = re.sub(r"(?m)^aclfile .*$", f"aclfile {users}", text)
    text = re.sub(r"(?m)^dir .*$", f"dir {tmp_path}", text)
    settings = tmp_path / "valkey.conf"
    settings.write_text(text)
    options = [word for line in _directives(text) for word in line]
    made = RedisServer(tmp_path / "data", options=options)
    made.launch()
    try:
        await _answers(made, secret["password"])
        yield made
    finally:
        made.kill()


async def _answers(server: RedisServer, password: str) -> None:
    """Wait until the server is up; it refuses whoever has no password."""
    async with asyncio.timeout(60), Redis(port=server.port, password=password) as probe:
        while True:
            with suppress(ConnectionError):
                await probe.ping()
                return
            await asyncio.sleep(0.02)


def _directives(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [[f"--{line.split()[0]}", *line.split()[1:]] for line in lines]


async def test_kedas_user_reads_lag_and_pending(
    server: RedisServer, secret: dict[str, str]
) -> None:
    async with Redis(port=server.port, password=secret["password"]) as ours:
        await ours.xgroup_create(STREAM, parts.GROUP, id="0", mkstream=True)
        await ours.xadd(STREAM, {"a": "1"})

    async with Redis(
        port=server.port, username=secret["keda-username"], password=secret["keda-password"]
    ) as keda:
        assert (await keda.xinfo_groups(STREAM))[0]["lag"] == 1
        assert (await keda.xpending(STREAM, parts.GROUP))["pending"] == 0
        assert await keda.xlen(STREAM) == 1
        assert (await keda.info("server"))["redis_version"]


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "torpor:{job_1}"),
        ("HGETALL", "torpor:{job_1}"),
        ("XREAD", "STREAMS", STREAM, "0"),
        ("XADD", STREAM, "*", "a", "1"),
        ("DEL", STREAM),
        ("XLEN", "other"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
    ],
    ids=lambda command: command[0],
)
async def test_kedas_user_may_do_nothing_else(
    server: RedisServer, secret: dict[str, str], command: tuple[str, ...]
) -> None:
    async with Redis(
        port=server.port, username=secret["keda-username"], password=secret["keda-password"]
    ) as keda:
        with pytest.raises(NoPermissionError):
            await keda.execute_command(*command)


async def test_the_scalers_user_can_look_at_a_queue_and_its_jobs(
    server: RedisServer, secret: dict[str, str]
) -> None:
    name, password = scaler_login(secret)
    queue = parts.trigger_name("thinker")
    async with Redis(port=server.port, password=secret["password"]) as ours:
        await ours.zadd(keys.queue(queue, "ready:default"), {"/api\0job_1": 1})
        await ours.hset(
            keys.queue(queue, "events"), "/api\0job_1", b"1700000000000 " + to_record(EVENT)
        )

    async with connect(f"redis://{name}:{password}@127.0.0.1:{server.port}") as scaler:
        source = QueueSource(scaler)
        first = await source.look(queue, "thinker")
        async with Redis(port=server.port, password=secret["password"]) as ours:
            await ours.zrem(keys.queue(queue, "ready:default"), "/api\0job_1")
            await ours.hdel(keys.queue(queue, "events"), "/api\0job_1")
        second = await source.look(queue, "thinker")

    assert (len(first.arrived), len(second.finished)) == (1, 1)


@pytest.mark.parametrize(
    "command", [("HSET", "torpor:x", "a", "1"), ("GET", "other"), ("KEYS", "*")]
)
async def test_the_scalers_user_writes_nothing(
    server: RedisServer, secret: dict[str, str], command: tuple[str, ...]
) -> None:
    name, password = scaler_login(secret)
    async with Redis(port=server.port, username=name, password=password) as scaler:
        with pytest.raises(NoPermissionError):
            await scaler.execute_command(*command)


def scaler_login(secret: dict[str, str]) -> tuple[str, str]:
    """User and password of the external scaler's address."""
    address = urlsplit(secret["scaler-url"])
    return str(address.username), str(address.password)


async def test_the_store_refuses_clients_without_a_password(server: RedisServer) -> None:
    async with Redis(port=server.port) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.ping()


async def test_the_store_keeps_promises_and_evicts_nothing(
    server: RedisServer, secret: dict[str, str]
) -> None:
    async with Redis(port=server.port, password=secret["password"]) as ours:
        found = await ours.config_get("appendonly", "appendfsync", "maxmemory-policy")

    assert found == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }

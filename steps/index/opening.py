"""The vector index that the settings ask for.

Called by the steps process.
"""

from typing import Protocol

from pydantic import SecretStr
from redis.asyncio import Redis

from steps.index.embedded import EmbeddedIndex
from steps.index.index import Index
from steps.index.pgvector import PgVectorIndex
from steps.index.vector_set import VectorSetIndex


class IndexSettings(Protocol):
    """Where vector indexes lie."""

    @property
    def index_url(self) -> SecretStr: ...
    @property
    def index_memory_bytes(self) -> int: ...


def open_index(settings: IndexSettings, redis: Redis) -> Index:
    """The index; dials nothing before the first call."""
    url = settings.index_url.get_secret_value()
    if url.startswith(("redis", "unix")):
        return VectorSetIndex(url)
    if url:
        return PgVectorIndex(url)
    return EmbeddedIndex(redis, most_bytes=settings.index_memory_bytes)

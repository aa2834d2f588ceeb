"""What the index in PostgreSQL promises beyond the contract."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import asyncpg
import pytest

from steps.index.index import Query
from steps.index.pgvector import PgVectorIndex
from tests.contract.index.test_index import chunk, filled, ids, search, unit


@pytest.fixture
async def sql(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


async def test_vectors_lie_in_the_row_also_of_a_table_that_an_older_version_made(
    sql: asyncpg.Connection, postgres_url: str
) -> None:
    storage = (
        "SELECT attstorage FROM pg_attribute "
        "WHERE attrelid = 'torpor_chunk'::regclass AND attname = 'vector'"
    )
    for _ in range(2):
        async with aclosing(PgVectorIndex(postgres_url)) as index:
            await filled(index, chunk("a", 0))
            assert ids(await search(index, Query(vector=unit(0), k=1))) == ["a"]
        assert await sql.fetchval(storage) == b"m"
        await sql.execute("ALTER TABLE torpor_chunk ALTER vector SET STORAGE EXTENDED")


async def test_a_rare_word_weighs_more_and_one_of_most_passages_nothing(
    sql: asyncpg.Connection, postgres_url: str
) -> None:
    await sql.execute("DROP TABLE IF EXISTS torpor_chunk, torpor_index")
    async with aclosing(PgVectorIndex(postgres_url)) as index:
        texts = [f"the lease of {n}" + " claim" * (n % 4 == 0) for n in range(200)]
        await filled(index, *(chunk(f"{n:03}", n % 8, text) for n, text in enumerate(texts)))

        assert ids(await search(index, Query(text="the lease of 7"))) == ["007"]
        assert ids(await search(index, Query(text="claim of 8", k=2)))[0] == "008"
        assert ids(await search(index, Query(text="claim 9", k=1))) == ["009"]
        assert len(await search(index, Query(text="the LEASE", k=5))) == 5

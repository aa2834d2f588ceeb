"""A vector index in PostgreSQL with pgvector, for more chunks than a process's memory should hold.

Used when `TORPOR_INDEX_URL` names a database. One table of indexes and one of chunks, whose key begins with the tenant
and the index, so that no statement can leave them. Vectors are compared exactly; words are ranked by their inverse
document frequency, then by `ts_rank_cd`, instead of BM25. An HNSW index on the vectors of one dimension is the
operator's choice: it makes the search approximate.
"""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import orjson

from eventing.errors import Unavailable
from steps.handler import NotInstalled, packages
from steps.index.filter import Comparison, Filter
from steps.index.index import (
    MOST_WORDS,
    RANKED,
    WORD_CHARACTERS,
    Chunk,
    Hit,
    IndexStats,
    Query,
    Vector,
    check_model,
    fuse,
)

if TYPE_CHECKING:
    import asyncpg

_WORD: Final = re.compile(r"\w+")
_ONE_STARTS: Final = 7_305_213
"""Advisory lock of the schema: two processes that start together do not both make it."""
# Vectors stay in the row where they fit: fetched from beside it, an exact search takes several times as long.
_SCHEMA: Final = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE IF NOT EXISTS torpor_index (
  tenant text NOT NULL, name text NOT NULL, dim integer NOT NULL, revision text NOT NULL,
  version bigint NOT NULL, PRIMARY KEY (tenant, name));
CREATE TABLE IF NOT EXISTS torpor_chunk (
  tenant text NOT NULL, name text NOT NULL, id text NOT NULL, vector vector NOT NULL,
  text text NOT NULL, attributes jsonb NOT NULL,
  words tsvector GENERATED ALWAYS AS (to_tsvector('simple', text)) STORED,
  PRIMARY KEY (tenant, name, id),
  FOREIGN KEY (tenant, name) REFERENCES torpor_index ON DELETE CASCADE);
DO $$ BEGIN
  IF EXISTS (SELECT FROM pg_attribute
             WHERE attrelid = 'torpor_chunk'::regclass AND attname = 'vector' AND attstorage <> 'm') THEN
    ALTER TABLE torpor_chunk ALTER vector SET STORAGE MAIN;
  END IF;
END $$;
CREATE INDEX IF NOT EXISTS torpor_chunk_words ON torpor_chunk USING gin (words);
"""
# As in the embedded index: a word weighs its inverse document frequency; one that stands in more than half of the
# chunks is left out, but of a small index and of a query by nothing else. Words are read once a chunk, since they
# lie beside the row; how near they stand to each other orders only the best.
_WORDED: Final = """
WITH asked AS MATERIALIZED (
  SELECT n, to_tsquery('simple', word) AS query FROM unnest($3::text[]) WITH ORDINALITY AS each (word, n)),
any_of AS MATERIALIZED (SELECT to_tsquery('simple', string_agg(word, '|')) AS query FROM unnest($3::text[]) AS word),
held AS MATERIALIZED (
  SELECT n, id FROM torpor_chunk,
    LATERAL (SELECT strip(words) AS bare OFFSET 0) AS once, LATERAL (SELECT n FROM asked WHERE bare @@ query) AS matched
  WHERE tenant = $1 AND name = $2 AND words @@ (SELECT query FROM any_of)),
size AS (SELECT count(*) AS chunks FROM torpor_chunk WHERE tenant = $1 AND name = $2),
weighed AS (
  SELECT asked.n, greatest(1e-6, ln((chunks - count(id) + 0.5) / (count(id) + 0.5)))::float8 AS weight, chunks
  FROM size, asked LEFT JOIN held USING (n) GROUP BY asked.n, chunks),
rare AS (
  SELECT n, weight, sum(weight) OVER () AS whole FROM weighed
  WHERE weight > 1e-6 OR chunks <= $6 OR ($5::float8 = 0 AND NOT EXISTS (SELECT FROM weighed WHERE weight > 1e-6))),
best AS MATERIALIZED (
  SELECT id, text, attributes, words, sum FROM torpor_chunk JOIN (
    SELECT id, sum(weight) FROM held JOIN rare USING (n) GROUP BY id, whole HAVING sum(weight) >= $5::float8 * whole
  ) AS summed USING (id)
  WHERE tenant = $1 AND name = $2 AND WANTED ORDER BY sum DESC, id LIMIT 2 * $4)
SELECT id, text, attributes, sum + ts_rank_cd(words, (SELECT query FROM any_of), 33) AS score
FROM best ORDER BY score DESC, id LIMIT $4
"""
_OF_ONE: Final = "tenant = $1 AND name = $2"


class PgVectorIndex:
    """An `Index` in one database. Close it with `aclose`."""

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.close()

    async def create(self, tenant: str, name: str, *, dim: int, model_revision: str) -> None:
        async with self._connection() as connection:
            await connection.execute(
                "INSERT INTO torpor_index VALUES ($1, $2, $3, $4, 1) ON CONFLICT DO NOTHING",
                *(tenant, name, dim, model_revision),
            )
            check_model(await self._stats(connection, tenant, name), model_revision, dim)

    async def put(
        self, tenant: str, name: str, chunks: Sequence[Chunk], *, model_revision: str
    ) -> None:
        async with self._connection() as connection, connection.transaction():
            await self._next_version(connection, tenant, name)
            stats = await self._stats(connection, tenant, name)
            for chunk in chunks:
                dim = stats.dim if chunk.vector is None else len(chunk.vector)
                check_model(stats, model_revision, dim)
            await connection.executemany(
                "INSERT INTO torpor_chunk VALUES ($1, $2, $3, $4::text::vector, $5, $6::jsonb) "
                "ON CONFLICT (tenant, name, id) DO UPDATE SET vector = excluded.vector, "
                "text = excluded.text, attributes = excluded.attributes",
                [
                    (tenant, name, each.id, _literal(each.vector), each.text, _json(each))
                    for each in chunks
                    if each.vector is not None
                ],
            )
            await connection.executemany(
                f"UPDATE torpor_chunk SET attributes = $4::jsonb WHERE {_OF_ONE} AND id = $3",  # noqa: S608 (a constant)
                [(tenant, name, each.id, _json(each)) for each in chunks if each.vector is None],
            )

    async def delete(
        self, tenant: str, name: str, *, ids: Sequence[str] = (), where: Filter | None = None
    ) -> int:
        values: list[Any] = [tenant, name]
        async with self._connection() as connection, connection.transaction():
            if not ids and where is None:
                count = (await self._stats(connection, tenant, name)).chunks
                await connection.execute(f"DELETE FROM torpor_index WHERE {_OF_ONE}", *values)  # noqa: S608
                return count
            values.append(list(ids))
            wanted = _sql(where, values) if where is not None else "false"
            done = await connection.execute(
                f"DELETE FROM torpor_chunk WHERE {_OF_ONE} AND (id = ANY($3) OR {wanted})",  # noqa: S608 (values are bound)
                *values,
            )
            count = int(done.split()[-1])
            if count:
                await self._next_version(connection, tenant, name)
            return count

    async def search(
        self, tenant: str, name: str, query: Query, *, model_revision: str
    ) -> list[Hit]:
        async with self._connection() as connection:
            stats = await self._stats(connection, tenant, name)
            if not stats.model_revision:
                return []
            dim = stats.dim if query.vector is None else len(query.vector)
            check_model(stats, model_revision, dim)
            most = max(RANKED, query.k)
            near = await self._near(connection, tenant, name, query, most)
            worded = await self._worded(connection, tenant, name, query, most)
        rows = {row["id"]: row for row in (*worded, *near)}
        cosines = {row["id"]: _finite(row["score"]) for row in near}
        words = {row["id"]: float(row["score"]) for row in worded}
        fused = fuse(
            [row["id"] for row in near],
            [row["id"] for row in worded],
            embedding_weight=query.embedding_weight if near else 0.0,
            text_weight=query.text_weight if query.text else 0.0,
        )
        return [
            Hit(
                id=id_,
                text=rows[id_]["text"],
                attributes=orjson.loads(rows[id_]["attributes"]),
                cosine=cosines.get(id_, 0.0),
                bm25=words.get(id_, 0.0),
                fused=score,
            )
            for id_, score in fused[: query.k]
        ]

    async def version(self, tenant: str, name: str) -> int:
        return (await self.stats(tenant, name)).version

    async def stats(self, tenant: str, name: str) -> IndexStats:
        async with self._connection() as connection:
            return await self._stats(connection, tenant, name)

    async def _near(
        self, connection: Any, tenant: str, name: str, query: Query, most: int
    ) -> list[Any]:
        if query.vector is None:
            return []
        values: list[Any] = [tenant, name, _literal(query.vector), most]
        wanted = _sql(query.filter, values) if query.filter is not None else "true"
        sql = (
            "SELECT id, text, attributes, 1 - (vector <=> $3::text::vector) AS score "  # noqa: S608
            f"FROM torpor_chunk WHERE {_OF_ONE} AND {wanted} "
            "ORDER BY vector <=> $3::text::vector, id LIMIT $4"
        )
        found: list[Any] = await connection.fetch(sql, *values)
        return found

    async def _worded(
        self, connection: Any, tenant: str, name: str, query: Query, most: int
    ) -> list[Any]:
        """Chunks by the words of the query that they hold, the rare ones weighing more."""
        words = [word for word in _WORD.findall(query.text) if len(word) <= WORD_CHARACTERS]
        if not words:
            return []
        asked = [f"'{word}'" for word in dict.fromkeys(words[:MOST_WORDS])]
        values: list[Any] = [tenant, name, asked, most, query.least_share, RANKED]
        wanted = _sql(query.filter, values) if query.filter is not None else "true"
        found: list[Any] = await connection.fetch(_WORDED.replace("WANTED", wanted), *values)
        return found

    async def _next_version(self, connection: Any, tenant: str, name: str) -> None:
        """Raise the version, and keep other writers of the index out until the transaction ends."""
        await connection.execute(
            f"UPDATE torpor_index SET version = version + 1 WHERE {_OF_ONE}",  # noqa: S608
            *(tenant, name),
        )

    async def _stats(self, connection: Any, tenant: str, name: str) -> IndexStats:
        row = await connection.fetchrow(
            f"SELECT dim, revision, version, (SELECT count(*) FROM torpor_chunk WHERE {_OF_ONE}) AS chunks "  # noqa: S608
            f"FROM torpor_index WHERE {_OF_ONE}",
            *(tenant, name),
        )
        if row is None:
            return IndexStats()
        return IndexStats(
            chunks=row["chunks"],
            dim=row["dim"],
            model_revision=row["revision"],
            version=row["version"],
        )

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """A connection; what goes wrong with it is `Unavailable`, or `NotInstalled`."""
        with packages():
            import asyncpg  # a process whose indexes lie elsewhere does without
        try:
            async with (await self._opened()).acquire(timeout=self._timeout_s) as connection:
                yield connection
        except (asyncpg.PostgresConnectionError, OSError, TimeoutError) as error:
            raise Unavailable("the vector index does not answer", 2.0) from error
        except (asyncpg.InterfaceError, asyncpg.CannotConnectNowError) as error:
            raise Unavailable("the vector index does not answer", 2.0) from error

    async def _opened(self) -> "asyncpg.Pool":
        """The pool; the schema is made at the first call."""
        import asyncpg

        async with self._opening:
            if self._pool is None:
                pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=8,
                    command_timeout=self._timeout_s,
                )
                try:
                    await _make_schema(pool)
                except BaseException:
                    pool.terminate()
                    raise
                self._pool = pool
            return self._pool


async def _make_schema(pool: "asyncpg.Pool") -> None:
    """The tables, where they are missing. Raises `NotInstalled` where they cannot be made."""
    import asyncpg

    try:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _ONE_STARTS)
            await connection.execute(_SCHEMA)
    except (
        asyncpg.FeatureNotSupportedError,  # pgvector is not on the database's machine
        asyncpg.UndefinedFileError,  # the same, of an older PostgreSQL
        asyncpg.InsufficientPrivilegeError,
    ) as error:
        raise NotInstalled(
            f"the database of TORPOR_INDEX_URL cannot hold vector indexes: {error}; "
            "install pgvector there, and run CREATE EXTENSION vector as its owner"
        ) from error


def _sql(wanted: Filter, values: list[Any]) -> str:
    """The condition of a filter; its values are added to `values`, and never stand in the text."""
    if not isinstance(wanted, Comparison):
        glue = " AND " if wanted.type == "and" else " OR "
        return "(" + glue.join(_sql(one, values) for one in wanted.filters) + ")"
    values.append(wanted.key)
    held = f"attributes->(${len(values)}::text)"
    if wanted.type in _ORDER:
        values.append(str(wanted.value))
        number = f"({held} #>> '{{}}')::numeric"
        tested = f"{number} {_ORDER[wanted.type]} ${len(values)}::text::numeric"
        return f"(CASE WHEN jsonb_typeof({held}) = 'number' THEN {tested} ELSE false END)"
    compared = wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)
    values.append([orjson.dumps(each).decode() for each in compared])
    found = f"coalesce({held} = ANY(${len(values)}::text[]::jsonb[]), false)"
    return f"(NOT {found})" if wanted.type in ("ne", "nin") else found


_ORDER: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def _literal(vector: Vector | None) -> str:
    return "[" + ",".join(map(repr, map(float, vector if vector is not None else ()))) + "]"


def _json(chunk: Chunk) -> str:
    return orjson.dumps(dict(chunk.attributes)).decode()


def _finite(score: float | None) -> float:
    return score if score is not None and math.isfinite(score) else 0.0

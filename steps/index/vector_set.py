"""A vector index in the vector sets of Redis 8, for more chunks than a process's memory should hold.

Used when `TORPOR_INDEX_URL` names a Redis. Each index has one vector set, whose key holds the tenant and the index,
so that no command can leave them. It is compared exactly up to `_EXACT` chunks and wherever there is a filter, beyond
that by its graph (HNSW). Vector sets know no words: each word has a sorted set of its chunks with their share of
BM25, in the same slot, changed by the same scripts; lengths are compared with the average at the time of the put.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import numpy as np
import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from eventing.process.dependency import Dependency
from eventing.redis import keys
from eventing.redis.connection import connect, failures_named
from eventing.redis.multiplexed_connection import Command
from eventing.redis.script import Argument, Call, run, run_all, send
from steps.handler import NotInstalled
from steps.index.filter import Filter, matches
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
    mismatch,
    normalised,
)
from steps.index.vector_set_filter import expressions, filterable

_index = Dependency("vector index", setting="TORPOR_INDEX_URL")
_EXACT: Final = 20_000
"""Chunks of an index that is compared whole for each search: about 10 ms on one core for 384 numbers each."""
_EXPLORED: Final = 500
"""Candidates that the graph keeps in view while it is searched."""
_AT_ONCE: Final = 16
"""Chunks of one script, a millisecond or two each: nothing else runs meanwhile."""
_MOST_MEMBERS: Final = 2**31 - 1
_WORD: Final = re.compile(r"\w+")


class VectorSetIndex:
    """An `Index` in one Redis 8. Close it with `aclose`."""

    def __init__(self, url: str, *, timeout_s: float = 10.0, exact: int = _EXACT) -> None:
        self._redis: Redis = connect(url, timeout_s=timeout_s)
        self._exact = exact

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def create(self, tenant: str, name: str, *, dim: int, model_revision: str) -> None:
        head, vectors = _names(tenant, name)
        async with _failures_named():
            await send(self._redis, [("VCARD", vectors)])  # a server that cannot is named here
            found = await run(self._redis, "index_create", [head], [model_revision, dim])
        built = IndexStats(model_revision=found[0].decode(), dim=int(found[1]))
        check_model(built, model_revision, dim)

    async def put(
        self, tenant: str, name: str, chunks: Sequence[Chunk], *, model_revision: str
    ) -> None:
        for some in _batches(chunks):
            dims = {len(each.vector) for each in some if each.vector is not None}
            args: list[Argument] = [*_prefixes(tenant, name), model_revision]
            args.append(dims.pop() if len(dims) == 1 else -len(dims))
            for each in some:
                data = b"" if each.vector is None else normalised(each.vector).tobytes()
                own = orjson.dumps(dict(each.attributes))
                words = orjson.dumps(Counter(_words(each.text)))
                args += [each.id, data, each.text, own, filterable(each.attributes), words]
            async with _failures_named():
                answer = await run(self._redis, "vector_set_put", _names(tenant, name), args)
            if isinstance(answer, list):
                raise mismatch(answer[1].decode(), int(answer[2]))

    async def delete(
        self, tenant: str, name: str, *, ids: Sequence[str] = (), where: Filter | None = None
    ) -> int:
        if not ids and where is None:
            return await self._drop(tenant, name)
        found = [*ids, *(await self._ids_where(tenant, name, where) if where is not None else ())]
        batches = _batches(list(dict.fromkeys(found)))
        return sum([await self._delete(tenant, name, some, "") for some in batches])

    async def search(
        self, tenant: str, name: str, query: Query, *, model_revision: str
    ) -> list[Hit]:
        stats = await self.stats(tenant, name)
        if not stats.model_revision:
            return []
        dim = stats.dim if query.vector is None else len(query.vector)
        check_model(stats, model_revision, dim)
        most = max(RANKED, query.k)
        near = await self._near(tenant, name, query, most, stats.chunks)
        worded = await self._worded(tenant, name, query, most)
        fused = fuse(
            list(near),
            list(worded),
            embedding_weight=query.embedding_weight if near else 0.0,
            text_weight=query.text_weight if query.text else 0.0,
        )[: query.k]
        fields = await self._fields(tenant, name, [id_ for id_, _ in fused], "text", "attributes")
        return [
            Hit(
                id=id_,
                text=text.decode(),
                attributes=orjson.loads(own),
                cosine=near.get(id_, 0.0),
                bm25=worded.get(id_, 0.0),
                fused=score,
            )
            for (id_, score), (text, own) in zip(fused, fields, strict=True)
            if text is not None and own is not None
        ]

    async def version(self, tenant: str, name: str) -> int:
        return (await self.stats(tenant, name)).version

    async def stats(self, tenant: str, name: str) -> IndexStats:
        head = keys.vector_set(tenant, name)
        commands = [("HMGET", head, "dim", "revision", "version", "chunks")]
        async with _failures_named():
            ((dim, revision, version, chunks),) = await send(self._redis, commands)
        if revision is None:
            return IndexStats()
        return IndexStats(
            chunks=int(chunks or 0),
            dim=int(dim),
            model_revision=revision.decode(),
            version=int(version),
        )

    async def _near(
        self, tenant: str, name: str, query: Query, most: int, chunks: int
    ) -> dict[str, float]:
        """Cosines of the nearest chunks, best first."""
        if query.vector is None:
            return {}
        is_exact = query.filter is not None or chunks <= self._exact
        how = ("TRUTH",) if is_exact else ("EF", max(_EXPLORED, most))
        return await self._similar(tenant, name, query.vector, query.filter, most, how)

    async def _similar(
        self,
        tenant: str,
        name: str,
        vector: Vector,
        wanted: Filter | None,
        most: int,
        how: Sequence[Argument],
    ) -> dict[str, float]:
        data = normalised(vector).tobytes()
        key = keys.vector_set(tenant, name, "vectors")
        # In the server's one thread: before Redis 8.10.1 a deletion beside a search in another thread may crash it.
        every: Command = ("VSIM", key, "FP32", data, "WITHSCORES", "COUNT", most, *how, "NOTHREAD")
        commands = [every]
        if wanted is not None:
            commands = [(*every, "FILTER", each) for each in expressions(wanted)]
        async with _failures_named():
            answers = await send(self._redis, commands)
        found = {
            id_.decode(): 2 * float(score) - 1  # they are from 0 to 1
            for answer in answers
            for id_, score in zip(answer[0::2], answer[1::2], strict=True)
        }
        return dict(sorted(found.items(), key=lambda each: (-each[1], each[0]))[:most])

    async def _worded(self, tenant: str, name: str, query: Query, most: int) -> dict[str, float]:
        """BM25 of the chunks that hold the query's words, best first."""
        words = list(dict.fromkeys(_words(query.text)))[:MOST_WORDS]
        if not words:
            return {}
        share = str(query.least_share)
        found: dict[str, float] = {}
        first, count = 0, most
        while len(found) < most:
            rows = await self._ranks(tenant, name, words, share, (first, count))
            scores = {id_.decode(): float(score) for id_, score in rows}
            found |= await self._passing(tenant, name, scores, query.filter)
            if len(rows) < count:
                break
            first, count = first + count, count * 4
        return dict(list(found.items())[:most])

    async def _ranks(
        self, tenant: str, name: str, words: Sequence[str], share: str, ranks: tuple[int, int]
    ) -> list[tuple[bytes, bytes]]:
        _, word_prefix = _prefixes(tenant, name)
        names = [_names(tenant, name)[1], keys.vector_set(tenant, name, "ranking")]
        call: Call = (
            "vector_set_words",
            names,
            [word_prefix, share, *ranks, RANKED, *words],
        )
        async with _failures_named():
            (answer,) = await run_all(self._redis, [call])
        return list(zip(answer[0::2], answer[1::2], strict=True))

    async def _passing(
        self, tenant: str, name: str, scores: dict[str, float], wanted: Filter | None
    ) -> dict[str, float]:
        """Those whose attributes pass the filter."""
        if wanted is None:
            return scores
        rows = await self._fields(tenant, name, list(scores), "attributes")
        return {
            id_: score
            for (id_, score), (own,) in zip(scores.items(), rows, strict=True)
            if own is not None and matches(wanted, orjson.loads(own))
        }

    async def _fields(
        self, tenant: str, name: str, ids: Sequence[str], *fields: str
    ) -> list[list[bytes | None]]:
        """These fields of each chunk; None for those of a chunk that is gone."""
        prefix, _ = _prefixes(tenant, name)
        async with _failures_named():
            return await send(self._redis, [("HMGET", prefix + id_, *fields) for id_ in ids])

    async def _ids_where(self, tenant: str, name: str, where: Filter) -> list[str]:
        stats = await self.stats(tenant, name)
        if not stats.chunks:
            return []
        any_vector: Vector = np.ones(stats.dim, dtype=np.float32)
        found = await self._similar(tenant, name, any_vector, where, stats.chunks, ("TRUTH",))
        return list(found)

    async def _drop(self, tenant: str, name: str) -> int:
        """Delete the index; gives how many chunks it had. Its vectors go together, in the last script."""
        vectors = keys.vector_set(tenant, name, "vectors")
        count = idle = 0
        while True:
            async with _failures_named():
                (known,) = await send(self._redis, [("VRANDMEMBER", vectors, _MOST_MEMBERS)])
            batches = _batches([id_.decode() for id_ in known or ()])
            deleted = sum([await self._delete(tenant, name, some, "drop") for some in batches])
            count, idle = count + deleted, 0 if deleted else idle + 1
            # A put came between, or the server has evicted chunks, which are counted still.
            await self._delete(tenant, name, (), "end" if idle < 2 else "force")
            if not (await self.stats(tenant, name)).model_revision:
                return count

    async def _delete(self, tenant: str, name: str, ids: Sequence[str], extent: str) -> int:
        args: list[Argument] = [*_prefixes(tenant, name), extent, *ids]
        async with _failures_named():
            return int(await run(self._redis, "vector_set_delete", _names(tenant, name), args))


@asynccontextmanager
async def _failures_named() -> AsyncIterator[None]:
    """What goes wrong with the server is `Unavailable`; one without vector sets is `NotInstalled`."""
    try:
        async with failures_named(_index):
            yield
    except ResponseError as error:
        if "unknown command" not in str(error).lower():
            raise
        message = "the Redis at TORPOR_INDEX_URL has no vector sets; they came with Redis 8"
        raise NotInstalled(message) from error


def _names(tenant: str, name: str) -> list[str]:
    return [keys.vector_set(tenant, name, part) for part in ("", "vectors")]


def _prefixes(tenant: str, name: str) -> tuple[str, str]:
    return keys.vector_set(tenant, name, "chunk:"), keys.vector_set(tenant, name, "word:")


def _batches(whole: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(whole), _AT_ONCE):
        yield whole[start : start + _AT_ONCE]


def _words(text: str) -> list[str]:
    """The words of a text, without case and accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(each for each in plain if not unicodedata.combining(each))
    return [word for word in _WORD.findall(bare) if len(word) <= WORD_CHARACTERS]

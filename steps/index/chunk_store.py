"""The truth of the embedded index: a hash for each chunk in Redis, and a stream of changes.

Called by `steps.index.embedded`. A put or a delete, its version and its entry in the stream are one script. Must
not know how chunks are ranked.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import orjson
from redis.asyncio import Redis

from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import Command
from eventing.redis.script import Argument, run, send
from steps.index.index import Chunk, IndexStats, mismatch, normalised

_CHANGES_KEPT: Final = 1000
"""A process that is further behind reads the whole index again."""
_AT_ONCE: Final = 200
"""Chunks of one script or one read: none may hold the store for long."""
_FIELDS: Final = ("vector", "text", "attributes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An entry of the stream: ids that were put, or deleted, as version number `version`."""

    cursor: str
    version: int
    put: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What an index is now. `born` is empty when it does not exist."""

    born: str = ""
    version: int = 0
    dim: int = 0
    revision: str = ""


class ChunkStore:
    """Chunks of all indexes in one Redis; the client belongs to the caller. Raises `StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, tenant: str, name: str, dim: int, revision: str) -> None:
        """As `Index.create`."""
        async with failures_named():
            found = await run(
                self._redis, "index_create", [keys.index(tenant, name)], [revision, dim]
            )
        if (found[0].decode(), int(found[1])) != (revision, dim):
            raise mismatch(found[0].decode(), int(found[1]))

    async def put(self, tenant: str, name: str, chunks: Sequence[Chunk], revision: str) -> None:
        """As `Index.put`; up to 200 chunks appear together."""
        for some in _batches(chunks):
            dims = {len(each.vector) for each in some if each.vector is not None}
            args: list[Argument] = [keys.index(tenant, name, "chunk:"), revision]
            args += [dims.pop() if len(dims) == 1 else -len(dims), _CHANGES_KEPT]
            for each in some:
                data = b"" if each.vector is None else normalised(each.vector).tobytes()
                args += [each.id, data, each.text, orjson.dumps(dict(each.attributes))]
            async with failures_named():
                answer = await run(self._redis, "index_put", _names(tenant, name), args)
            if isinstance(answer, list):
                raise mismatch(answer[1].decode(), int(answer[2]))

    async def delete(self, tenant: str, name: str, ids: Sequence[str]) -> int:
        """Delete chunks by id; gives how many there were."""
        return sum([await self._delete(tenant, name, some, "") for some in _batches(ids)])

    async def drop(self, tenant: str, name: str) -> int:
        """Delete the index; gives how many chunks it had."""
        count = 0
        while True:
            async with failures_named():
                ids = await self._redis.srandmember(keys.index(tenant, name, "chunks"), _AT_ONCE)
            count += await self._delete(tenant, name, [id_.decode() for id_ in ids], "all")
            if len(ids) < _AT_ONCE:
                return count

    async def _delete(self, tenant: str, name: str, ids: Sequence[str], extent: str) -> int:
        args: list[Argument] = [keys.index(tenant, name, "chunk:"), _CHANGES_KEPT, extent, *ids]
        async with failures_named():
            return int(await run(self._redis, "index_delete", _names(tenant, name), args))

    async def changes(self, tenant: str, name: str, after: str) -> tuple[Head, list[Change]]:
        """The index, and its changes after a cursor, in one round trip."""
        commands = [
            ("HMGET", keys.index(tenant, name), "born", "version", "dim", "revision"),
            ("XRANGE", keys.index(tenant, name, "changes"), f"({after}" if after else "-", "+"),
        ]
        async with failures_named():
            fields, entries = await send(self._redis, commands)
        return _head(fields), [_change(cursor, row) for cursor, row in entries]

    async def head(self, tenant: str, name: str) -> tuple[Head, str]:
        """The index, and the cursor of its last change."""
        commands: list[Command] = [
            ("HMGET", keys.index(tenant, name), "born", "version", "dim", "revision"),
            ("XREVRANGE", keys.index(tenant, name, "changes"), "+", "-", "COUNT", 1),
        ]
        async with failures_named():
            fields, last = await send(self._redis, commands)
        head = _head(fields)
        if not last or not head.born:
            return head, ""
        change = _change(*last[0])  # it may be newer than the fields
        return replace(head, version=change.version), change.cursor

    async def stats(self, tenant: str, name: str) -> IndexStats:
        """As `Index.stats`."""
        head, _ = await self.head(tenant, name)
        async with failures_named():
            count = await self._redis.scard(keys.index(tenant, name, "chunks"))
        return IndexStats(
            chunks=int(count), dim=head.dim, model_revision=head.revision, version=head.version
        )

    async def all_chunks(self, tenant: str, name: str) -> AsyncIterator[list[Chunk]]:
        """Every chunk, some at a time, in the order of their ids."""
        async with failures_named():
            members = await self._redis.smembers(keys.index(tenant, name, "chunks"))
        for some in _batches(sorted(member.decode() for member in members)):
            yield await self.read(tenant, name, some)

    async def read(self, tenant: str, name: str, ids: Sequence[str]) -> list[Chunk]:
        """These chunks, without those that are gone."""
        found: list[Chunk] = []
        for some in _batches(ids):
            prefix = keys.index(tenant, name, "chunk:")
            async with failures_named():
                rows = await send(self._redis, [("HMGET", prefix + id_, *_FIELDS) for id_ in some])
            found += [
                _chunk(id_, row) for id_, row in zip(some, rows, strict=True) if row[0] is not None
            ]
        return found

    async def texts(self, tenant: str, name: str, ids: Sequence[str]) -> dict[str, Chunk]:
        """These chunks by id, without vectors."""
        prefix = keys.index(tenant, name, "chunk:")
        async with failures_named():
            rows = await send(self._redis, [("HMGET", prefix + i, *_FIELDS[1:]) for i in ids])
        return {
            id_: Chunk(id=id_, text=row[0].decode(), attributes=orjson.loads(row[1]))
            for id_, row in zip(ids, rows, strict=True)
            if row[0] is not None
        }


def _names(tenant: str, name: str) -> list[str]:
    return [keys.index(tenant, name, part) for part in ("", "chunks", "changes")]


def _batches(whole: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(whole), _AT_ONCE):
        yield whole[start : start + _AT_ONCE]


def _head(fields: Sequence[bytes | None]) -> Head:
    born, version, dim, revision = fields
    if born is None or version is None or dim is None or revision is None:
        return Head()
    return Head(born=born.decode(), version=int(version), dim=int(dim), revision=revision.decode())


def _change(cursor: bytes, row: Sequence[bytes]) -> Change:
    named = dict(zip(row[0::2], row[1::2], strict=True))
    return Change(
        cursor=cursor.decode(),
        version=int(named[b"v"]),
        put=tuple(orjson.loads(named.get(b"put", b"[]"))),
        deleted=tuple(orjson.loads(named.get(b"del", b"[]"))),
    )


def _chunk(id_: str, row: Sequence[bytes]) -> Chunk:
    vector = np.frombuffer(row[0], dtype=np.float32)
    return Chunk(id=id_, vector=vector, text=row[1].decode(), attributes=orjson.loads(row[2]))

"""Vector stores in Redis: records, lists, counts, and the notes of what the steps have to index or remove.

Called by the api and by the steps. A change and its note are one script; a note stays until the chunks are as the
record says, and the api's sweep sends an event for each note that is due. Must not know HTTP, chunks or vectors.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Final

import orjson
from redis.asyncio import Redis

from eventing.errors import NotFound, WrongState
from eventing.redis import keys
from eventing.redis.connection import failures_named, store_now_ms
from eventing.redis.multiplexed_connection import Command
from eventing.redis.script import Argument, run, send
from eventing.store.vector_store.note import Note
from eventing.store.vector_store.record import (
    MOST_FILES,
    FileBatch,
    FileError,
    FileSettings,
    FileStatus,
    StoreSettings,
    VectorStore,
    VectorStoreFile,
    is_batch_id,
    is_file_id,
    is_store_id,
    parse_batch,
    parse_file,
    parse_store,
)

BATCH_KEPT_S: Final = 30 * 24 * 3600
_AT_ONCE: Final = 200
_SWEPT_AGAIN_MS: Final = 30_000


class VectorStores:
    """Vector stores of all tenants; the client belongs to the caller. Raises `StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, tenant: str, settings: StoreSettings) -> VectorStore:
        """A new vector store without files."""
        store_id = f"vs_{secrets.token_hex(12)}"
        where = [keys.vector_store(store_id), keys.vector_stores_of(tenant), keys.UNINDEXED]
        note = Note(store_id=store_id, file_id="", tenant=tenant).to_member()
        args: list[Argument] = [store_id, tenant, settings.to_json(), note, settings.kept_ms]
        async with failures_named():
            await run(self._redis, "vector_store_create", where, args)
        return await self.get(tenant, store_id)

    async def get(self, tenant: str, store_id: str) -> VectorStore:
        """The tenant's vector store. Raises `NotFound`."""
        found = await self.read([store_id])
        if not found or found[0].tenant != tenant:
            raise NotFound(f"No vector store found with id '{store_id:.64}'.")
        return found[0]

    async def read(self, store_ids: Sequence[str]) -> list[VectorStore]:
        """These vector stores, of any tenant, without those that do not exist."""
        known = [store_id for store_id in store_ids if is_store_id(store_id)]
        rows = await self._hashes([keys.vector_store(store_id) for store_id in known])
        return [parse_store(id_, row) for id_, row in zip(known, rows, strict=True) if row]

    async def versions(self, tenant: str, store_ids: Sequence[str]) -> Mapping[str, str] | None:
        """The version of each of these vector stores; None when one is not the tenant's."""
        found = await self.read([str(store_id) for store_id in store_ids])
        mine = {store.id: str(store.version) for store in found if store.tenant == tenant}
        return mine if len(mine) == len(set(store_ids)) else None

    async def ids(self, tenant: str) -> list[str]:
        """The tenant's vector stores, oldest first."""
        return await self._members(keys.vector_stores_of(tenant))

    async def set_settings(self, store: VectorStore, settings: StoreSettings) -> VectorStore:
        """The vector store with other settings. Raises `NotFound`."""
        await self._set(store, settings.to_json(), settings)
        return await self.get(store.tenant, store.id)

    async def touch(self, store: VectorStore) -> None:
        """Note that the vector store is used: it expires that much later."""
        await self._set(store, b"", store.settings)

    async def _set(self, store: VectorStore, text: bytes, settings: StoreSettings) -> None:
        note = Note(store_id=store.id, file_id="", tenant=store.tenant).to_member()
        where = [keys.vector_store(store.id), keys.UNINDEXED]
        async with failures_named():
            await run(self._redis, "vector_store_set", where, [text, note, settings.kept_ms])

    async def delete(self, store: VectorStore, *, keeps_record: bool = False) -> Note:
        """Delete the vector store, or only its files and chunks; gives the note of what is left to do."""
        note = Note(store_id=store.id, file_id="", tenant=store.tenant)
        where = [
            keys.vector_store(store.id),
            keys.vector_stores_of(store.tenant),
            keys.vector_store(store.id, "files"),
            keys.UNINDEXED,
        ]
        prefix, extent = keys.vector_store(store.id, "file:"), "empty" if keeps_record else ""
        async with failures_named():
            args = [store.id, prefix, note.to_member(), extent, keys.VECTORS]
            await run(self._redis, "vector_store_delete", where, args)
        return note

    async def add_file(
        self, store: VectorStore, file_id: str, settings: FileSettings, batch_id: str = ""
    ) -> Note:
        """Add a file; gives the note of what is to be done. Raises `NotFound`, `WrongState` for a full store."""
        note = Note(store_id=store.id, file_id=file_id, tenant=store.tenant)
        batch = keys.vector_store(batch_id or store.id)
        where = [
            keys.vector_store(store.id),
            keys.vector_store(store.id, "files"),
            keys.vector_store(store.id, "file:") + file_id,
            keys.UNINDEXED,
            batch,
        ]
        args: list[Argument] = [file_id, settings.to_json(), secrets.token_hex(8)]
        args += [note.to_member(), MOST_FILES, keys.VECTORS, batch_id, f"{batch}:files", store.id]
        async with failures_named():
            answer = await run(self._redis, "vector_file_add", where, args)
        if answer == b"gone":
            raise NotFound("the vector store was deleted")
        if answer == b"full":
            raise WrongState(f"a vector store may have {MOST_FILES} files")
        return note

    async def file(self, store: VectorStore, file_id: str) -> VectorStoreFile:
        """A file of the vector store. Raises `NotFound`."""
        found = await self.files(store.id, [file_id])
        if not found:
            message = f"No file found with id '{file_id:.64}' in vector store '{store.id}'."
            raise NotFound(message)
        return found[0]

    async def files(self, store_id: str, file_ids: Sequence[str]) -> list[VectorStoreFile]:
        """These files of a vector store, without those that are not in it."""
        known = [file_id for file_id in file_ids if is_file_id(file_id)]
        prefix = keys.vector_store(store_id, "file:")
        rows = await self._hashes([prefix + file_id for file_id in known])
        return [parse_file(store_id, id_, row) for id_, row in zip(known, rows, strict=True) if row]

    async def file_ids(self, store_id: str) -> list[str]:
        """Files of the vector store, oldest first."""
        return await self._members(keys.vector_store(store_id, "files"))

    async def set_file(
        self, store: VectorStore, file: VectorStoreFile, settings: FileSettings
    ) -> Note:
        """Change a file's settings; gives the note of what is to be done. Raises `NotFound`."""
        note = Note(store_id=store.id, file_id=file.id, tenant=store.tenant)
        args: list[Argument] = [settings.to_json(), note.to_member()]
        async with failures_named():
            answer = await run(self._redis, "vector_file_set", _file_keys(note), args)
        if not answer:
            raise NotFound("the file was removed")
        return note

    async def remove_file(self, store: VectorStore, file_id: str) -> Note:
        """Take a file out of the vector store; gives the note of what is to be done. Raises `NotFound`."""
        note = Note(store_id=store.id, file_id=file_id, tenant=store.tenant)
        where = [
            keys.vector_store(store.id),
            keys.vector_store(store.id, "files"),
            keys.vector_store(store.id, "file:") + file_id,
            keys.UNINDEXED,
        ]
        async with failures_named():
            args: list[Argument] = [file_id, note.to_member(), keys.VECTORS, store.id]
            answer = await run(self._redis, "vector_file_remove", where, args)
        if not answer:
            raise NotFound(f"No file found with id '{file_id:.64}' in vector store '{store.id}'.")
        return note

    async def stores_with(self, tenant: str, file_id: str) -> list[VectorStore]:
        """The tenant's vector stores that hold a file."""
        async with failures_named():
            members = await self._redis.smembers(f"{keys.vector_store(file_id)}:stores")
        found = await self.read([member.decode() for member in members])
        return [store for store in found if store.tenant == tenant]

    async def begin(self, note: Note, generation: str, *, count: int = 1) -> int:
        """Begin a try to index a file; gives its number, 0 when there is nothing to do. A `count` of -1 takes back
        one that could not be made.
        """
        where = [keys.vector_store(note.store_id, "file:") + note.file_id]
        async with failures_named():
            return int(await run(self._redis, "vector_file_begin", where, [generation, count]))

    async def end(
        self,
        note: Note,
        generation: str,
        status: FileStatus,
        *,
        usage_bytes: int = 0,
        chunks: int = 0,
        error: FileError | None = None,
    ) -> bool:
        """End the indexing of a file; False when it was removed, added again or had ended."""
        text = orjson.dumps({"code": error.code, "message": error.message}) if error else b""
        args: list[Argument] = [generation, str(status), text, usage_bytes]
        args += [note.to_member(), keys.VECTORS, chunks]
        async with failures_named():
            return bool(await run(self._redis, "vector_file_end", _file_keys(note), args))

    async def clear(self, note: Note, settings: bytes) -> bool:
        """Clear the note, unless the record has other settings than these (none for no record)."""
        where = [keys.UNINDEXED, keys.vector_store(note.store_id)]
        if note.file_id:
            where[1] = keys.vector_store(note.store_id, "file:") + note.file_id
        async with failures_named():
            args: list[Argument] = [note.to_member(), settings]
            return bool(await run(self._redis, "vector_note_clear", where, args))

    async def look_again(self, note: Note, at_ms: int) -> None:
        """Make the note due at another time."""
        async with failures_named():
            await self._redis.zadd(keys.UNINDEXED, {note.to_member(): at_ms})

    async def due(self, limit: int) -> list[Note]:
        """Notes that are due, taken for 30 s, so that processes share them."""
        async with failures_named():
            rows = await run(self._redis, "take_due", [keys.UNINDEXED], [limit, _SWEPT_AGAIN_MS])
        return [Note.parse(row) for row in rows]

    async def create_batch(self, store: VectorStore, total: int) -> FileBatch:
        """A new batch, to which `add_file` adds `total` files."""
        batch_id = f"vsfb_{secrets.token_hex(12)}"
        key = keys.vector_store(batch_id)
        async with failures_named():
            now_ms = await store_now_ms(self._redis)
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(
                    key,
                    mapping={
                        "store": store.id,
                        "tenant": store.tenant,
                        "created_ms": now_ms,
                        "total": total,
                    },
                )
                pipe.expire(key, BATCH_KEPT_S)
                await pipe.execute()
        return await self.batch(store, batch_id)

    async def batch(self, store: VectorStore, batch_id: str) -> FileBatch:
        """A batch of the vector store. Raises `NotFound`."""
        rows = await self._hashes([keys.vector_store(batch_id)]) if is_batch_id(batch_id) else []
        if not rows or not rows[0] or rows[0].get(b"store") != store.id.encode():
            raise NotFound(f"No file batch found with id '{batch_id:.64}'.")
        return parse_batch(batch_id, rows[0])

    async def batch_file_ids(self, batch: FileBatch) -> list[str]:
        """Files of the batch, oldest first."""
        return await self._members(f"{keys.vector_store(batch.id)}:files")

    async def cancel_batch(self, store: VectorStore, batch: FileBatch) -> FileBatch:
        """Cancel the files of a batch that were not indexed yet."""
        async with failures_named():
            await self._redis.hsetnx(keys.vector_store(batch.id), "cancelled_ms", 1)
        for file_id in await self.batch_file_ids(batch):
            note = Note(store_id=store.id, file_id=file_id, tenant=store.tenant)
            await self.end(note, "", FileStatus.CANCELLED)
        return await self.batch(store, batch.id)

    async def _hashes(self, names: Sequence[str]) -> list[dict[bytes, bytes]]:
        found: list[dict[bytes, bytes]] = []
        for start in range(0, len(names), _AT_ONCE):
            commands: list[Command] = [
                ("HGETALL", name) for name in names[start : start + _AT_ONCE]
            ]
            async with failures_named():
                rows = await send(self._redis, commands)
            found += [_pairs(row) for row in rows]
        return found

    async def _members(self, name: str) -> list[str]:
        async with failures_named():
            return [member.decode() for member in await self._redis.zrange(name, 0, -1)]


def _pairs(row: Sequence[bytes] | dict[bytes, bytes]) -> dict[bytes, bytes]:
    if isinstance(row, dict):
        return row
    return dict(zip(row[0::2], row[1::2], strict=True))


def _file_keys(note: Note) -> list[str]:
    return [
        keys.vector_store(note.store_id),
        keys.vector_store(note.store_id, "file:") + note.file_id,
        keys.UNINDEXED,
    ]

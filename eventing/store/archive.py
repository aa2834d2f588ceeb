"""Large results in the object store: a job's result and its token stream as one object, with a reference in the
record.

Called by `eventing.store.redis_store` to read, and by the api's loops to write and to sweep. The script that ends a
job lists it here when result and tokens are above 64 KiB (`end_job` in `_end.lua`); a failed job is never listed,
since a redrive continues from its tokens. The object is written first; then one script puts the reference into the
record, unless the job has changed, and trims the stream (`archive.lua`). A process that dies in between leaves an
object that no record names, which `sweep` deletes.
"""

import asyncio
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from secrets import token_hex
from typing import Final

import orjson
from redis.asyncio import Redis

from eventing.errors import ObjectGone, ObjectsUnavailable
from eventing.job.job import JobId
from eventing.job.stream import StreamEntry, cursor_order
from eventing.redis import keys
from eventing.redis.connection import failures_named, store_now_ms
from eventing.redis.script import Argument, run
from eventing.redis.stream_entry import parse_entry
from eventing.store.objects.object_ref import ObjectRef
from eventing.store.objects.object_store import ObjectStore

LARGE_BYTES: Final = 64 * 1024
"""A smaller result stays in the record, even when its tokens are archived."""
_TAKEN_FOR_MS: Final = 15_000
_ENTRIES_PER_READ: Final = 1000
_BLOCK_BYTES: Final = 512 * 1024
"""Size of a block before compression: what a reader holds in memory at a time."""
_ORPHAN_AFTER_MS: Final = 3_600_000
"""Age after which an object that no record names is an orphan of a process that died, or of a delete that did."""
_UNREADABLE_S: Final = 5.0
_DAY_MS: Final = 86_400_000
_NAME: Final = re.compile(r"/(?P<job>job_[0-9a-f]{24})\.(?P<written_ms>[0-9]+)\.")
_Raw = tuple[bytes, Mapping[bytes, bytes]]


class Archive:
    """The large results of one Redis, in one object store."""

    def __init__(self, redis: Redis, objects: ObjectStore) -> None:
        self._redis = redis
        self._objects = objects
        self._unreadable_until_s = 0.0

    @property
    def is_readable(self) -> bool:
        """False for some seconds after the object store did not answer."""
        return time.monotonic() >= self._unreadable_until_s

    async def take_due(self, limit: int) -> list[JobId]:
        """Ended jobs to be archived, reserved for 15 s, so that processes share the work."""
        async with failures_named():
            due = await run(self._redis, "take_due", [keys.UNARCHIVED], [limit, _TAKEN_FOR_MS])
        return [JobId(member.decode()) for member in due]

    async def archive(self, job_id: JobId) -> bool:
        """Move a job's result out of Redis; False when the job was deleted or archived before. Raises
        `StoreUnavailable` and `ObjectsUnavailable`; then the job is due again.
        """
        async with failures_named():
            attempt, result, shared = await self._redis.hmget(
                keys.job(job_id), "attempt", "result", "object"
            )
            left_ms = await self._redis.pttl(keys.job(job_id))
        if attempt is None or left_ms <= 0:
            await self._strike_off(job_id)
            return False
        name = _name(job_id, await store_now_ms(self._redis), left_ms)
        if shared and not _is_of(job_id, given := ObjectRef.parse(shared)):
            return await self._copy(job_id, attempt, shared, replace(given, name=name))
        moved = result if result and len(result) > LARGE_BYTES else b""
        # In a thread: packing a megabyte takes longer than a live reader should wait.
        ref, data = await asyncio.to_thread(_packed, name, moved, await self._raw(job_id))
        await self._objects.write(ref.name, data)
        return await self._refer(job_id, attempt, ref, b"", is_moved=bool(moved))

    async def _copy(self, job_id: JobId, attempt: bytes, shared: bytes, ref: ObjectRef) -> bool:
        """Give a job that was answered with another's result an object of its own, which lives as long as itself."""
        given = ObjectRef.parse(shared)
        try:
            data = await self._objects.read(given.name, 0, given.size_bytes)
        except ObjectGone:  # deleted with its job, a moment after it was served
            await self._strike_off(job_id)
            return False
        await self._objects.write(ref.name, data)
        return await self._refer(job_id, attempt, ref, shared, is_moved=False)

    async def _refer(
        self, job_id: JobId, attempt: bytes, ref: ObjectRef, instead_of: bytes, *, is_moved: bool
    ) -> bool:
        job_keys = [keys.job(job_id), keys.tokens(job_id), keys.UNARCHIVED]
        args: list[Argument] = [job_id, attempt, ref.to_json(), int(is_moved), instead_of]
        async with failures_named():
            answer = await run(self._redis, "archive", job_keys, args)
        if answer != b"archived":
            await self._objects.remove(ref.name)
        return bool(answer == b"archived")

    async def result(self, ref: ObjectRef) -> bytes:
        """The job's result, as JSON. Raises `ObjectGone`, `ObjectsUnavailable`."""
        try:
            return await self._objects.read(ref.name, 0, ref.result_bytes)
        except ObjectsUnavailable:
            self._unreadable_until_s = time.monotonic() + _UNREADABLE_S
            raise

    async def read_stream(self, job_id: JobId, after: str, limit: int) -> list[StreamEntry]:
        """Some entries of an archived stream after a cursor, in order, at most `limit`; none at its
        end only. Raises `ObjectGone`, `ObjectsUnavailable`.
        """
        async with failures_named():
            raw = await self._redis.hget(keys.job(job_id), "object")
        ref = ObjectRef.parse(raw) if raw else None
        block = ref.block_after(after) if ref else None
        if ref is None or block is None:
            return []
        lines = zlib.decompress(await self._objects.read(ref.name, *block)).splitlines()
        entries = map(_parse_line, lines)
        seen = cursor_order(after)
        return [entry for entry in entries if cursor_order(entry.cursor) > seen][:limit]

    async def forget(self, job_id: JobId, ref: ObjectRef) -> None:
        """Delete the object of a deleted job, unless it is another's."""
        if _is_of(job_id, ref):
            await self._objects.remove(ref.name)

    async def sweep(self) -> int:
        """Delete objects whose jobs have expired, by whole days, and orphans; gives the number of both."""
        now_ms, removed = await store_now_ms(self._redis), 0
        for folder in await self._objects.names():
            if folder < _day(now_ms):
                await self._objects.remove(folder)
                removed += 1
                continue
            for name in await self._objects.names(folder):
                if await self._is_orphan(f"{folder}/{name}", now_ms):
                    await self._objects.remove(f"{folder}/{name}")
                    removed += 1
        return removed

    async def _is_orphan(self, name: str, now_ms: int) -> bool:
        found = _NAME.search(name)
        if found is None or now_ms - int(found["written_ms"]) < _ORPHAN_AFTER_MS:
            return False
        async with failures_named():
            raw = await self._redis.hget(keys.job(JobId(found["job"])), "object")
        return raw is None or ObjectRef.parse(raw).name != name

    async def _raw(self, job_id: JobId) -> list[_Raw]:
        """All entries of the job's stream."""
        found: list[_Raw] = []
        start = "-"
        while True:
            async with failures_named():
                some = await self._redis.xrange(
                    keys.tokens(job_id), min=start, max="+", count=_ENTRIES_PER_READ
                )
            found += some
            if len(some) < _ENTRIES_PER_READ:
                return found
            start = f"({some[-1][0].decode()}"

    async def _strike_off(self, job_id: JobId) -> None:
        async with failures_named():
            await self._redis.zrem(keys.UNARCHIVED, job_id)


def _is_of(job_id: JobId, ref: ObjectRef) -> bool:
    """False for the object of another job, with whose result this one was answered."""
    found = _NAME.search(ref.name)
    return found is None or found["job"] == job_id


def _name(job_id: JobId, now_ms: int, left_ms: int) -> str:
    """A new name for each try, in the folder of the day after the record's expiry."""
    return f"{_day(now_ms + left_ms + _DAY_MS)}/{job_id}.{now_ms}.{token_hex(4)}"


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")


def _packed(name: str, result: bytes, entries: Sequence[_Raw]) -> tuple[ObjectRef, bytes]:
    """An object and the reference to it."""
    data, blocks, lines = bytearray(result), [], bytearray()
    for place, (cursor, fields) in enumerate(entries):
        lines += _line(cursor, fields)
        if len(lines) >= _BLOCK_BYTES or place == len(entries) - 1:
            blocks.append((cursor.decode(), len(data)))
            data += zlib.compress(lines, level=1)
            lines.clear()
    ref = ObjectRef(name=name, size_bytes=len(data), result_bytes=len(result), blocks=tuple(blocks))
    return ref, bytes(data)


def _line(cursor: bytes, fields: Mapping[bytes, bytes]) -> bytes:
    named = {key.decode(): value.decode() for key, value in fields.items()}
    return orjson.dumps([cursor.decode(), named], option=orjson.OPT_APPEND_NEWLINE)


def _parse_line(line: bytes) -> StreamEntry:
    cursor, named = orjson.loads(line)
    fields = {key.encode(): value.encode() for key, value in named.items()}
    return parse_entry(cursor.encode(), fields)

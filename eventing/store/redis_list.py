"""Pages of a tenant's jobs: a bounded number of records a call, and only the fields that a list shows.

Called by `eventing.store.redis_store`. A request or result can be a megabyte, so a page reads them only on request,
and only as many as fit (`eventing.job.list_cursor`).
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

from eventing.job.job import Job, JobId
from eventing.job.list_cursor import LIST_LOOKS, ListCursor, fitting
from eventing.job.prompt import is_match
from eventing.job.store import ListField, Page
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.store.job_record.fields import LABELS_BYTES
from eventing.store.job_record.parse import LIST_FIELDS, archived_bytes, parse_job

_SCAN: Final = 100
_STATE: Final = ("state", "tenant", "dead")
_SEARCHED: Final = ("model", "custom_id", "prompt")
FetchResult = Callable[[dict[bytes, bytes]], Awaitable[None]]
Marks = Mapping[str, str]
"""The fields by which jobs are filtered: `state`, `tenant`, `dead`, and those that a search reads."""


class RedisList:
    """A sorted set of job ids by time, read from its newest end."""

    def __init__(self, redis: Redis, key: str, fetch_result: FetchResult) -> None:
        """`fetch_result` completes a record whose result is in the object store."""
        self._redis = redis
        self._key = key
        self._fetch_result = fetch_result

    async def page(
        self,
        is_wanted: Callable[[Marks], bool],
        limit: int,
        cursor: str,
        include: Collection[ListField] = (),
        search: str = "",
    ) -> Page:
        """The next matching jobs, `limit` at most, and the cursor after them. A page may be short or empty before
        the end of the list. Ids of expired jobs are dropped.
        """
        found: list[ListCursor] = []
        place, looks = ListCursor.parse(cursor), 0
        while len(found) <= limit and looks < LIST_LOOKS:
            places = (await self._places(place))[: LIST_LOOKS - looks]
            if not places:
                place = None
                break
            found += await self._wanted(places, is_wanted, search)
            place, looks = places[-1], looks + len(places)
        if len(found) > limit:
            place = found[limit - 1]
        jobs, is_whole = await self._read(found[:limit], include)
        if not is_whole:
            place = found[len(jobs) - 1]
        return Page(jobs=tuple(job for job in jobs if job), next_cursor=str(place or ""))

    async def _places(self, after: ListCursor | None) -> list[ListCursor]:
        """The next ids of the list, newest first; empty at its end. Those of the same millisecond as `after` are
        read again and skipped, since a score has no finer cursor.
        """
        top, offset = str(after.at_ms) if after else "+inf", 0
        while True:
            async with failures_named():
                rows = await self._redis.zrange(
                    self._key,
                    top,
                    "-inf",
                    desc=True,
                    byscore=True,
                    offset=offset,
                    num=_SCAN,
                    withscores=True,
                )
            places = [ListCursor(int(score), JobId(member.decode())) for member, score in rows]
            fresh = [place for place in places if after is None or place < after]
            if fresh or len(rows) < _SCAN:
                return fresh
            offset += _SCAN

    async def _wanted(
        self, places: Sequence[ListCursor], is_wanted: Callable[[Marks], bool], search: str
    ) -> list[ListCursor]:
        fields = _STATE + (_SEARCHED if search else ())
        async with failures_named():
            async with self._redis.pipeline(transaction=False) as pipe:
                for place in places:
                    pipe.hmget(keys.job(place.job_id), fields)
                rows = await pipe.execute()
            gone = [place.job_id for place, row in zip(places, rows, strict=True) if row[0] is None]
            if gone:
                await self._redis.zrem(self._key, *gone)
        marks = [dict(zip(fields, ((v or b"").decode() for v in row), strict=True)) for row in rows]
        return [
            place
            for place, m in zip(places, marks, strict=True)
            if m["state"]
            and is_wanted(m)
            and is_match(search, place.job_id, *(m.get(name, "") for name in _SEARCHED))
        ]

    async def _read(
        self, places: Sequence[ListCursor], include: Collection[ListField]
    ) -> tuple[list[Job | None], bool]:
        """The jobs of these ids, as many as fit on a page; False when some did not."""
        rows = await self._narrow(places, sorted(include))
        fit = rows[: fitting([row.size for row in rows])]
        await self._widen([row for row in fit if row.wide])
        if ListField.RESULT in include:
            for row in fit:
                await self._fetch_result(row.record)
        jobs = [parse_job(row.place.job_id, row.record) for row in fit]
        return jobs, len(fit) == len(rows)

    async def _narrow(
        self, places: Sequence[ListCursor], include: Sequence[ListField]
    ) -> list["_Row"]:
        """The fields that every list shows, and the sizes of the others."""
        if not places:
            return []
        lengths_of = ("metadata", *include)
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            for place in places:
                pipe.hmget(keys.job(place.job_id), LIST_FIELDS)
                for name in lengths_of:
                    pipe.hstrlen(keys.job(place.job_id), name)
            answers = iter(await pipe.execute())
        rows = []
        for place in places:
            record = _record(LIST_FIELDS, next(answers))
            metadata_bytes, *sizes = (next(answers) for _ in lengths_of)
            if ListField.RESULT in include:
                sizes.append(archived_bytes(record))
            is_short = b"labels" not in record and metadata_bytes <= LABELS_BYTES
            wide = [*include, *(["metadata"] if is_short and metadata_bytes else [])]
            rows.append(_Row(place, record, wide, sum(sizes)))
        return rows

    async def _widen(self, rows: Sequence["_Row"]) -> None:
        if not rows:
            return
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            for row in rows:
                pipe.hmget(keys.job(row.place.job_id), row.wide)
            answers = await pipe.execute()
        for row, values in zip(rows, answers, strict=True):
            row.record.update(_record(row.wide, values))


@dataclass(frozen=True, slots=True)
class _Row:
    """A job that is being read: `wide` are the fields still to read, `size` their bytes."""

    place: ListCursor
    record: dict[bytes, bytes]
    wide: Sequence[str]
    size: int


def _record(names: Sequence[str], values: Sequence[bytes | None]) -> dict[bytes, bytes]:
    pairs = zip(names, values, strict=True)
    return {name.encode(): value for name, value in pairs if value is not None}

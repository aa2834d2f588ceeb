"""Chat completions created with `store: true`: retrieve, list, change metadata.

Called by OpenAI's endpoints. A completion is its job; stored separately are its entry in the tenant's list, and
metadata that were set later. It expires with the job's record.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
from redis.asyncio import Redis

from api.http.metadata import check_metadata
from api.view.job import public_metadata
from api.view.outcome import failure_of
from eventing.errors import BadRequest, NotFound
from eventing.job.job import Job, JobId, is_job_id
from eventing.job.list_cursor import LIST_LOOKS
from eventing.job.store import JobReader
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run

MARK: Final = "torpor.store"
"""Metadata key of a job whose answer is stored as a chat completion."""
_FIELD: Final = "completion_metadata"
_MOST: Final = 10_000
"""Length of a tenant's list; older completions are still found by id."""
_SCAN: Final = 20


@dataclass(frozen=True, slots=True)
class StoredCompletion:
    """An ended completion, with its current metadata."""

    job: Job
    metadata: Mapping[str, str]


class StoredCompletions:
    """Every method raises `StoreUnavailable`."""

    def __init__(self, redis: Redis, store: JobReader) -> None:
        self._redis = redis
        self._store = store

    async def add(self, job: Job) -> None:
        """Add a job's completion to its tenant's list, where it appears once it has ended. If the process dies
        before, it is missing from the list, but is found by id.
        """
        key = keys.completions_of(job.tenant)
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(key, {job.id: job.created_ms})
            pipe.zremrangebyrank(key, 0, -_MOST - 1)
            await pipe.execute()

    async def get(self, tenant: str, completion: str) -> StoredCompletion:
        """The tenant's completion with that id. Raises `NotFound`."""
        job_id = _job_id(completion)
        job = await self._store.get(job_id) if is_job_id(job_id) else None
        found = await self._completion_of(job)
        if found is None or found.job.tenant != tenant:
            raise NotFound(f"Completion with id '{completion:.64}' not found.")
        return found

    async def set_metadata(self, found: StoredCompletion, metadata: object) -> StoredCompletion:
        """The completion with other metadata. Raises `InvalidJob` naming the pair."""
        checked = check_metadata(metadata, "metadata")
        async with failures_named():
            key, text = keys.job(found.job.id), orjson.dumps(checked)
            await run(self._redis, "swap_field", [key], [_FIELD, text])
        return StoredCompletion(found.job, checked)

    async def page(
        self,
        tenant: str,
        is_wanted: Callable[[StoredCompletion], bool],
        *,
        limit: int,
        after: str,
        is_newest_first: bool,
    ) -> tuple[list[StoredCompletion], bool]:
        """The next matching completions, and whether there may be more. One call reads a bounded number. Raises
        `BadRequest` for an `after` that is not in the list.
        """
        key, found, gone = keys.completions_of(tenant), list[StoredCompletion](), list[JobId]()
        has_more = True
        start = await self._start(key, after, is_newest_first=is_newest_first)
        for at in range(start, start + LIST_LOOKS, _SCAN):
            async with failures_named():
                rows = await self._redis.zrange(key, at, at + _SCAN - 1, desc=is_newest_first)
            ids = [JobId(row.decode()) for row in rows]
            jobs = await asyncio.gather(*map(self._store.get, ids))
            gone += [name for name, job in zip(ids, jobs, strict=True) if job is None]
            read = await asyncio.gather(*map(self._completion_of, jobs))
            found += [each for each in read if each is not None and is_wanted(each)]
            if len(found) > limit or len(rows) < _SCAN:
                has_more = len(found) > limit
                break
        if gone:  # at the end: what goes moves the others
            async with failures_named():
                await self._redis.zrem(key, *gone)
        return found[:limit], has_more

    async def _start(self, key: str, after: str, *, is_newest_first: bool) -> int:
        if not after:
            return 0
        job_id = _job_id(after)
        async with failures_named():
            rank = self._redis.zrevrank if is_newest_first else self._redis.zrank
            place = await rank(key, job_id)
        if place is None:
            raise BadRequest("after must be the id of a stored chat completion", "after")
        return int(place) + 1

    async def _completion_of(self, job: Job | None) -> StoredCompletion | None:
        """None for a job that is none, or has not ended with an answer."""
        if job is None or MARK not in job.metadata or failure_of(job) is not None:
            return None
        async with failures_named():
            row = await self._redis.hget(keys.job(job.id), _FIELD)
        return StoredCompletion(job, orjson.loads(row) if row else public_metadata(job))


def _job_id(completion: str) -> JobId:
    return JobId(f"job_{completion.removeprefix('chatcmpl-')}")

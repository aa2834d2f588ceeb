"""Consumes the stream of ended jobs, to which the scripts add one entry for each job that ends.

Called by the api. `EndedConsumer` is a consumer group, for listeners that must see every entry (webhooks, metrics,
limits): each entry goes to one process of the group, at least once, and entries of a process that died are claimed
by another. A caller that waits for one job reads the stream's tail instead (`eventing.live.completion_notifier`).
Must not know the listeners.
"""

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import orjson
import structlog
from redis.exceptions import ResponseError

from eventing.errors import StoreUnavailable, Unavailable
from eventing.job.job import KEY, KEY_BUDGET, Job, JobId, JobRequest, JobState, Lane
from eventing.job.store import JobReader
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.script import Argument, run
from eventing.telemetry import trace

_GROUP: Final = "api"
"""The group of the api's listeners; another process has one of its own."""
_BATCH: Final = 100
_TAKEN_OVER_AFTER_MS: Final = 15_000
"""An entry that was delivered this long ago and not acked is claimed by another process."""
_TAKE_OVER_EVERY_S: Final = 5.0
_FORGOTTEN_AFTER_MS: Final = 3_600_000
_BACKOFF_S: Final = 0.5

_log = structlog.get_logger()
_Row = tuple[bytes, list[bytes]]


class EndListener(Protocol):
    """Is called for every ended job, at least once."""

    async def ended(self, job: Job) -> None:
        """Return once the ending is handled for good; raise `Unavailable` to be called again."""


@dataclass(frozen=True, slots=True)
class EndCount:
    """What an ended job adds to the row `row` of the hash `key`: amounts by measure."""

    key: str
    row: str
    measures: Mapping[str, int]


class EndTally(Protocol):
    """Counts every ended job, exactly once."""

    kept_s: int
    """How long a hash is kept after it was added to."""

    def count(self, job: Job, url: str) -> EndCount:
        """What the job, of a call to `url`, adds. Pure."""


class EndedConsumer:
    """One consumer of the group. Run `run` in a task."""

    def __init__(
        self,
        redis: SharedRedis,
        store: JobReader,
        listeners: Sequence[EndListener],
        group: str = _GROUP,
        tally: EndTally | None = None,
    ) -> None:
        self._redis = redis
        self._tail = redis.dedicated_connection()
        self._store = store
        self._listeners = listeners
        self._group = group
        self._tally = tally
        self._name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._take_over_due_s = 0.0

    async def run(self) -> None:
        """Consume until cancelled; waits while the store is unavailable."""
        while True:
            try:
                async with failures_named():
                    await self._turn()
            except StoreUnavailable as error:
                _log.debug("waits for the store", action="ended", reason=error.code)
                await asyncio.sleep(_BACKOFF_S)

    async def _turn(self) -> None:
        try:
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._take_over_due_s:
                await self._notify_all(await self._take_over())
                self._take_over_due_s = now_s + _TAKE_OVER_EVERY_S
            await self._notify_all(await self._next())
        except ResponseError as error:
            # Redis before 7.2 has another error for a blocked read whose stream is deleted, and XINFO has its own.
            if not str(error).startswith(("NOGROUP", "UNBLOCKED", "no such key")):
                raise
            await self._make_group()

    async def _next(self) -> Sequence[_Row]:
        wait = ("COUNT", _BATCH, "BLOCK", self._redis.longest_block_ms)
        read = ("XREADGROUP", "GROUP", self._group, self._name, *wait, "STREAMS", keys.ENDED, ">")
        (found,) = await self._tail.send([read])
        return found[0][1] if found else ()

    async def _take_over(self) -> Sequence[_Row]:
        """Claim entries that a consumer, this one included, did not ack in time; delete consumers that are long
        gone.
        """
        claim = ("XAUTOCLAIM", keys.ENDED, self._group, self._name, _TAKEN_OVER_AFTER_MS, "0-0")
        ((_, rows, *_),) = await self._redis.send([(*claim, "COUNT", _BATCH)])
        for consumer in await self._redis.xinfo_consumers(keys.ENDED, self._group):
            if consumer["idle"] > _FORGOTTEN_AFTER_MS and not consumer["pending"]:
                await self._redis.xgroup_delconsumer(keys.ENDED, self._group, consumer["name"])
        return [row for row in rows if row[1]]

    async def _make_group(self) -> None:
        """Create the group at the first entry: after the store lost the group, the stream may hold endings that no
        listener has seen, and a repeated call does no harm.
        """
        try:
            await self._redis.xgroup_create(keys.ENDED, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _notify_all(self, rows: Sequence[_Row]) -> None:
        if not rows:
            return
        entries = [_fields(flat) for _, flat in rows]
        jobs = await asyncio.gather(*map(self._job, entries))
        is_done = await asyncio.gather(*map(self._notify_one, jobs))
        counted = map(self._counted, jobs, entries)
        ended = zip((cursor for cursor, _ in rows), counted, is_done, strict=True)
        if done := [(cursor, count) for cursor, count, is_one in ended if is_one]:
            await self._ack(done)

    async def _ack(self, done: Sequence[tuple[bytes, EndCount]]) -> None:
        """Acknowledge these entries and count their jobs, in one script."""
        if self._tally is None:
            await self._redis.xack(keys.ENDED, self._group, *(cursor for cursor, _ in done))
            return
        args: list[Argument] = [self._group, self._tally.kept_s]
        for cursor, counted in done:
            args += [cursor, counted.key, counted.row, orjson.dumps(counted.measures)]
        await run(self._redis, "ack_ended", [keys.ENDED], args)

    def _counted(self, job: Job | None, entry: Mapping[str, str]) -> EndCount:
        """A bug in the tally must not deliver the entry for ever."""
        if self._tally is None or job is None:
            return _NOTHING
        try:
            return self._tally.count(job, job.request.url or entry.get("url", ""))
        except Exception as error:
            _log.error("not counted", action="ended", reason=type(error).__name__)
            return _NOTHING

    async def _notify_one(self, job: Job | None) -> bool:
        """False when a listener must be called again."""
        if job is None:
            return True
        is_done = True
        with trace.span("result", parent=job.traceparent, job_id=job.id, state=job.state):
            for listener in self._listeners:
                is_done &= await _notified(listener.ended, job)
        return is_done

    async def _job(self, entry: Mapping[str, str]) -> Job | None:
        """The job as it ended, also when its record was deleted or redriven since. None when it has not ended,
        because a power cut lost the second half of the script.
        """
        job = await self._store.get(JobId(entry["job"]), with_result=False)
        attempt, state = int(entry["attempt"]), JobState(entry["state"])
        if job is not None and job.attempt == attempt:
            return _as_counted(job, entry) if job.state is state else None
        at_ms = int(entry["at_ms"])
        known = job or Job(
            id=JobId(entry["job"]),
            state=state,
            request=JobRequest(url="", body={"model": entry["model"]}),
            tenant=entry["tenant"],
            lane=Lane(entry["lane"]),
            created_ms=at_ms,
        )
        key = {KEY: entry["key"], KEY_BUDGET: "1"} if entry.get("key") else {}
        ended = replace(
            known,
            state=state,
            attempt=attempt,
            finished_ms=at_ms,
            is_dead_letter=entry["dead"] == "1",
            metadata=known.metadata or key,
            result=None,
            usage=None,
            error=None,
        )
        return _as_counted(ended, entry)


def _as_counted(job: Job, entry: Mapping[str, str]) -> Job:
    """The job with what it used until this end and no other counts; an older version's entry does not say it."""
    if "gpu_ms" not in entry:
        return job
    usage = orjson.loads(entry["usage"]) if entry["usage"] else None
    return replace(job, usage=usage, gpu_ms=int(entry["gpu_ms"]))


_NOTHING: Final = EndCount("", "", {})


async def _notified(notify: Callable[[Job], Awaitable[None]], job: Job) -> bool:
    """False when the listener must be called again. A bug in one listener must not block the others."""
    try:
        await notify(job)
    except Unavailable:
        return False
    except Exception as error:
        _log.error("listener broke", action="ended", job_id=job.id, reason=type(error).__name__)
    return True


def _fields(flat: Sequence[bytes]) -> Mapping[str, str]:
    text = [item.decode() for item in flat]
    return dict(zip(text[::2], text[1::2], strict=True))

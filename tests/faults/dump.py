"""The store's content after a run, as the checker reads it."""

from dataclasses import dataclass, field
from typing import Final

import orjson
from redis.asyncio import Redis

from eventing.broker.queue.view import QueueView
from eventing.job.job import Job, JobId, is_job_id
from eventing.job.stream import EntryKind, StreamEntry
from eventing.redis import keys
from eventing.store.redis_store import RedisStore

_LISTED = (
    "jobs:",
    "dead:",
    "outbox:",
    "deadlines",
    "ended",
    "leaving",
    "results:",
    "queues",
    "replicas:",
    "webhooks",
    "api-keys",
    "vectorstores:of:",
    "clock",
    "ping",
    "unarchived",
    "cache:revisions",
)
"""Keys that live without a TTL, by what follows the prefix: indexes, which their readers prune, and streams of
a bounded length; of `cache:revisions`, a field for each model."""

_FEED_KEPT: Final = 10_000
"""Ends of a tenant that `/v1/events` can show (`FEED_KEPT` of `eventing/redis/scripts/_end.lua`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDump:
    """One job: its record and its token stream."""

    state: str
    attempts: tuple[str, ...] = ()
    """Outcome of each attempt, in order."""
    reason: str = ""
    is_dead_letter: bool = False
    is_request_kept: bool = True
    refused_writes: int = 0
    result_text: str | None = None
    entries: tuple[StreamEntry, ...] = ()
    is_told: bool = True
    """Its end stands in the stream of ends and in its tenant's feed, or did before newer ones pushed it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDump:
    """Everything the checker looks at."""

    jobs: dict[JobId, JobDump]
    dead_letters: frozenset[JobId] = frozenset()
    orphan_streams: frozenset[JobId] = frozenset()
    """Jobs that have a token stream and no record."""
    leases: int = 0
    pending: int = 0
    waiting: int = 0
    immortal_keys: frozenset[str] = field(default=frozenset())


async def dump(redis: Redis, queue: str, tenant: str) -> StoreDump:
    """Read everything."""
    store = RedisStore(redis)
    names = [key.decode() async for key in redis.scan_iter(match=f"{keys.PREFIX}:*")]
    ids = [JobId(name[8:-1]) for name in names if is_job_id(name[8:-1])]
    jobs = {job_id: job for job_id in ids if (job := await store.get(job_id))}
    dead: set[JobId] = set()
    cursor = ""
    while True:
        page = await store.list_dead_letters(tenant, limit=100, cursor=cursor)
        dead |= {job.id for job in page.jobs}
        if not (cursor := page.next_cursor):
            break
    depth = await QueueView(redis).depth(queue)
    told = await _told(redis, {job.tenant for job in jobs.values()})
    return StoreDump(
        jobs={job_id: await _job(store, job, told) for job_id, job in jobs.items()},
        dead_letters=frozenset(dead),
        orphan_streams=frozenset(_with_streams(names) - jobs.keys()),
        leases=sum(bool(job.lease_owner) for job in jobs.values()),
        pending=depth.pending,
        waiting=depth.total_waiting,
        immortal_keys=frozenset(await _immortal(redis, names)),
    )


def _with_streams(names: list[str]) -> set[JobId]:
    found = {name[8:].split("}")[0] for name in names if name.endswith("}:tokens")}
    return {JobId(each) for each in found if is_job_id(each)}


@dataclass(frozen=True, slots=True)
class _Told:
    """Ends that everybody is told: listeners, and readers of `/v1/events`."""

    ends: set[tuple[bytes, bytes]]
    """Job and attempt."""
    since_ms: int
    """Older ones may have been pushed out of a feed."""

    def has(self, job: Job) -> bool:
        is_there = (job.id.encode(), str(job.attempt).encode()) in self.ends
        return is_there or 0 < job.finished_ms < self.since_ms


async def _told(redis: Redis, tenants: set[str]) -> _Told:
    listeners, _ = await _ends(redis, [keys.ENDED])
    readers, since_ms = await _ends(redis, [keys.results_of(tenant) for tenant in tenants])
    return _Told(listeners & readers, since_ms)


async def _ends(redis: Redis, streams: list[str]) -> tuple[set[tuple[bytes, bytes]], int]:
    found, since_ms = set(), 0
    for name in streams:
        entries = await redis.xrange(name)
        found |= {(entry[b"job"], entry[b"attempt"]) for _, entry in entries}
        if len(entries) >= _FEED_KEPT:
            since_ms = max(since_ms, int(entries[0][0].split(b"-")[0]))
    return found, since_ms


async def _job(store: RedisStore, job: Job, told: _Told) -> JobDump:
    entries: list[StreamEntry] = []
    while page := await store.read_stream(job.id, entries[-1].cursor if entries else ""):
        entries += page
    return JobDump(
        state=str(job.state),
        attempts=tuple(attempt.outcome for attempt in job.history),
        reason=job.error.code if job.error else "",
        is_dead_letter=job.is_dead_letter,
        is_request_kept=bool(job.request.body),
        refused_writes=job.refused_writes,
        result_text=_text(job),
        entries=tuple(entries),
        is_told=told.has(job),
    )


def _text(job: Job) -> str | None:
    """The text of an answer, None where there is none."""
    body = (job.result or {}).get("body", job.result or {})
    choices = body.get("choices") if isinstance(body, dict) else None
    if not choices:
        return None
    return str((choices[0].get("message") or {}).get("content") or choices[0].get("text") or "")


def shown_text(entries: tuple[StreamEntry, ...]) -> str:
    """What a reader who followed the stream from its start has on the screen at its end."""
    pieces: list[tuple[int, str]] = []
    for entry in entries:
        if entry.kind is EntryKind.ATTEMPT:
            pieces = [piece for piece in pieces if piece[0] < entry.index]
        for choice in orjson.loads(entry.delta or "[]"):
            delta = choice.get("delta", choice)
            pieces.append((entry.index, delta.get("content") or delta.get("text") or ""))
    return "".join(text for _, text in pieces)


async def _immortal(redis: Redis, names: list[str]) -> list[str]:
    found = []
    for name in names:
        rest = name.removeprefix(f"{keys.PREFIX}:")
        is_queue = rest.startswith("{") and not is_job_id(rest[1 : rest.index("}")])
        if is_queue or rest.startswith(_LISTED):
            continue
        if await redis.ttl(name) < 0 and await redis.exists(name):
            found.append(name)
    return found

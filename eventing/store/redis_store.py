"""The job store on Redis or Valkey: one Lua script for each transition, with compare-and-set on state, attempt and
lease id.

Called by api, predictor and broker through the protocols of `eventing.job.store`. Lists and due times are read in
`eventing.store.redis_index`; the scripts write them in the same step.
"""

import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import orjson
from redis.asyncio import Redis

from eventing.cloudevent.event import to_record
from eventing.cloudevent.job_event import request_event
from eventing.errors import ConversationLocked, ObjectGone, ObjectsUnavailable
from eventing.job.job import Job, JobError, JobId, JobRequest, JobState, derive_job_id
from eventing.job.plan import Plan
from eventing.job.store import (
    ARRIVED,
    Acquired,
    Ending,
    Lease,
    LeaseSettings,
    LeaseStatus,
    ListField,
    NewJob,
    Page,
    Publication,
    ReleaseReason,
    TokenBatch,
)
from eventing.job.stream import EntryKind, StreamEntry
from eventing.known_fields import known_value
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.replicated import ReplicatedWrites
from eventing.redis.script import Argument, Call, run_all, send
from eventing.redis.stream_entry import parse_entry
from eventing.store.job_record.fields import ending_fields, fingerprint, new_fields, withheld_field
from eventing.store.job_record.parse import fresh, parse_job, request_of
from eventing.store.objects.object_ref import ObjectRef
from eventing.store.redis_cache import RedisAnswers, following
from eventing.store.redis_call import (
    LOCKED,
    acquire_call,
    acquired_from,
    append_args,
    batch_args,
    job_keys,
    redrive_call,
    refusal_of,
    submit_call,
)
from eventing.store.redis_index import RedisIndex
from eventing.store.redis_list import Marks, RedisList


class ArchiveReader(Protocol):
    """Where large results lie (`eventing.store.archive.Archive`)."""

    @property
    def is_readable(self) -> bool: ...

    async def result(self, ref: ObjectRef) -> bytes: ...

    async def read_stream(self, job_id: JobId, after: str, limit: int) -> list[StreamEntry]: ...

    async def forget(self, job_id: JobId, ref: ObjectRef) -> None: ...


class RedisStore:
    """A `Store` over one Redis client, which it owns."""

    def __init__(
        self,
        redis: Redis,
        settings: LeaseSettings | None = None,
        archive: ArchiveReader | None = None,
    ) -> None:
        """Without an `archive`, archived jobs have no result and no stream here, only `archived_bytes`."""
        self._redis = redis
        self._archive = archive
        self._promises: Redis | ReplicatedWrites = redis
        if settings and settings.acks and isinstance(redis, SharedRedis):
            self._promises = ReplicatedWrites(redis, settings.acks)
        self._settings = settings or LeaseSettings()
        self._index = RedisIndex(redis, self._settings.lease_ms)
        self.answers = RedisAnswers(redis, self._settings)

    @property
    def redis(self) -> Redis:
        """The client, shared with the token multiplexer and the queue."""
        return self._redis

    async def submit(self, new: NewJob, publication: Publication = ARRIVED) -> tuple[Job, bool]:
        new = await self._as_recorded_earlier(new)
        has_objects = self._archive is not None and self._archive.is_readable
        call = submit_call(new, publication, self._settings, has_objects=has_objects)
        ((status, created_ms, *more),) = await self._promise([call])
        match status:
            case b"created":
                return fresh(new, int(created_ms)), True
            case b"exists":
                job = await self.get(new.id)
                return job or fresh(new, int(created_ms)), False
            case b"hit":
                return await self._served(new, more[0]), True
            case b"follows":
                return following(new, int(created_ms), *more), True
            case _:
                raise refusal_of(status, publication)

    async def _served(self, new: NewJob, flat: Sequence[bytes]) -> Job:
        """The job that a kept answer ended, from its record. When the answer can not be read, a repeated call is not
        served it again.
        """
        record = dict(zip(flat[::2], flat[1::2], strict=True))
        try:
            await self._fetch_result(record)
        except ObjectGone as error:
            if new.cache is not None:
                await self.answers.forget_answer(new.tenant, new.cache.key)
            raise ObjectsUnavailable("a kept answer is gone; try again") from error
        job = parse_job(new.id, record)
        assert job is not None  # noqa: S101 (the script has just written it)
        return job

    async def _as_recorded_earlier(self, new: NewJob) -> NewJob:
        """The job under the id that versions before this one gave it: they did not tell tenants' events
        of one `source` and `id` apart. What they took is still under way.
        """
        earlier = derive_job_id(new.source, new.event_id)
        if earlier == new.id:
            return new
        async with failures_named():
            tenant = await self._redis.hget(keys.job(earlier), "tenant")
        return replace(new, id=earlier) if tenant == new.tenant.encode() else new

    async def reject(self, new: NewJob, error: JobError, raw: bytes) -> bool:
        args: list[Argument] = [
            fingerprint(raw, new.tenant),
            self._settings.dead_letter_retention_s,
            orjson.dumps(error.to_dict()),
            *new_fields(replace(new, request=request_of(raw)), raw),
        ]
        names = [keys.job(new.id), keys.jobs_of(new.tenant)]
        (answer,) = await self._promise([("reject", names, args)])
        return answer not in (b"conflict", b"deleted")

    async def get(self, job_id: JobId, *, with_result: bool = True) -> Job | None:
        async with failures_named():
            record = await self._redis.hgetall(keys.job(job_id))
        if with_result:
            await self._fetch_result(record)
        return parse_job(job_id, record)

    async def _fetch_result(self, record: dict[bytes, bytes]) -> None:
        """Put an archived result where it was in the record."""
        if self._archive is not None and b"object" in record and b"result" not in record:
            ref = ObjectRef.parse(record[b"object"])
            if ref.result_bytes:
                record[b"result"] = await self._archive.result(ref)

    async def states(self, job_ids: Sequence[JobId]) -> list[JobState | None]:
        async with failures_named():
            found = await send(self._redis, [("HGET", keys.job(each), "state") for each in job_ids])
        return [known_value(JobState, state.decode()) if state else None for state in found]

    async def list_jobs(
        self,
        tenant: str,
        *,
        states: Sequence[JobState] = (),
        limit: int = 20,
        cursor: str = "",
        include: Collection[ListField] = (),
        search: str = "",
    ) -> Page:
        def is_wanted(marks: Marks) -> bool:
            # A conflicting event of another tenant leaves the id in that tenant's index.
            return marks["tenant"] == tenant and (not states or marks["state"] in states)

        jobs = RedisList(self._redis, keys.jobs_of(tenant), self._fetch_result)
        return await jobs.page(is_wanted, limit, cursor, include, search)

    async def list_dead_letters(
        self,
        tenant: str,
        *,
        limit: int = 20,
        cursor: str = "",
        include: Collection[ListField] = (ListField.REQUEST,),
    ) -> Page:
        def is_wanted(marks: Marks) -> bool:
            return marks["tenant"] == tenant and marks["dead"] == "1"

        dead = RedisList(self._redis, keys.dead_letters_of(tenant), self._fetch_result)
        return await dead.page(is_wanted, limit, cursor, include)

    async def is_gone(self, job_id: JobId) -> bool:
        write = ("SET", f"{keys.PREFIX}:ping", "1", "EX", 60)
        async with failures_named():
            # A deleted job has a record still, without a state, for as long as its identity stays taken.
            _, found = await send(self._promises, [write, ("HEXISTS", keys.job(job_id), "state")])
        return not found

    async def acquire(
        self,
        job_id: JobId,
        owner: str,
        *,
        can_resume: bool,
        is_exclusive: bool = False,
        expected: NewJob | None = None,
    ) -> Acquired:
        call = acquire_call(
            job_id,
            owner,
            self._settings,
            lease_id=(lease_id := secrets.token_hex(8)),
            can_resume=can_resume,
            is_exclusive=is_exclusive,
            expected=expected,
        )
        (answer,) = await self._run_all([call])
        return acquired_from(answer, job_id, lease_id)

    async def renew(self, leases: Sequence[Lease], *, extend: bool) -> list[LeaseStatus]:
        lease_ms = self._settings.lease_ms if extend else 0
        calls: list[Call] = [
            ("renew", [keys.job(lease.job_id)], [lease.attempt, lease.id, lease_ms])
            for lease in leases
        ]
        return [LeaseStatus(answer.decode()) for answer in await self._run_all(calls)]

    async def append_all(self, appends: Sequence[tuple[Lease, TokenBatch]]) -> list[LeaseStatus]:
        calls: list[Call] = [
            ("append", job_keys(lease.job_id), [lease.attempt, lease.id, *append_args(batch)])
            for lease, batch in appends
        ]
        return [LeaseStatus(answer.decode()) for answer in await self._run_all(calls)]

    async def finish(self, lease: Lease, ending: Ending) -> LeaseStatus:
        args: list[Argument] = [
            lease.attempt,
            lease.id,
            *self._ending_args(ending),
            ending.error.code if ending.error else str(ending.state),
            *(batch_args(ending.final_batch) if ending.final_batch else ["", 0, "", ""]),
            ending.gpu_ms,
        ]
        return await self._end("finish", lease.job_id, args, ending)

    async def _end(
        self, script: str, job_id: JobId, args: Sequence[Argument], ending: Ending
    ) -> LeaseStatus:
        """Run a script that ends a job; again with the event of the first step after the predictor where that is not
        given and the script says that one judges the answer first.
        """
        fields = ending_fields(ending)
        recheck_ms = self._settings.republish_after_s * 1000
        kept = withheld_field(ending) if ending.following else []
        call = [*args, ending.following, recheck_ms, *fields, *kept]
        (answer,) = await self._promise([(script, job_keys(job_id), call)])
        if answer == b"unjudged":
            job = await self.get(job_id, with_result=False)
            if job is None or job.plan is None:
                return LeaseStatus.MISSING
            event = to_record(request_event(replace(job, step=job.plan.first_after)))
            call = [*args, event, recheck_ms, *fields, *withheld_field(ending)]
            (answer,) = await self._promise([(script, job_keys(job_id), call)])
        return LeaseStatus(answer.decode())

    async def release(self, lease: Lease, why: ReleaseReason, error: JobError) -> bool:
        s = self._settings
        args: list[Argument] = [lease.attempt, lease.id, why, s.max_attempts]
        args += [s.dead_letter_retention_s, orjson.dumps(error.to_dict())]
        (answer,) = await self._run_all([("release", job_keys(lease.job_id), args)])
        return bool(answer == b"queued")

    async def lease_of(self, job_id: JobId, owner: str) -> Lease | None:
        """The lease that `owner` has on a job, for a caller that knows the owner is dead; None when it has none."""
        async with failures_named():
            held, attempt, lease_id = await self._redis.hmget(
                keys.job(job_id), "lease_owner", "attempt", "lease_id"
            )
        if held is None or held.decode() != owner or not lease_id:
            return None
        return Lease(job_id, int(attempt), lease_id.decode())

    async def cancel(self, job_id: JobId) -> Job | None:
        await self._conclude(job_id, Ending(state=JobState.CANCELLED), None, is_forced=True)
        return await self.get(job_id, with_result=False)

    async def conclude(
        self, job_id: JobId, ending: Ending, *, attempt: int | None = None
    ) -> LeaseStatus:
        return await self._conclude(job_id, ending, attempt, is_forced=False)

    async def _conclude(
        self, job_id: JobId, ending: Ending, attempt: int | None, *, is_forced: bool
    ) -> LeaseStatus:
        args: list[Argument] = [*self._ending_args(ending), int(is_forced)]
        args += ["" if attempt is None else attempt, self._settings.lease_ms]
        return await self._end("conclude", job_id, args, ending)

    async def redrive(
        self,
        job: Job,
        request: JobRequest | None,
        publication: Publication = ARRIVED,
        plan: Plan | None = None,
    ) -> bool:
        call = redrive_call(job, request, publication, plan, self._settings)
        (answer,) = await self._promise([call])
        if answer == b"locked":
            raise ConversationLocked(LOCKED)
        return bool(answer == b"queued")

    async def delete(self, job_id: JobId) -> bool:
        async with failures_named():
            tenant, ref = await self._redis.hmget(keys.job(job_id), "tenant", "object")
        if tenant is None:
            return False
        name = tenant.decode()
        names = [*job_keys(job_id), keys.jobs_of(name), keys.dead_letters_of(name)]
        (answer,) = await self._promise([("delete", names, [job_id, self._settings.retention_s])])
        if answer and ref and self._archive is not None:
            with suppress(ObjectsUnavailable):  # then it is an orphan, which is swept
                await self._archive.forget(job_id, ObjectRef.parse(ref))
        return bool(answer)

    async def read_stream(
        self, job_id: JobId, after: str = "", limit: int = 1000
    ) -> list[StreamEntry]:
        start = f"({after}" if after else "-"
        async with failures_named():
            rows = await self._redis.xrange(keys.tokens(job_id), min=start, max="+", count=limit)
        entries = [parse_entry(cursor, fields) for cursor, fields in rows]
        if entries and entries[-1].kind is EntryKind.ARCHIVED:
            return await self._archive.read_stream(job_id, after, limit) if self._archive else []
        return entries

    async def take_unpublished(self, limit: int) -> list[JobId]:
        return await self._index.take_due(keys.UNPUBLISHED, limit)

    async def mark_published(self, *job_ids: JobId) -> None:
        async with failures_named():
            await self._redis.zrem(keys.UNPUBLISHED, *job_ids)

    async def claim_unstarted(self, limit: int) -> list[JobId]:
        return await self._index.claim_unstarted(limit)

    async def look_later(self, job_id: JobId, after_ms: int) -> None:
        await self._index.look_later(job_id, max(after_ms, self._settings.republish_after_s * 1000))

    async def expire(self, limit: int) -> list[JobId]:
        s = self._settings
        args: list[Argument] = [
            limit,
            s.dead_letter_retention_s,
            s.lease_ms,
            s.retention_s,
        ]
        (failed,) = await self._run_all([("expire", [keys.DEADLINES], args)])
        return [JobId(member.decode()) for member in failed]

    async def prune(self, limit: int) -> int:
        (looked_at,) = await self._run_all([("prune", [keys.LEAVING], [limit])])
        return int(looked_at)

    async def ping(self) -> None:
        async with failures_named():
            await self._redis.set(f"{keys.PREFIX}:ping", b"1", ex=60)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _run_all(self, calls: Sequence[Call]) -> list[Any]:
        async with failures_named():
            return await run_all(self._redis, calls)

    async def _promise(self, calls: Sequence[Call]) -> list[Any]:
        """As `_run_all`, and the replicas of `store_acks` have what was written."""
        async with failures_named():
            return await run_all(self._promises, calls)

    def _ending_args(self, ending: Ending) -> list[Argument]:
        s = self._settings
        retention_s = s.dead_letter_retention_s if ending.is_dead_letter else s.retention_s
        return [ending.state, retention_s, int(ending.is_dead_letter)]

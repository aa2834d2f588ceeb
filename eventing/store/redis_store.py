"""The job store on Redis or Valkey: one Lua script a transition, compare-and-set on (state,
attempt).

Called by api, predictor and broker through the `Store` protocol. What lists jobs, or notes that
something is due, is in `eventing.store.redis_index` and written before the record.
"""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import orjson
from redis.asyncio import Redis

from eventing.errors import IdempotencyConflict
from eventing.job.job import Job, JobError, JobId, JobRequest, JobState
from eventing.job.store import (
    Acquired,
    AcquireStatus,
    Ending,
    EntryKind,
    Lease,
    LeaseSettings,
    LeaseStatus,
    ListField,
    NewJob,
    Page,
    Release,
    StreamEntry,
    TokenBatch,
)
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import Argument, Call, run, run_all
from eventing.store import job_record
from eventing.store.redis_index import SWEEP_AFTER_MS, RedisIndex, schedule_check
from eventing.store.redis_list import Marks, RedisList


class RedisStore:
    """A `Store` over one Redis client, which it owns."""

    def __init__(self, redis: Redis, settings: LeaseSettings | None = None) -> None:
        self._redis = redis
        self._settings = settings or LeaseSettings()
        self._index = RedisIndex(redis, self._settings)

    @property
    def redis(self) -> Redis:
        """The client, for the token hub and the queue that share it."""
        return self._redis

    async def create(self, new: NewJob) -> tuple[Job, bool]:
        answers = await self._run_all(self._create_calls(new))
        status, created_ms = answers[2][0].decode(), int(answers[2][1])
        if status == "conflict":
            raise IdempotencyConflict(
                "the same identity was used before with another request or other options", "body"
            )
        if status == "created":
            return job_record.fresh(new, created_ms), True
        job = await self.get(new.id)
        return job or job_record.fresh(new, created_ms), False

    async def create_with(self, new: NewJob, calls: Sequence[Call]) -> Job:
        """Record a job whose id nobody knows yet, then run `calls`, in one round trip. When it
        raises, any of it may have been done.
        """
        answers = await self._run_all([*self._create_calls(new), *calls])
        return job_record.fresh(new, int(answers[2][1]))

    async def reject(self, new: NewJob, error: JobError, raw: bytes) -> bool:
        args: list[Argument] = [
            job_record.fingerprint(raw, new.tenant),
            self._settings.dead_letter_retention_s,
        ]
        shown = replace(new, request=job_record.request_of(raw))
        fields = [*job_record.new_fields(shown, raw), "error", orjson.dumps(error.to_dict())]
        answers = await self._run_all(
            [
                schedule_check(keys.UNANNOUNCED, new.id, after_ms=SWEEP_AFTER_MS),
                self._index.listed(keys.jobs_of(new.tenant), new.id, "NX"),
                self._index.listed(keys.dead_letters_of(new.tenant), new.id),
                ("reject", _job_keys(new.id), [*args, *fields]),
            ]
        )
        return bool(answers[-1] != b"conflict")

    async def get(self, job_id: JobId) -> Job | None:
        async with failures_named():
            record = await self._redis.hgetall(keys.job(job_id))
        return job_record.parse(job_id, record)

    async def list_jobs(
        self,
        tenant: str,
        *,
        states: Sequence[JobState] = (),
        limit: int = 20,
        cursor: str = "",
        include: Collection[ListField] = (),
    ) -> Page:
        def is_wanted(marks: Marks) -> bool:
            # A conflicting event of another tenant leaves the id in that tenant's index.
            return marks["tenant"] == tenant and (not states or marks["state"] in states)

        jobs = RedisList(self._redis, keys.jobs_of(tenant))
        return await jobs.page(is_wanted, limit, cursor, include)

    async def list_dead_letters(self, tenant: str, *, limit: int = 20, cursor: str = "") -> Page:
        def is_wanted(marks: Marks) -> bool:
            return marks["tenant"] == tenant and marks["dead"] == "1"

        dead = RedisList(self._redis, keys.dead_letters_of(tenant))
        return await dead.page(is_wanted, limit, cursor, [ListField.REQUEST])

    async def acquire(
        self,
        job_id: JobId,
        owner: str,
        *,
        can_resume: bool,
        is_exclusive: bool = False,
        expected: NewJob | None = None,
    ) -> Acquired:
        s = self._settings
        args: list[Argument] = [
            owner,
            s.lease_ms,
            s.max_attempts,
            int(can_resume),
            s.dead_letter_retention_s,
            int(is_exclusive),
            job_record.fingerprint(expected.request.to_json(), expected.tenant) if expected else "",
            lease_id := secrets.token_hex(8),
        ]
        note = schedule_check(keys.UNSTARTED, job_id, after_ms=2 * s.lease_ms)
        answer = (await self._run_all([note, ("acquire", _job_keys(job_id), args)]))[-1]
        status = AcquireStatus(answer[0].decode())
        match status:
            case AcquireStatus.ACQUIRED:
                attempt, tokens, void = (int(number) for number in answer[1:4])
                lease = Lease(job_id, attempt, lease_id)
                return Acquired(status=status, lease=lease, token_count=tokens, void_count=void)
            case AcquireStatus.HELD:
                return Acquired(status=status, lease_left_ms=int(answer[1]))
            case AcquireStatus.EXPIRED | AcquireStatus.EXHAUSTED:
                await self._note_dead(job_id)
            case AcquireStatus.TERMINAL if answer[1] == 1:
                # Whoever failed it died before it could note so, and this is the next delivery.
                await self._note_dead(job_id, "NX")
        return Acquired(status=status)

    async def renew(self, leases: Sequence[Lease], *, extend: bool) -> list[LeaseStatus]:
        lease_ms = self._settings.lease_ms if extend else 0
        calls: list[Call] = [
            ("renew", [keys.job(lease.job_id)], [lease.attempt, lease.id, lease_ms])
            for lease in leases
        ]
        return [LeaseStatus(answer.decode()) for answer in await self._run_all(calls)]

    async def append(self, lease: Lease, batch: TokenBatch) -> LeaseStatus:
        return (await self.append_all([(lease, batch)]))[0]

    async def append_all(self, appends: Sequence[tuple[Lease, TokenBatch]]) -> list[LeaseStatus]:
        calls: list[Call] = [
            ("append", _job_keys(lease.job_id), [lease.attempt, lease.id, *_batch_args(batch)])
            for lease, batch in appends
        ]
        return [LeaseStatus(answer.decode()) for answer in await self._run_all(calls)]

    async def finish(self, lease: Lease, ending: Ending) -> LeaseStatus:
        return (await self.finish_and_get(lease, ending))[0]

    async def finish_and_get(self, lease: Lease, ending: Ending) -> tuple[LeaseStatus, Job | None]:
        job_id = lease.job_id
        calls: list[Call] = [schedule_check(keys.UNANNOUNCED, job_id, after_ms=SWEEP_AFTER_MS)]
        if ending.is_dead_letter:
            tenant = await self._tenant(job_id)
            calls.append(self._index.listed(keys.dead_letters_of(tenant), job_id))
        outcome = ending.error.code if ending.error else str(ending.state)
        dead = int(ending.is_dead_letter)
        args: list[Argument] = [lease.attempt, lease.id, ending.state]
        args += [self._retention_s(ending), dead, outcome]
        args += _batch_args(ending.final_batch) if ending.final_batch else ["", 0, "", ""]
        args.append(ending.gpu_ms)
        calls.append(("finish", _job_keys(job_id), [*args, *job_record.ending_fields(ending)]))
        async with failures_named():
            answers = await run_all(self._redis, calls, [("HGETALL", keys.job(job_id))])
        flat = answers[-1]
        record = dict(zip(flat[::2], flat[1::2], strict=True))
        return LeaseStatus(answers[-2][0].decode()), job_record.parse(job_id, record)

    async def release(self, lease: Lease, why: Release, error: JobError) -> bool:
        s, job_id = self._settings, lease.job_id
        text = orjson.dumps(error.to_dict())
        args: list[Argument] = [lease.attempt, lease.id, why, s.max_attempts]
        args += [s.dead_letter_retention_s, text]
        async with failures_named():
            answer = (await run(self._redis, "release", _job_keys(job_id), args)).decode()
        if answer == "exhausted":
            await self._note_dead(job_id)
        return bool(answer == "queued")

    async def cancel(self, job_id: JobId) -> Job | None:
        ending = Ending(state=JobState.CANCELLED)
        await self._run_all(self._conclude_calls(job_id, "", ending, force=True))
        return await self.get(job_id)

    async def conclude(self, job_id: JobId, ending: Ending) -> LeaseStatus:
        tenant = await self._tenant(job_id) if ending.is_dead_letter else ""
        answers = await self._run_all(self._conclude_calls(job_id, tenant, ending, force=False))
        word = answers[-1][0].decode()
        return LeaseStatus.FENCED if word == "held" else LeaseStatus(word)

    async def redrive(self, job_id: JobId, request: JobRequest | None) -> bool:
        tenant = await self._tenant(job_id)
        edited: list[str | bytes] = []
        if request is not None:
            text = request.to_json()
            edited = [
                "request",
                text,
                "sha",
                job_record.fingerprint(text, tenant),
                *(part for pair in job_record.shown_fields(request).items() for part in pair),
            ]
        answers = await self._run_all(
            [
                schedule_check(keys.UNPUBLISHED, job_id, after_ms=SWEEP_AFTER_MS),
                ("redrive", _job_keys(job_id), [int(request is not None), *edited]),
            ]
        )
        return bool(answers[1] == b"queued")

    async def delete(self, job_id: JobId) -> bool:
        tenant = await self._tenant(job_id)
        async with failures_named():
            if not await run(self._redis, "delete", _job_keys(job_id), []):
                return False
            # If we die here, whoever lists them next drops what leads nowhere.
            await self._index.unlist(job_id, tenant)
        return True

    async def read_stream(
        self, job_id: JobId, after: str = "", limit: int = 1000
    ) -> list[StreamEntry]:
        start = f"({after}" if after else "-"
        async with failures_named():
            entries = await self._redis.xrange(keys.tokens(job_id), min=start, max="+", count=limit)
        return [job_record.parse_entry(cursor, fields) for cursor, fields in entries]

    async def token_ids(self, job_id: JobId, count: int) -> list[int]:
        """Reads the whole stream: an attempt that starts at an index voids what stood from there
        on.
        """
        ids: list[int] = []
        after = ""
        while entries := await self.read_stream(job_id, after):
            for entry in entries:
                if entry.kind is EntryKind.ATTEMPT:
                    del ids[entry.index :]
                ids.extend(entry.token_ids)
            after = entries[-1].cursor
        return ids[:count]

    async def take_unpublished(self, limit: int) -> list[JobId]:
        return await self._index.take_due(keys.UNPUBLISHED, limit)

    async def claim_unstarted(self, limit: int) -> list[JobId]:
        return await self._index.claim_unstarted(limit)

    async def take_unannounced(self, limit: int) -> list[JobId]:
        return await self._index.take_due(keys.UNANNOUNCED, limit)

    async def mark_published(self, *job_ids: JobId, age_ms: int = 0) -> None:
        look_after_ms = max(age_ms, self._settings.republish_after_s * 1000)
        # A job that has started meanwhile has a note of its own, which comes up sooner.
        note = schedule_check(
            keys.UNSTARTED, *job_ids, after_ms=look_after_ms, mode="" if age_ms else "NX"
        )
        async with failures_named():
            await run_all(self._redis, [note], [("ZREM", keys.UNPUBLISHED, *job_ids)])

    async def mark_announced(self, job_id: JobId) -> None:
        async with failures_named():
            if await run(self._redis, "announce", [keys.job(job_id)], []):
                await self._redis.zrem(keys.UNANNOUNCED, job_id)

    async def ping(self) -> None:
        async with failures_named():
            await self._redis.set(f"{keys.PREFIX}:ping", b"1", ex=60)

    async def close(self) -> None:
        await self._redis.aclose()

    def _create_calls(self, new: NewJob) -> list[Call]:
        request = new.request.to_json()
        sha = job_record.fingerprint(request, new.tenant)
        return [
            schedule_check(keys.UNPUBLISHED, new.id, after_ms=SWEEP_AFTER_MS),
            self._index.listed(keys.jobs_of(new.tenant), new.id, "NX"),
            (
                "create",
                [keys.job(new.id)],
                [sha, new.options_sha, *job_record.new_fields(new, request)],
            ),
        ]

    def _conclude_calls(
        self, job_id: JobId, tenant: str, ending: Ending, *, force: bool
    ) -> list[Call]:
        calls: list[Call] = [schedule_check(keys.UNANNOUNCED, job_id, after_ms=SWEEP_AFTER_MS)]
        if ending.is_dead_letter:
            calls.append(self._index.listed(keys.dead_letters_of(tenant), job_id))
        args: list[Argument] = [
            ending.state,
            self._retention_s(ending),
            int(ending.is_dead_letter),
            int(force),
        ]
        calls.append(("conclude", _job_keys(job_id), [*args, *job_record.ending_fields(ending)]))
        return calls

    async def _note_dead(self, job_id: JobId, mode: str = "") -> None:
        """Index a job that a script has just failed. If we die before this, the job's own next
        delivery notes it (`acquire`).
        """
        tenant = await self._tenant(job_id)
        await self._run_all(
            [
                schedule_check(keys.UNANNOUNCED, job_id, after_ms=SWEEP_AFTER_MS, mode=mode),
                self._index.listed(keys.dead_letters_of(tenant), job_id, mode),
            ]
        )

    async def _tenant(self, job_id: JobId) -> str:
        async with failures_named():
            tenant = await self._redis.hget(keys.job(job_id), "tenant")
        return tenant.decode() if tenant else "default"

    async def _run_all(self, calls: Sequence[Call]) -> list[Any]:
        async with failures_named():
            return await run_all(self._redis, calls)

    def _retention_s(self, ending: Ending) -> int:
        s = self._settings
        return s.dead_letter_retention_s if ending.is_dead_letter else s.retention_s


def _job_keys(job_id: JobId) -> list[str]:
    return [keys.job(job_id), keys.tokens(job_id)]


def _batch_args(batch: TokenBatch) -> list[Argument]:
    ids = " ".join(map(str, batch.token_ids))
    return [batch.index, len(batch.token_ids), ids, batch.delta]

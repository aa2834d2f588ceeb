"""The job store in memory: the twin of `eventing.store.redis_store`, for tests and for reading.

Called by unit tests, and by a predictor that was given no Redis. It keeps the rules of the Lua
scripts in Python, with the clock as an argument; `tests/contract` holds the two together. What is
listed or due is in `eventing.store.memory_index`, what changes in a job in `eventing.store.memory_record`. It
must not be used for anything that has to survive its process.
"""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace

from eventing.clock import Clock, SystemClock
from eventing.errors import IdempotencyConflict
from eventing.job.job import AttemptRecord, Job, JobError, JobId, JobRequest, JobState
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
from eventing.store.job_record import fingerprint, fresh, request_of
from eventing.store.memory_index import SWEEP_AFTER_MS, MemoryIndex, page, take_due
from eventing.store.memory_record import MemoryRecord, closed, entry_order


class MemoryStore:
    """A `Store` in one process. No method awaits anything, so each is atomic by itself."""

    def __init__(self, settings: LeaseSettings | None = None, clock: Clock | None = None) -> None:
        self._settings = settings or LeaseSettings()
        self._clock = clock or SystemClock()
        self._records: dict[JobId, MemoryRecord] = {}
        self._index = MemoryIndex()

    async def create(self, new: NewJob) -> tuple[Job, bool]:
        now = self._now()
        self._index.unpublished[new.id] = now + SWEEP_AFTER_MS
        self._index.jobs(new.tenant).setdefault(new.id, now)
        sha = fingerprint(new.request.to_json(), new.tenant)
        record = self._find(new.id)
        if record is None:
            job = replace(fresh(new, now), request=request_of(new.request.to_json()))
            self._records[new.id] = MemoryRecord(job, sha, options_sha=new.options_sha)
            return job, True
        options = {record.options_sha, new.options_sha} - {""}
        if record.sha != sha or len(options) > 1:
            raise IdempotencyConflict(
                "the same identity was used before with another request or other options", "body"
            )
        return record.job, False

    async def reject(self, new: NewJob, error: JobError, raw: bytes) -> bool:
        now, sha = self._now(), fingerprint(raw, new.tenant)
        self._index.jobs(new.tenant).setdefault(new.id, now)
        self._index.note_end(new.id, new.tenant, now)
        record = self._find(new.id)
        if record is None:
            job = replace(fresh(new, now), request=request_of(raw))
            record = self._records[new.id] = MemoryRecord(job, sha, is_rejected=True)
        elif record.sha != sha and not record.is_rejected:
            return False
        if record.job.state is JobState.QUEUED:
            self._end(record, _dead_letter(error), outcome="")
        return True

    async def get(self, job_id: JobId) -> Job | None:
        return self._job(job_id)

    async def list_jobs(
        self,
        tenant: str,
        *,
        states: Sequence[JobState] = (),
        limit: int = 20,
        cursor: str = "",
        include: Collection[ListField] = (),
    ) -> Page:
        def is_wanted(job: Job) -> bool:
            return job.tenant == tenant and (not states or job.state in states)

        return page(self._index.jobs(tenant), self._job, is_wanted, limit, cursor, include)

    async def list_dead_letters(self, tenant: str, *, limit: int = 20, cursor: str = "") -> Page:
        def is_wanted(job: Job) -> bool:
            return job.tenant == tenant and job.is_dead_letter

        include = [ListField.REQUEST]
        return page(self._index.dead(tenant), self._job, is_wanted, limit, cursor, include)

    async def acquire(
        self,
        job_id: JobId,
        owner: str,
        *,
        can_resume: bool,
        is_exclusive: bool = False,
        expected: NewJob | None = None,
    ) -> Acquired:
        now = self._now()
        self._index.awaited[job_id] = now + 2 * self._settings.lease_ms
        record = self._find(job_id)
        if record is None:
            return Acquired(status=AcquireStatus.MISSING)
        if expected and record.sha != fingerprint(expected.request.to_json(), expected.tenant):
            return Acquired(status=AcquireStatus.OTHER)
        job = record.job
        if job.state.is_terminal:
            if job.is_dead_letter and not job.is_announced:
                self._index.note_end_again(job_id, job.tenant, now)
            return Acquired(status=AcquireStatus.TERMINAL)
        failures, history = record.failures, job.history
        if job.state is JobState.IN_PROGRESS:
            if job.lease_until_ms > now:
                return Acquired(status=AcquireStatus.HELD, lease_left_ms=job.lease_until_ms - now)
            failures, history = failures + 1, closed(history, "lost", now)
        reason = self._why_over(job, failures, now)
        if not reason and not is_exclusive and self._is_suspect(failures, history):
            return Acquired(status=AcquireStatus.ALONE)
        record.failures, record.job = failures, replace(job, history=history)
        if reason:
            return self._give_up(record, reason)
        record.start_attempt(owner, can_resume, now + self._settings.lease_ms, now)
        record.lease_id = secrets.token_hex(8)
        return Acquired(
            status=AcquireStatus.ACQUIRED,
            lease=Lease(job_id, record.job.attempt, record.lease_id),
            token_count=record.job.token_count,
            void_count=job.token_count - record.job.token_count,
        )

    async def renew(self, leases: Sequence[Lease], *, extend: bool) -> list[LeaseStatus]:
        return [self._renew(lease, extend) for lease in leases]

    async def append_all(self, appends: Sequence[tuple[Lease, TokenBatch]]) -> list[LeaseStatus]:
        return [await self.append(lease, batch) for lease, batch in appends]

    async def append(self, lease: Lease, batch: TokenBatch) -> LeaseStatus:
        record = self._find(lease.job_id)
        if record is None:
            return LeaseStatus.MISSING
        job = record.job
        if not record.is_leased_as(lease) or job.state is JobState.QUEUED:
            return record.refuse(LeaseStatus.FENCED)
        if job.state is not JobState.IN_PROGRESS:
            return record.refuse(LeaseStatus.TERMINAL)
        if job.token_count != batch.index:
            return LeaseStatus.GAP
        record.append(batch, self._now())
        return LeaseStatus.OK

    async def finish(self, lease: Lease, ending: Ending) -> LeaseStatus:
        record = self._find_to_end(lease.job_id, ending)
        if record is None:
            return LeaseStatus.MISSING
        if record.job.state.is_terminal:
            return record.refuse(LeaseStatus.TERMINAL)
        if not record.is_leased_as(lease) or record.job.state is JobState.QUEUED:
            return record.refuse(LeaseStatus.FENCED)
        if ending.final_batch is not None:
            if record.job.token_count != ending.final_batch.index:
                return LeaseStatus.GAP
            record.append(ending.final_batch, self._now())
        self._end(record, ending, ending.error.code if ending.error else str(ending.state))
        return LeaseStatus.OK

    async def finish_and_get(self, lease: Lease, ending: Ending) -> tuple[LeaseStatus, Job | None]:
        return await self.finish(lease, ending), await self.get(lease.job_id)

    async def release(self, lease: Lease, why: Release, error: JobError) -> bool:
        record = self._find(lease.job_id)
        if record is None:
            return False
        job, now = record.job, self._now()
        if job.state is not JobState.IN_PROGRESS or not record.is_leased_as(lease):
            record.refuse(LeaseStatus.FENCED)
            return False
        record.failures += why is not Release.HANDOVER
        if record.failures >= self._settings.max_attempts:
            self._end(record, _dead_letter(error), str(why))
            self._index.note_end(job.id, job.tenant, now)
            return False
        record.give_back(str(why), now)
        return True

    async def cancel(self, job_id: JobId) -> Job | None:
        self._conclude(job_id, Ending(state=JobState.CANCELLED), is_forced=True)
        return await self.get(job_id)

    async def conclude(self, job_id: JobId, ending: Ending) -> LeaseStatus:
        return self._conclude(job_id, ending, is_forced=False)

    async def redrive(self, job_id: JobId, request: JobRequest | None) -> bool:
        now = self._now()
        self._index.unpublished[job_id] = now + SWEEP_AFTER_MS
        record = self._find(job_id)
        if record is None or not record.job.is_dead_letter or record.job.state != JobState.FAILED:
            return False
        sha = fingerprint(request.to_json(), record.job.tenant) if request else record.sha
        record.queue_again(request, sha, now)
        return True

    async def delete(self, job_id: JobId) -> bool:
        record = self._find(job_id)
        if record is None or not record.job.state.is_terminal:
            return False
        del self._records[job_id]
        self._index.unlist(job_id, record.job.tenant)
        return True

    async def read_stream(
        self, job_id: JobId, after: str = "", limit: int = 1000
    ) -> list[StreamEntry]:
        record = self._find(job_id)
        entries = record.entries if record else []
        start = entry_order(after) if after else (-1, -1)
        return [entry for entry in entries if entry_order(entry.cursor) > start][:limit]

    async def token_ids(self, job_id: JobId, count: int) -> list[int]:
        ids: list[int] = []
        for entry in await self.read_stream(job_id, limit=1 << 30):
            if entry.kind is EntryKind.ATTEMPT:
                del ids[entry.index :]
            ids.extend(entry.token_ids)
        return ids[:count]

    async def take_unpublished(self, limit: int) -> list[JobId]:
        return take_due(self._index.unpublished, limit, self._now())

    async def claim_unstarted(self, limit: int) -> list[JobId]:
        stranded, now = [], self._now()
        for job_id in take_due(self._index.awaited, limit, now):
            job = self._job(job_id)
            if job is None or job.state.is_terminal:
                del self._index.awaited[job_id]
            elif job.lease_until_ms <= now:
                stranded.append(job_id)
        return stranded

    async def take_unannounced(self, limit: int) -> list[JobId]:
        return take_due(self._index.unannounced, limit, self._now())

    async def mark_published(self, *job_ids: JobId, age_ms: int = 0) -> None:
        look_ms = self._now() + max(age_ms, self._settings.republish_after_s * 1000)
        for job_id in job_ids:
            if age_ms:
                self._index.awaited[job_id] = look_ms
            else:
                self._index.awaited.setdefault(job_id, look_ms)
            self._index.unpublished.pop(job_id, None)

    async def mark_announced(self, job_id: JobId) -> None:
        record = self._find(job_id)
        if record and not record.job.state.is_terminal:
            return
        self._index.unannounced.pop(job_id, None)
        if record:
            record.job = replace(record.job, is_announced=True)

    async def ping(self) -> None:
        """Memory always takes writes."""

    async def close(self) -> None:
        """Nothing is held open."""

    def forget_expired(self) -> None:
        """Drop what Redis would have dropped by itself; for a process that lives long."""
        for job_id in list(self._records):
            self._find(job_id)
        self._index.keep_only(self._records.keys())

    def _now(self) -> int:
        return self._clock.wall_ms()

    def _find(self, job_id: JobId) -> MemoryRecord | None:
        record = self._records.get(job_id)
        if record and 0 < record.expires_ms <= self._now():
            del self._records[job_id]
            return None
        return record

    def _job(self, job_id: JobId) -> Job | None:
        record = self._find(job_id)
        return record.job if record else None

    def _find_to_end(self, job_id: JobId, ending: Ending) -> MemoryRecord | None:
        """The record of a job that is about to end. That it did is noted first, whatever comes of
        it: a note too many costs a look, one too few the announcement.
        """
        record = self._find(job_id)
        tenant = record.job.tenant if record else "default"
        self._index.note_end(job_id, tenant if ending.is_dead_letter else None, self._now())
        return record

    def _is_suspect(self, failures: int, history: tuple[AttemptRecord, ...]) -> bool:
        is_last = failures == self._settings.max_attempts - 1
        return is_last and any(attempt.outcome == "lost" for attempt in history)

    def _why_over(self, job: Job, failures: int, now: int) -> JobError | None:
        if 0 < job.deadline_ms <= now:
            return JobError(code="expired", message="the deadline passed before the job ended")
        limit = self._settings.max_attempts
        if failures >= limit:
            lost = f"every attempt was lost ({failures} of {limit})"
            return JobError(code="exhausted", message=lost)
        return None

    def _give_up(self, record: MemoryRecord, reason: JobError) -> Acquired:
        self._end(record, _dead_letter(reason), outcome="")
        self._index.note_end(record.job.id, record.job.tenant, self._now())
        return Acquired(status=AcquireStatus(reason.code))

    def _renew(self, lease: Lease, extend: bool) -> LeaseStatus:
        record = self._find(lease.job_id)
        if record is None:
            return LeaseStatus.MISSING
        job, now = record.job, self._now()
        if not record.is_leased_as(lease) or job.state is JobState.QUEUED:
            return LeaseStatus.FENCED
        if job.state.is_terminal:
            return LeaseStatus.TERMINAL
        if 0 < job.deadline_ms <= now:
            return LeaseStatus.EXPIRED
        if extend:
            record.job = replace(job, lease_until_ms=now + self._settings.lease_ms)
        return LeaseStatus.OK

    def _conclude(self, job_id: JobId, ending: Ending, *, is_forced: bool) -> LeaseStatus:
        record = self._find_to_end(job_id, ending)
        if record is None:
            return LeaseStatus.MISSING
        job = record.job
        if job.state.is_terminal:
            return LeaseStatus.TERMINAL
        if job.lease_until_ms > self._now() and not is_forced:
            return LeaseStatus.FENCED
        self._end(record, ending, str(ending.state))
        return LeaseStatus.OK

    def _end(self, record: MemoryRecord, ending: Ending, outcome: str) -> None:
        s = self._settings
        keep_s = s.dead_letter_retention_s if ending.is_dead_letter else s.retention_s
        record.end(ending, outcome, keep_s * 1000, self._now())


def _dead_letter(error: JobError) -> Ending:
    return Ending(state=JobState.FAILED, error=error, is_dead_letter=True)

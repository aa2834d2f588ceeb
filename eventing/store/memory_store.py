"""The job store in memory: the twin of `eventing.store.redis_store`, for tests.

Called by unit tests, and by a predictor without Redis. It implements the rules of the Lua scripts in Python, with
the clock as an argument; `tests/contract` checks that both agree. Lists and due times are in
`eventing.store.memory_index`, changes of a job in `eventing.store.memory_record`. Its content is lost with the
process.
"""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace

from eventing.clock import Clock, SystemClock
from eventing.errors import BrokerUnavailable, IdempotencyConflict, JobDeleted
from eventing.job.cache.cache import CacheKind
from eventing.job.job import CONTENT_FILTER_UNAVAILABLE, Job, JobError, JobId, JobRequest, JobState
from eventing.job.plan import Hold, Plan
from eventing.job.prompt import is_match
from eventing.job.store import (
    ARRIVED,
    Acquired,
    AcquireStatus,
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
from eventing.job.stream import StreamEntry, cursor_order
from eventing.store.job_record.fields import ending_fields, fingerprint
from eventing.store.job_record.parse import fresh, request_of
from eventing.store.memory_cache import MemoryAnswers
from eventing.store.memory_index import SWEEP_AFTER_MS, MemoryIndex, due, page, take_due
from eventing.store.memory_record import (
    LATE,
    MemoryRecord,
    closed,
    dead_letter,
    is_suspect,
    why_over,
)


class MemoryStore:
    """A `Store` in one process. No method awaits, so each is atomic."""

    def __init__(self, settings: LeaseSettings | None = None, clock: Clock | None = None) -> None:
        self._settings = settings or LeaseSettings()
        self._clock = clock or SystemClock()
        self._records: dict[JobId, MemoryRecord] = {}
        self._index = MemoryIndex()
        self.answers = MemoryAnswers(self._find, self._index, self._settings, self._now)

    async def submit(self, new: NewJob, publication: Publication = ARRIVED) -> tuple[Job, bool]:
        if self._index.is_deleted(new.id, self._now()):
            raise JobDeleted("the job of this identity was deleted")
        sha = fingerprint(new.request.to_json(), new.tenant)
        record = self._find(new.id)
        if record is None or self._is_redriven(record.job, new):
            return self._record(new, publication, sha), True
        options = {record.options_sha, new.options_sha} - {""}
        if record.sha != sha or len(options) > 1:
            raise IdempotencyConflict(
                "the same identity was used before with another request or other options", "body"
            )
        return record.job, False

    def _is_redriven(self, job: Job, new: NewJob) -> bool:
        """True when another store, whose attempt count is higher, has redriven the job."""
        return job.state.is_terminal and job.attempt < new.attempt

    def _record(self, new: NewJob, publication: Publication, sha: str) -> Job:
        now, most = self._now(), publication.max_unpublished
        served = self.answers.take(new)
        if most is not None and served is None:
            if len(self._index.unpublished) >= most:
                raise BrokerUnavailable(f"the broker has yet to take {most} jobs", 2.0)
            self._index.unpublished[new.id] = now + SWEEP_AFTER_MS
        self._index.note_new(new, now + self._settings.republish_after_s * 1000, now)
        request = request_of(new.request.to_json())
        job = replace(fresh(new, now), request=request, attempt=new.attempt)
        record = self._records[new.id] = MemoryRecord(job, sha, options_sha=new.options_sha)
        if served is None:
            self.answers.note_new(new)
        elif served[0].kind is CacheKind.COALESCED:
            self.answers.follow(record, served[0])
        else:
            self.answers.serve(record, *served)
        return record.job

    async def reject(self, new: NewJob, error: JobError, raw: bytes) -> bool:
        now, sha = self._now(), fingerprint(raw, new.tenant)
        if self._index.is_deleted(new.id, self._now()):
            return False
        record = self._find(new.id)
        if record is None:
            self._index.jobs(new.tenant).setdefault(new.id, now)
            job = fresh(replace(new, request=request_of(raw)), now)
            record = self._records[new.id] = MemoryRecord(job, sha, is_rejected=True)
        elif record.sha != sha and not record.is_rejected:
            return False
        if record.job.state is JobState.QUEUED:
            record.is_rejected = True
            self._end(record, dead_letter(error), outcome="")
        return True

    async def get(self, job_id: JobId, *, with_result: bool = True) -> Job | None:
        return self._job(job_id)

    async def states(self, job_ids: Sequence[JobId]) -> list[JobState | None]:
        return [job.state if (job := self._job(job_id)) else None for job_id in job_ids]

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
        def is_wanted(job: Job) -> bool:
            if job.tenant != tenant or (states and job.state not in states):
                return False
            where = (job.id, job.request.model, job.request.custom_id or "")
            return is_match(search, *where, job.prompt)

        return page(self._index.jobs(tenant), self._job, is_wanted, limit, cursor, include)

    async def list_dead_letters(
        self,
        tenant: str,
        *,
        limit: int = 20,
        cursor: str = "",
        include: Collection[ListField] = (ListField.REQUEST,),
    ) -> Page:
        def is_wanted(job: Job) -> bool:
            return job.tenant == tenant and job.is_dead_letter

        return page(self._index.dead(tenant), self._job, is_wanted, limit, cursor, include)

    async def is_gone(self, job_id: JobId) -> bool:
        return job_id not in self._records

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
        record = self._find(job_id)
        if record is None or (expected and self._is_redriven(record.job, expected)):
            return Acquired(status=AcquireStatus.MISSING)
        if expected and record.runs_sha != fingerprint(expected.request.to_json(), expected.tenant):
            return Acquired(status=AcquireStatus.OTHER)
        job = record.job
        if job.state.is_terminal:
            return Acquired(status=AcquireStatus.TERMINAL)
        if job.step:
            return Acquired(status=AcquireStatus.UNPREPARED)
        failures, history = record.failures, job.history
        if job.state is JobState.IN_PROGRESS:
            if left := record.lease_left(self._now(), self._settings.lease_ms):
                return Acquired(status=AcquireStatus.HELD, lease_left_ms=left)
            failures, history = failures + 1, closed(history, "lost", now)
        reason = why_over(job, failures, self._settings.max_attempts, now)
        if (
            not reason
            and not is_exclusive
            and is_suspect(failures, self._settings.max_attempts, history)
        ):
            return Acquired(status=AcquireStatus.ALONE)
        record.failures = failures
        if reason:
            self._end(record, dead_letter(reason), outcome="lost")
            return Acquired(status=AcquireStatus(reason.code))
        record.job = self.answers.running(replace(job, history=history))
        record.start_attempt(owner, can_resume, now + self._settings.lease_ms, now)
        record.lease_id = secrets.token_hex(8)
        self._index.unstarted[job_id] = now + 2 * self._settings.lease_ms
        return Acquired(
            status=AcquireStatus.ACQUIRED,
            lease=Lease(job_id, record.job.attempt, record.lease_id),
            token_count=record.job.token_count,
            void_count=job.token_count - record.job.token_count,
            hold=job.plan.hold if job.plan else Hold.NONE,
        )

    async def renew(self, leases: Sequence[Lease], *, extend: bool) -> list[LeaseStatus]:
        now, lease_ms = self._now(), self._settings.lease_ms if extend else 0
        found = [(lease, self._find(lease.job_id)) for lease in leases]
        return [
            record.renew(lease, lease_ms, now) if record else LeaseStatus.MISSING
            for lease, record in found
        ]

    async def append_all(self, appends: Sequence[tuple[Lease, TokenBatch]]) -> list[LeaseStatus]:
        answers = []
        for lease, batch in appends:
            record = self._find(lease.job_id)
            answers.append(
                record.checkpoint(lease, batch, self._now()) if record else LeaseStatus.MISSING
            )
        return answers

    async def finish(self, lease: Lease, ending: Ending) -> LeaseStatus:
        record = self._find(lease.job_id)
        if record is None:
            return LeaseStatus.MISSING
        if record.job.state.is_terminal:
            return record.refuse(LeaseStatus.TERMINAL)
        if not record.is_leased_as(lease) or record.job.state is JobState.QUEUED:
            return record.refuse(LeaseStatus.FENCED)
        ending_fields(ending)  # refuses what is too large
        if ending.final_batch is not None:
            if record.job.token_count != ending.final_batch.index:
                return LeaseStatus.GAP
            record.append(ending.final_batch, self._now())
        outcome = ending.error.code if ending.error else str(ending.state)
        return self._end_or_validate(record, ending, outcome)

    def _end_or_validate(self, record: MemoryRecord, ending: Ending, outcome: str) -> LeaseStatus:
        now = self._now()
        if not record.is_unjudged(ending):
            self._end(record, ending, outcome)
            return LeaseStatus.OK
        record.validate(ending, outcome, now)
        self._index.unstarted[record.job.id] = now + self._settings.republish_after_s * 1000
        return LeaseStatus.VALIDATING

    def _end_late(self, record: MemoryRecord, outcome: str) -> None:
        """End a job past its deadline: with its answer, where steps have yet to judge one; without its text, where that
        is held back.
        """
        if not record.job.is_validating:
            return self._end(record, dead_letter(LATE), outcome)
        is_held = record.job.hold is not Hold.NONE
        self._end(record, record.judged(CONTENT_FILTER_UNAVAILABLE if is_held else "", None), "")

    async def release(self, lease: Lease, why: ReleaseReason, error: JobError) -> bool:
        record = self._find(lease.job_id)
        if record is None:
            return False
        job, now = record.job, self._now()
        if job.state is not JobState.IN_PROGRESS or not record.is_leased_as(lease):
            record.refuse(LeaseStatus.FENCED)
            return False
        record.failures += why is not ReleaseReason.HANDOVER
        if record.failures >= self._settings.max_attempts:
            self._end(record, dead_letter(error), str(why))
            return False
        record.give_back(str(why), now)
        return True

    async def cancel(self, job_id: JobId) -> Job | None:
        self._conclude(job_id, Ending(state=JobState.CANCELLED), None, is_forced=True)
        return await self.get(job_id)

    async def conclude(
        self, job_id: JobId, ending: Ending, *, attempt: int | None = None
    ) -> LeaseStatus:
        return self._conclude(job_id, ending, attempt, is_forced=False)

    async def redrive(
        self,
        job: Job,
        request: JobRequest | None,
        publication: Publication = ARRIVED,
        plan: Plan | None = None,
    ) -> bool:
        now, record = self._now(), self._find(job.id)
        if record is None or not record.job.is_dead_letter or record.job.state != JobState.FAILED:
            return False
        if record.job.attempt != job.attempt:
            return False
        self._index.unstarted[job.id] = now + self._settings.republish_after_s * 1000
        if publication.max_unpublished is not None:
            self._index.unpublished[job.id] = now + SWEEP_AFTER_MS
        sha = fingerprint(request.to_json(), record.job.tenant) if request else record.sha
        record.queue_again(request, sha, plan, now)
        return True

    async def delete(self, job_id: JobId) -> bool:
        record = self._find(job_id)
        if record is None or not record.job.state.is_terminal:
            return False
        del self._records[job_id]
        self.answers.note_deleted(record.job)
        until_ms = self._now() + self._settings.retention_s * 1000
        self._index.note_deleted(job_id, record.job.tenant, until_ms)
        return True

    async def read_stream(
        self, job_id: JobId, after: str = "", limit: int = 1000
    ) -> list[StreamEntry]:
        record = self._find(job_id)
        entries = record.entries if record else []
        seen = cursor_order(after)
        return [entry for entry in entries if cursor_order(entry.cursor) > seen][:limit]

    async def take_unpublished(self, limit: int) -> list[JobId]:
        return take_due(self._index.unpublished, limit, self._now())

    async def mark_published(self, *job_ids: JobId) -> None:
        for job_id in job_ids:
            self._index.unpublished.pop(job_id, None)

    async def claim_unstarted(self, limit: int) -> list[JobId]:
        stranded, now = [], self._now()
        for job_id in take_due(self._index.unstarted, limit, now):
            record = self._find(job_id)
            if record is None or record.job.state.is_terminal:
                del self._index.unstarted[job_id]
            elif not record.lease_left(self._now(), self._settings.lease_ms):
                stranded.append(job_id)
        return stranded

    async def look_later(self, job_id: JobId, after_ms: int) -> None:
        if job_id in self._index.unstarted:
            after_ms = max(after_ms, self._settings.republish_after_s * 1000)
            self._index.unstarted[job_id] = self._now() + after_ms

    async def expire(self, limit: int) -> list[JobId]:
        now, failed = self._now(), []
        for job_id in due(self._index.deadlines, limit, now):
            record = self._find(job_id)
            if record is None:
                del self._index.deadlines[job_id]
            elif left := record.lease_left(self._now(), self._settings.lease_ms):
                self._index.deadlines[job_id] = now + left
            else:
                self._end_late(record, "lost")
                failed.append(job_id)
        return failed

    async def prune(self, limit: int) -> int:
        """Drop what Redis would have expired, too."""
        for job_id in list(self._records):
            self._find(job_id)
        self._index.keep_only(self._records.keys(), self._now())
        return 0

    async def ping(self) -> None:
        """Memory always accepts writes."""

    async def close(self) -> None:
        """There is nothing to close."""

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

    def _conclude(
        self, job_id: JobId, ending: Ending, attempt: int | None, *, is_forced: bool
    ) -> LeaseStatus:
        record = self._find(job_id)
        if record is None:
            return LeaseStatus.MISSING
        job = record.job
        if job.state.is_terminal:
            return LeaseStatus.TERMINAL
        if not is_forced and record.lease_left(self._now(), self._settings.lease_ms):
            return LeaseStatus.HELD
        if not is_forced and job.is_validating:
            return LeaseStatus.FENCED
        if attempt is not None:
            if attempt < job.attempt:
                return record.refuse(LeaseStatus.FENCED)
            record.job = replace(job, attempt=attempt)
        return self._end_or_validate(record, ending, str(ending.state))

    def _end(self, record: MemoryRecord, ending: Ending, outcome: str) -> None:
        s = self._settings
        keep_s = s.dead_letter_retention_s if ending.is_dead_letter else s.retention_s
        if ending.cache is not None:  # another job's answer: it is not kept as this one's
            self.answers.note_end(replace(record.job, state=JobState.FAILED))
        record.end(ending, outcome, keep_s * 1000, self._now())
        self.answers.note_end(record.job)
        self._index.note_end(record.job, self._now())

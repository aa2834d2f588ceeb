"""The job store in memory: the twin of `eventing.redis_store`, for tests and for reading.

Called by unit tests and by whoever wants a `Store` without a server. It keeps the rules of the Lua
scripts in Python, with the clock as an argument; `tests/contract` holds the two together. It must
not be used for anything that has to survive its process.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from eventing.clock import Clock, SystemClock
from eventing.errors import IdempotencyConflict
from eventing.job import AttemptRecord, Job, JobError, JobId, JobRequest, JobState
from eventing.job_list import ListCursor
from eventing.job_record import fingerprint, fresh, request_of
from eventing.memory_record import MemoryRecord, closed, entry_order, stored
from eventing.store import (
    Acquired,
    AcquireStatus,
    Ending,
    EntryKind,
    Hold,
    LeaseSettings,
    NewJob,
    Page,
    Release,
    StreamEntry,
    TokenBatch,
)

_SWEEP_AFTER_MS: Final = 10_000
_HOLD_BY_SWEEPER_MS: Final = 15_000

Index = dict[JobId, int]
"""Members with their time, as a sorted set has them."""


class MemoryStore:
    """A `Store` in one process. No method awaits anything, so each is atomic by itself."""

    def __init__(self, settings: LeaseSettings | None = None, clock: Clock | None = None) -> None:
        self._settings = settings or LeaseSettings()
        self._clock = clock or SystemClock()
        self._records: dict[JobId, MemoryRecord] = {}
        self._jobs: dict[str, Index] = {}
        self._dead: dict[str, Index] = {}
        self._unpublished: Index = {}
        self._awaited: Index = {}
        self._unannounced: Index = {}
        self._last_entry = (0, 0)

    async def create(self, new: NewJob) -> tuple[Job, bool]:
        now = self._now()
        self._unpublished[new.id] = now + _SWEEP_AFTER_MS
        self._jobs.setdefault(new.tenant, {}).setdefault(new.id, now)
        sha = fingerprint(new.request.to_json(), new.tenant)
        record = self._find(new.id)
        if record is None:
            job = replace(fresh(new, now), request=request_of(new.request.to_json()))
            self._records[new.id] = MemoryRecord(job, sha)
            return job, True
        if record.sha != sha:
            raise IdempotencyConflict(
                "the same identity was used before with another request", "body"
            )
        return record.job, False

    async def reject(self, new: NewJob, error: JobError, raw: bytes) -> bool:
        now, sha = self._now(), fingerprint(raw, new.tenant)
        self._unannounced[new.id] = now + _SWEEP_AFTER_MS
        self._jobs.setdefault(new.tenant, {}).setdefault(new.id, now)
        self._dead.setdefault(new.tenant, {})[new.id] = now
        record = self._find(new.id)
        if record is None:
            job = replace(fresh(new, now), request=request_of(raw))
            record = self._records[new.id] = MemoryRecord(job, sha, is_rejected=True)
        elif record.sha != sha and not record.is_rejected:
            return False
        if record.job.state is JobState.QUEUED:
            ending = Ending(state=JobState.FAILED, error=error, is_dead_letter=True)
            self._end(record, ending, outcome="")
        return True

    async def get(self, job_id: JobId) -> Job | None:
        record = self._find(job_id)
        return record.job if record else None

    async def list_jobs(
        self, tenant: str, *, states: Sequence[JobState] = (), limit: int = 20, cursor: str = ""
    ) -> Page:
        def is_wanted(job: Job) -> bool:
            return job.tenant == tenant and (not states or job.state in states)

        return self._list(self._jobs.get(tenant, {}), is_wanted, limit, cursor)

    async def list_dead_letters(self, tenant: str, *, limit: int = 20, cursor: str = "") -> Page:
        def is_wanted(job: Job) -> bool:
            return job.tenant == tenant and job.is_dead_letter

        return self._list(self._dead.get(tenant, {}), is_wanted, limit, cursor)

    async def acquire(
        self, job_id: JobId, owner: str, *, can_resume: bool, is_alone: bool = False
    ) -> Acquired:
        self._awaited[job_id] = self._now() + 2 * self._settings.lease_ms
        record = self._find(job_id)
        if record is None:
            return Acquired(status=AcquireStatus.MISSING)
        job, now = record.job, self._now()
        if job.state.is_terminal:
            if job.is_dead_letter and not job.is_announced:
                self._note_dead(job, again=True)
            return Acquired(status=AcquireStatus.TERMINAL)
        failures, history = record.failures, job.history
        if job.state is JobState.IN_PROGRESS:
            if job.lease_until_ms > now:
                return Acquired(status=AcquireStatus.HELD, lease_left_ms=job.lease_until_ms - now)
            failures, history = failures + 1, closed(history, "lost", now)
        reason = self._why_over(job, failures, now)
        if not reason and not is_alone and self._is_suspect(failures, history):
            return Acquired(status=AcquireStatus.ALONE)
        record.failures, record.job = failures, replace(job, history=history)
        if reason:
            return self._give_up(record, reason)
        return self._start_attempt(record, owner, can_resume, now)

    async def renew(self, leases: Sequence[tuple[JobId, int]], *, extend: bool) -> list[Hold]:
        return [self._renew(job_id, attempt, extend) for job_id, attempt in leases]

    async def append_all(self, appends: Sequence[tuple[JobId, int, TokenBatch]]) -> list[Hold]:
        return [await self.append(job_id, attempt, batch) for job_id, attempt, batch in appends]

    async def append(self, job_id: JobId, attempt: int, batch: TokenBatch) -> Hold:
        record = self._find(job_id)
        if record is None:
            return Hold.MISSING
        job = record.job
        if job.attempt != attempt or job.state is JobState.QUEUED:
            return record.refuse(Hold.FENCED)
        if job.state is not JobState.IN_PROGRESS:
            return record.refuse(Hold.TERMINAL)
        if job.token_count != batch.index:
            return Hold.GAP
        first_ms = job.first_token_ms or (0 if batch.index else self._now())
        record.job = replace(
            job, token_count=batch.index + len(batch.token_ids), first_token_ms=first_ms
        )
        self._add(
            record,
            EntryKind.TOKENS,
            attempt=attempt,
            index=batch.index,
            token_ids=batch.token_ids,
            delta=batch.delta,
        )
        return Hold.OK

    async def finish(self, job_id: JobId, attempt: int, ending: Ending) -> Hold:
        record = self._find(job_id)
        self._unannounced[job_id] = self._now() + _SWEEP_AFTER_MS
        if ending.is_dead_letter:
            tenant = record.job.tenant if record else "default"
            self._dead.setdefault(tenant, {})[job_id] = self._now()
        if record is None:
            return Hold.MISSING
        if record.job.state.is_terminal:
            return record.refuse(Hold.TERMINAL)
        if record.job.attempt != attempt or record.job.state is JobState.QUEUED:
            return record.refuse(Hold.FENCED)
        self._end(record, ending, ending.error.code if ending.error else str(ending.state))
        return Hold.OK

    async def finish_and_get(
        self, job_id: JobId, attempt: int, ending: Ending
    ) -> tuple[Hold, Job | None]:
        return await self.finish(job_id, attempt, ending), await self.get(job_id)

    async def release(self, job_id: JobId, attempt: int, why: Release, error: JobError) -> bool:
        record = self._find(job_id)
        if record is None:
            return False
        job, now = record.job, self._now()
        if job.state is not JobState.IN_PROGRESS or job.attempt != attempt:
            record.refuse(Hold.FENCED)
            return False
        record.failures += why is not Release.HANDOVER
        if record.failures >= self._settings.max_attempts:
            ending = Ending(state=JobState.FAILED, error=error, is_dead_letter=True)
            self._end(record, ending, str(why))
            self._note_dead(record.job)
            return False
        record.job = replace(
            job,
            state=JobState.QUEUED,
            lease_owner="",
            lease_until_ms=0,
            history=closed(job.history, str(why), now),
        )
        self._add(record, EntryKind.STATE, attempt=attempt, state=JobState.QUEUED, at_ms=now)
        return True

    async def cancel(self, job_id: JobId) -> Job | None:
        self._conclude(job_id, Ending(state=JobState.CANCELLED), is_forced=True)
        return await self.get(job_id)

    async def conclude(self, job_id: JobId, ending: Ending) -> Hold:
        return self._conclude(job_id, ending, is_forced=False)

    async def redrive(self, job_id: JobId, request: JobRequest | None) -> bool:
        self._unpublished[job_id] = self._now() + _SWEEP_AFTER_MS
        record = self._find(job_id)
        if record is None or not record.job.is_dead_letter or record.job.state != JobState.FAILED:
            return False
        job = replace(
            record.job,
            state=JobState.QUEUED,
            is_dead_letter=False,
            is_announced=False,
            finished_ms=0,
            deadline_ms=0,
            error=None,
            result=None,
            usage=None,
        )
        if request is not None:
            record.sha = fingerprint(request.to_json(), job.tenant)
            record.must_restart, record.is_rejected = job.token_count > 0, False
            job = replace(job, request=request, token_count=0)
        record.job, record.failures, record.expires_ms = job, 0, 0
        self._add(
            record, EntryKind.STATE, attempt=job.attempt, state=JobState.QUEUED, at_ms=self._now()
        )
        return True

    async def delete(self, job_id: JobId) -> bool:
        record = self._find(job_id)
        if record is None or not record.job.state.is_terminal:
            return False
        del self._records[job_id]
        for index in (self._jobs, self._dead):
            index.get(record.job.tenant, {}).pop(job_id, None)
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
        return self._take(self._unpublished, limit)

    async def take_stranded(self, limit: int) -> list[JobId]:
        stranded = []
        for job_id in self._take(self._awaited, limit):
            record = self._find(job_id)
            if record is None or record.job.state.is_terminal:
                del self._awaited[job_id]
            elif record.job.lease_until_ms <= self._now():
                stranded.append(job_id)
        return stranded

    async def take_unannounced(self, limit: int) -> list[JobId]:
        return self._take(self._unannounced, limit)

    async def mark_published(self, job_id: JobId, *, age_ms: int = 0) -> None:
        look_ms = self._now() + max(age_ms, self._settings.republish_after_s * 1000)
        self._awaited[job_id] = look_ms if age_ms else self._awaited.get(job_id, look_ms)
        self._unpublished.pop(job_id, None)

    async def mark_announced(self, job_id: JobId) -> None:
        record = self._find(job_id)
        if record and not record.job.state.is_terminal:
            return
        self._unannounced.pop(job_id, None)
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
        by_tenant = (*self._jobs.values(), *self._dead.values())
        for index in (self._unpublished, self._awaited, self._unannounced, *by_tenant):
            for job_id in index.keys() - self._records.keys():
                del index[job_id]

    def _now(self) -> int:
        return self._clock.wall_ms()

    def _find(self, job_id: JobId) -> MemoryRecord | None:
        record = self._records.get(job_id)
        if record and 0 < record.expires_ms <= self._now():
            del self._records[job_id]
            return None
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
        ending = Ending(state=JobState.FAILED, error=reason, is_dead_letter=True)
        self._end(record, ending, outcome="")
        self._note_dead(record.job)
        return Acquired(status=AcquireStatus(reason.code))

    def _start_attempt(
        self, record: MemoryRecord, owner: str, can_resume: bool, now: int
    ) -> Acquired:
        job = record.job
        is_restart = record.must_restart or (job.token_count > 0 and not can_resume)
        tokens = 0 if is_restart else job.token_count
        record.must_restart = False
        started = AttemptRecord(
            attempt=job.attempt + 1, owner=owner, started_ms=now, resumed_from=tokens
        )
        record.job = replace(
            job,
            state=JobState.IN_PROGRESS,
            attempt=started.attempt,
            token_count=tokens,
            lease_owner=owner,
            lease_until_ms=now + self._settings.lease_ms,
            started_ms=job.started_ms or now,
            history=(*job.history, started),
        )
        self._add(
            record,
            EntryKind.ATTEMPT,
            attempt=started.attempt,
            index=tokens,
            is_restart=is_restart,
            at_ms=now,
        )
        return Acquired(status=AcquireStatus.ACQUIRED, attempt=started.attempt, token_count=tokens)

    def _renew(self, job_id: JobId, attempt: int, extend: bool) -> Hold:
        record = self._find(job_id)
        if record is None:
            return Hold.MISSING
        job, now = record.job, self._now()
        if job.attempt != attempt or job.state is JobState.QUEUED:
            return Hold.FENCED
        if job.state.is_terminal:
            return Hold.TERMINAL
        if 0 < job.deadline_ms <= now:
            return Hold.EXPIRED
        if extend:
            record.job = replace(job, lease_until_ms=now + self._settings.lease_ms)
        return Hold.OK

    def _conclude(self, job_id: JobId, ending: Ending, *, is_forced: bool) -> Hold:
        record = self._find(job_id)
        self._unannounced[job_id] = self._now() + _SWEEP_AFTER_MS
        if ending.is_dead_letter:
            tenant = record.job.tenant if record else "default"
            self._dead.setdefault(tenant, {})[job_id] = self._now()
        if record is None:
            return Hold.MISSING
        job = record.job
        if job.state.is_terminal:
            return Hold.TERMINAL
        if job.lease_until_ms > self._now() and not is_forced:
            return Hold.FENCED
        self._end(record, ending, str(ending.state))
        return Hold.OK

    def _end(self, record: MemoryRecord, ending: Ending, outcome: str) -> None:
        """The one way into a terminal state; a running attempt is closed with `outcome`."""
        now, job, s = self._now(), record.job, self._settings
        is_running = job.state is JobState.IN_PROGRESS
        record.job = replace(
            job,
            state=ending.state,
            finished_ms=now,
            lease_owner="",
            lease_until_ms=0,
            result=stored(ending.result, job.result),
            usage=stored(ending.usage, job.usage),
            error=ending.error or job.error,
            is_dead_letter=ending.is_dead_letter,
            is_announced=False,
            history=closed(job.history, outcome, now) if is_running and outcome else job.history,
        )
        retention_s = s.dead_letter_retention_s if ending.is_dead_letter else s.retention_s
        record.expires_ms = now + retention_s * 1000
        self._add(record, EntryKind.STATE, attempt=job.attempt, state=ending.state, at_ms=now)

    def _note_dead(self, job: Job, *, again: bool = False) -> None:
        now = self._now()
        dead = self._dead.setdefault(job.tenant, {})
        if not again or job.id not in self._unannounced:
            self._unannounced[job.id] = now + _SWEEP_AFTER_MS
        if not again or job.id not in dead:
            dead[job.id] = now

    def _add(self, record: MemoryRecord, kind: EntryKind, **fields: Any) -> None:
        now, (last_ms, sequence) = self._now(), self._last_entry
        self._last_entry = (now, 0) if now > last_ms else (last_ms, sequence + 1)
        cursor = f"{self._last_entry[0]}-{self._last_entry[1]}"
        record.entries.append(StreamEntry(cursor=cursor, kind=kind, **fields))

    def _list(
        self, index: Index, is_wanted: Callable[[Job], bool], limit: int, cursor: str
    ) -> Page:
        found: list[tuple[Job, ListCursor]] = []
        for job, place in self._newest_first(index, ListCursor.parse(cursor)):
            if is_wanted(job):
                if len(found) == limit:
                    return Page(jobs=tuple(j for j, _ in found), next_cursor=str(found[-1][1]))
                found.append((job, place))
        return Page(jobs=tuple(job for job, _ in found))

    def _newest_first(
        self, index: Index, after: ListCursor | None
    ) -> Iterator[tuple[Job, ListCursor]]:
        places = sorted((ListCursor(score, job_id) for job_id, score in index.items()))
        for place in reversed(places):
            record = self._find(place.job_id)
            if record is not None and (after is None or place < after):
                yield record.job, place

    def _take(self, index: Index, limit: int) -> list[JobId]:
        now = self._now()
        due = sorted((at, job_id) for job_id, at in index.items() if at <= now)[:limit]
        for _, job_id in due:
            index[job_id] = now + _HOLD_BY_SWEEPER_MS
        return [job_id for _, job_id in due]

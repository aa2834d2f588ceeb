"""The exact cache of the in-memory store: kept answers, and followers. The rules are those of `submit.lua`,
`settle_followers.lua` and `promote.lua`.

Called by `eventing.store.memory_store` only.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from eventing.errors import NotCached
from eventing.job.cache.cache import CacheAsk, CacheKind, CacheStatus, CacheUse
from eventing.job.cache.followers import FollowerStatus, FollowerStep
from eventing.job.job import Job, JobId, JobState, Lane
from eventing.job.store import LeaseSettings, NewJob, Publication
from eventing.store.job_record.parse import served_again
from eventing.store.memory_index import SWEEP_AFTER_MS, Index, MemoryIndex
from eventing.store.memory_record import MemoryRecord

_LANES: Final = list(Lane)
_ANSWERED: Final = (JobState.COMPLETED, JobState.INCOMPLETE)
_NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@dataclass(slots=True)
class _Entry:
    """The job that gave, or will give, an answer; `expires_ms` is 0 until it has."""

    job_id: JobId
    epoch: tuple[int, int]
    model: str
    expires_ms: int = 0


class MemoryAnswers:
    """The kept answers of all tenants, and the followers of each job. `find` gives a record that is still kept."""

    def __init__(
        self,
        find: Callable[[JobId], MemoryRecord | None],
        index: MemoryIndex,
        settings: LeaseSettings,
        now: Callable[[], int],
    ) -> None:
        self._find = find
        self._index = index
        self._settings = settings
        self._now = now
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._epochs: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._followers: defaultdict[JobId, Index] = defaultdict(dict)
        self._heirs: dict[JobId, JobId] = {}

    def take(self, new: NewJob) -> tuple[CacheUse, MemoryRecord] | None:
        """How the cache serves a job that is being recorded, and by which job; None when it does not. Raises
        `NotCached`.
        """
        found = self._look_up(new, new.cache) if new.cache and new.cache.key else None
        is_hit = found is not None and found[0].kind is CacheKind.EXACT
        if new.cache and new.cache.only_if_cached and not is_hit:
            raise NotCached("no answer is kept for this request")
        return found

    def _look_up(self, new: NewJob, ask: CacheAsk) -> tuple[CacheUse, MemoryRecord] | None:
        entry = self._entries.get((new.tenant, ask.key))
        if not ask.reads or entry is None or entry.epoch != self._epoch(new.tenant, entry.model):
            return None
        source, now = self._find(entry.job_id), self._now()
        if source is None or source.job.cache is None:
            return None
        job = source.job
        use = CacheUse(
            status=CacheStatus.HIT, kind=CacheKind.COALESCED, key=ask.key, source_job=job.id
        )
        if job.state is JobState.COMPLETED:
            age_s, ttl_s = max(0, (now - job.finished_ms) // 1000), source.job.cache.ttl_s
            if age_s >= ttl_s or age_s > ask.max_age_s:
                return None
            exact = replace(use, kind=CacheKind.EXACT, age_s=age_s, left_s=ttl_s - age_s)
            return exact, source
        is_sooner = job.state is JobState.IN_PROGRESS or (
            job.state is JobState.QUEUED and _LANES.index(job.lane) <= _LANES.index(new.lane)
        )
        if not is_sooner or job.follows:
            return None
        return replace(use, ttl_s=ask.ttl_s), source

    def note_new(self, new: NewJob) -> None:
        """The answer of a job that was recorded is to be kept."""
        if new.cache and new.cache.key:
            self._note(new.tenant, new.request.model, new.cache.key, new.id)

    def _note(self, tenant: str, model: str, key: str, job_id: JobId) -> None:
        entry = _Entry(job_id, self._epoch(tenant, model), model)
        self._entries[tenant, key] = entry

    def follow(self, record: MemoryRecord, use: CacheUse) -> None:
        """The recorded job waits for another's answer."""
        record.job = replace(record.job, cache=use, follows=use.source_job)
        self._followers[JobId(use.source_job)][record.job.id] = self._now()

    def serve(self, record: MemoryRecord, use: CacheUse, source: MemoryRecord) -> None:
        """End a job with a kept answer."""
        now = self._now()
        record.job = replace(record.job, started_ms=now, first_token_ms=now)
        self._end_with(record, source, use, has_stream=not source.was_restarted)

    def _end_with(
        self, record: MemoryRecord, source: MemoryRecord, use: CacheUse, *, has_stream: bool
    ) -> None:
        given, now = source.job, self._now()
        usage = _NO_USAGE if given.usage is not None else None
        if has_stream:
            record.entries = list(source.entries)
        use = replace(use, saved_usage=given.usage)
        job = record.job
        record.job = replace(
            job,
            state=given.state,
            finished_ms=now,
            token_count=given.token_count if has_stream else 0,
            usage=usage,
            result=served_again(job.id, given.result, usage, job.created_ms, use),
            cache=use,
            pipeline=given.pipeline,
        )
        record.expires_ms = now + self._settings.retention_s * 1000
        if not has_stream:
            record.write_state(now)
        self._index.note_end(record.job, now)

    def running(self, job: Job) -> Job:
        """The job as an attempt of it starts: it waits for no other."""
        if not job.follows:
            return job
        self._followers[JobId(job.follows)].pop(job.id, None)
        return replace(job, follows="", cache=None)

    def note_end(self, job: Job) -> None:
        """A job has ended: keep its answer, or forget that it was to come."""
        if job.follows:
            self._followers[JobId(job.follows)].pop(job.id, None)
        use = job.cache
        if use is None or use.status is not CacheStatus.MISS:
            return
        entry = self._entries.get((job.tenant, use.key))
        if entry is None or entry.job_id != job.id:
            return
        if job.state is JobState.COMPLETED:
            entry.expires_ms = self._now() + 1000 * use.ttl_s
        else:
            del self._entries[job.tenant, use.key]

    def note_deleted(self, job: Job) -> None:
        """The job's answer is served to no other any more."""
        key = (job.tenant, job.cache.key if job.cache else "")
        if key in self._entries and self._entries[key].job_id == job.id:
            del self._entries[key]

    async def settle_followers(self, leader: JobId, limit: int) -> FollowerStep:
        found, heir = self._followers[leader], self._heirs.get(leader)
        moved = FollowerStep(FollowerStatus.MOVED, heir) if heir else None
        if not found:
            return moved or FollowerStep(FollowerStatus.DONE)
        source = self._find(leader)
        if source is not None and not source.job.state.is_terminal:
            return FollowerStep(FollowerStatus.RUNNING)
        answered = source if source is not None and source.job.state in _ANSWERED else None
        for job_id in sorted(found, key=lambda each: (found[each], each))[:limit]:
            record = self._find(job_id)
            if record is None or record.job.stream_id != leader:
                del found[job_id]
            elif answered is not None:
                del found[job_id]
                self._end_follower(record, answered)
            elif heir is not None:
                self._followers[heir][job_id] = found.pop(job_id)
                use = record.job.cache and replace(record.job.cache, source_job=heir)
                record.job = replace(record.job, follows=heir, cache=use)
            else:
                return FollowerStep(FollowerStatus.ORPHANED, job_id)
        if found:
            return FollowerStep(FollowerStatus.MORE)
        return FollowerStep(FollowerStatus.DONE) if answered or moved is None else moved

    def _end_follower(self, record: MemoryRecord, source: MemoryRecord) -> None:
        job, led = record.job, source.job
        record.job = replace(
            job,
            started_ms=max(job.created_ms, led.started_ms),
            first_token_ms=max(job.created_ms, led.first_token_ms),
        )
        key = job.cache.key if job.cache else ""
        use = CacheUse(status=CacheStatus.HIT, kind=CacheKind.COALESCED, key=key, source_job=led.id)
        self._end_with(record, source, use, has_stream=True)

    async def promote(self, follower: Job, publication: Publication) -> bool:
        leader = JobId(follower.follows)
        record, source = self._find(follower.id), self._find(leader)
        if record is None or record.job.stream_id != leader or leader in self._heirs:
            return False
        if source is not None and (
            not source.job.state.is_terminal or source.job.state in _ANSWERED
        ):
            return False
        job, use, now = record.job, record.job.cache, self._now()
        assert use is not None  # noqa: S101 (a follower has one)
        if source is not None and source.entries:
            record.entries = list(source.entries)
            job = replace(job, token_count=source.job.token_count, attempt=source.job.attempt)
        miss = CacheUse(status=CacheStatus.MISS, key=use.key, ttl_s=use.ttl_s, fwd="uri-miss")
        record.job = replace(job, follows="", cache=miss)
        record.write_state(now)
        self._heirs[leader] = job.id
        self._followers[leader].pop(job.id, None)
        if (job.tenant, use.key) not in self._entries:
            self._note(job.tenant, job.request.model, use.key, job.id)
        self._index.unstarted[job.id] = now + self._settings.republish_after_s * 1000
        if publication.max_unpublished is not None:
            self._index.unpublished[job.id] = now + SWEEP_AFTER_MS
        return True

    async def forget_answer(self, tenant: str, name: str) -> bool:
        return self._entries.pop((tenant, name), None) is not None

    async def invalidate_answers(
        self, tenant: str, models: Sequence[str], *, is_all: bool, is_dry_run: bool
    ) -> int:
        now = self._now()
        count = sum(
            owner == tenant
            and entry.model in models
            and entry.expires_ms >= now
            and entry.epoch == self._epoch(tenant, entry.model)
            for (owner, _), entry in self._entries.items()
        )
        if not is_dry_run:
            for model in ("*",) if is_all else models:
                self._epochs[tenant, model] += 1
        return count

    def _epoch(self, tenant: str, model: str) -> tuple[int, int]:
        return self._epochs[tenant, "*"], self._epochs[tenant, model]

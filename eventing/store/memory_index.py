"""The in-memory store's sorted sets: job lists and due times of the sweeps.

Called by `eventing.store.memory_store` only. It knows ids and times; its caller knows the jobs and which still
exist.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Final

import orjson

from eventing.job.job import Job, JobId
from eventing.job.list_cursor import LIST_LOOKS, ListCursor, fitting
from eventing.job.store import ListField, NewJob, Page
from eventing.store.job_record.parse import listed

SWEEP_AFTER_MS: Final = 10_000
_HOLD_BY_SWEEPER_MS: Final = 15_000

Index = dict[JobId, int]
"""Members with their time, like a sorted set."""


class MemoryIndex:
    """The lists of each tenant, and the entries that sweepers work off."""

    def __init__(self) -> None:
        self._jobs: defaultdict[str, Index] = defaultdict(dict)
        self._dead: defaultdict[str, Index] = defaultdict(dict)
        self.unpublished: Index = {}
        self.unstarted: Index = {}
        self.deadlines: Index = {}
        self._deleted: Index = {}

    def jobs(self, tenant: str) -> Index:
        """All jobs of a tenant."""
        return self._jobs[tenant]

    def dead(self, tenant: str) -> Index:
        """The dead letters of a tenant."""
        return self._dead[tenant]

    def note_new(self, new: NewJob, look_ms: int, now_ms: int) -> None:
        """Add a new job; `look_ms` is when the sweep first checks it."""
        self._jobs[new.tenant][new.id] = now_ms
        self.unstarted[new.id] = look_ms
        if new.deadline_ms:
            self.deadlines[new.id] = new.deadline_ms

    def note_end(self, job: Job, now_ms: int) -> None:
        """Remove an ended job from the sweeps."""
        for index in (self.unpublished, self.unstarted, self.deadlines):
            index.pop(job.id, None)
        if job.is_dead_letter:
            self._dead[job.tenant][job.id] = now_ms

    def note_deleted(self, job_id: JobId, tenant: str, until_ms: int) -> None:
        """Remove a job from its tenant's lists, and keep its id from use; its sweep entries stay."""
        for lists in (self._jobs, self._dead):
            lists[tenant].pop(job_id, None)
        self._deleted[job_id] = until_ms

    def is_deleted(self, job_id: JobId, now_ms: int) -> bool:
        """True while no event can create the job again."""
        return self._deleted.get(job_id, 0) > now_ms

    def keep_only(self, job_ids: Collection[JobId], now_ms: int) -> None:
        """Drop every other job, and the ids of deleted ones that may be used again."""
        self._deleted = {each: until for each, until in self._deleted.items() if until > now_ms}
        by_tenant = (*self._jobs.values(), *self._dead.values())
        for index in (self.unpublished, self.unstarted, self.deadlines, *by_tenant):
            for job_id in index.keys() - job_ids:
                del index[job_id]


def take_due(index: Index, limit: int, now_ms: int) -> list[JobId]:
    """The members that are due, oldest first; each is postponed, so that no other sweeper takes it meanwhile."""
    taken = due(index, limit, now_ms)
    for job_id in taken:
        index[job_id] = now_ms + _HOLD_BY_SWEEPER_MS
    return taken


def due(index: Index, limit: int, now_ms: int) -> list[JobId]:
    """The members that are due, oldest first."""
    found = sorted((at_ms, job_id) for job_id, at_ms in index.items() if at_ms <= now_ms)
    return [job_id for _, job_id in found[:limit]]


def page(
    index: Index,
    find: Callable[[JobId], Job | None],
    is_wanted: Callable[[Job], bool],
    limit: int,
    cursor: str,
    include: Collection[ListField],
) -> Page:
    """A page of the listed jobs that exist and match, newest first. Raises `BadRequest` for an invalid cursor."""
    places = list(_newest_first(index, ListCursor.parse(cursor)))
    looked = places[:LIST_LOOKS]
    pairs = [(place, job) for place in looked if (job := find(place.job_id)) and is_wanted(job)]
    place = looked[-1] if len(places) > len(looked) else None
    fit = fitting([_size(job, include) for _, job in pairs[:limit]])
    if len(pairs) > fit:
        place = pairs[fit - 1][0]
    jobs = tuple(listed(job, include) for _, job in pairs[:fit])
    return Page(jobs=jobs, next_cursor=str(place or ""))


def _size(job: Job, include: Collection[ListField]) -> int:
    """Bytes of the fields that a list contains only on request."""
    request = len(job.request.to_json()) if ListField.REQUEST in include else 0
    has_result = ListField.RESULT in include and job.result is not None
    return request + (len(orjson.dumps(job.result)) if has_result else 0)


def _newest_first(index: Index, after: ListCursor | None) -> Iterator[ListCursor]:
    places = sorted((ListCursor(at_ms, job_id) for job_id, at_ms in index.items()), reverse=True)
    return (place for place in places if after is None or place < after)

"""Who is listed where, and which job is due for which sweep: the sorted sets of the real store.

Called by `eventing.store.memory_store` only. It knows ids and times; what a job is and whether it still
exists, its caller says.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Final

import orjson

from eventing.job.job import Job, JobId
from eventing.job.list_cursor import LIST_LOOKS, ListCursor, fitting
from eventing.job.store import ListField, Page
from eventing.store.job_record import listed

SWEEP_AFTER_MS: Final = 10_000
_HOLD_BY_SWEEPER_MS: Final = 15_000

Index = dict[JobId, int]
"""Members with their time, as a sorted set has them."""


class MemoryIndex:
    """The lists of each tenant, and the notes that sweepers work off."""

    def __init__(self) -> None:
        self._jobs: defaultdict[str, Index] = defaultdict(dict)
        self._dead: defaultdict[str, Index] = defaultdict(dict)
        self.unpublished: Index = {}
        self.awaited: Index = {}
        self.unannounced: Index = {}

    def jobs(self, tenant: str) -> Index:
        """All jobs of a tenant."""
        return self._jobs[tenant]

    def dead(self, tenant: str) -> Index:
        """Those of a tenant that were set aside."""
        return self._dead[tenant]

    def note_end(self, job_id: JobId, dead_of: str | None, now_ms: int) -> None:
        """An end is to be announced; as a dead letter of the tenant `dead_of`, if one is given."""
        self.unannounced[job_id] = now_ms + SWEEP_AFTER_MS
        if dead_of is not None:
            self._dead[dead_of][job_id] = now_ms

    def note_end_again(self, job_id: JobId, dead_of: str, now_ms: int) -> None:
        """As `note_end`, but what is noted already keeps its time."""
        self.unannounced.setdefault(job_id, now_ms + SWEEP_AFTER_MS)
        self._dead[dead_of].setdefault(job_id, now_ms)

    def unlist(self, job_id: JobId, tenant: str) -> None:
        """Take a job off its tenant's lists; its notes stay."""
        for lists in (self._jobs, self._dead):
            lists[tenant].pop(job_id, None)

    def keep_only(self, job_ids: Collection[JobId]) -> None:
        """Drop all that is said of any other job."""
        by_tenant = (*self._jobs.values(), *self._dead.values())
        for index in (self.unpublished, self.awaited, self.unannounced, *by_tenant):
            for job_id in index.keys() - job_ids:
                del index[job_id]


def take_due(index: Index, limit: int, now_ms: int) -> list[JobId]:
    """The members whose time has come, oldest first; each is put off, so that no other sweeper
    takes it meanwhile.
    """
    due = sorted((at_ms, job_id) for job_id, at_ms in index.items() if at_ms <= now_ms)[:limit]
    for _, job_id in due:
        index[job_id] = now_ms + _HOLD_BY_SWEEPER_MS
    return [job_id for _, job_id in due]


def page(
    index: Index,
    find: Callable[[JobId], Job | None],
    is_wanted: Callable[[Job], bool],
    limit: int,
    cursor: str,
    include: Collection[ListField],
) -> Page:
    """A page of the listed jobs that still exist and are wanted, newest first. Raises `BadRequest`
    for a cursor that is none of ours.
    """
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
    """Bytes of what a list shows only when asked to."""
    request = len(job.request.to_json()) if ListField.REQUEST in include else 0
    has_result = ListField.RESULT in include and job.result is not None
    return request + (len(orjson.dumps(job.result)) if has_result else 0)


def _newest_first(index: Index, after: ListCursor | None) -> Iterator[ListCursor]:
    places = sorted((ListCursor(at_ms, job_id) for job_id, at_ms in index.items()), reverse=True)
    return (place for place in places if after is None or place < after)

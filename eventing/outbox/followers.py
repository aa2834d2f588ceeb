"""Ends the jobs that follow another job of the same request, once that one has ended, and sends the result events of
jobs that no predictor answers.

Called by the api for every ended job (`eventing.live.ended`), at least once, and by the sweep for what a crash left. A
job that ended without an answer leaves its followers to the oldest of them, which runs in its place.
"""

from typing import Final, Protocol

import structlog

from eventing.cloudevent.publisher import Publisher
from eventing.cloudevent.result_event import result_event
from eventing.errors import BadRequest
from eventing.job.cache.cache import CacheKind, CacheStatus
from eventing.job.cache.followers import Followers, FollowerStatus
from eventing.job.job import Job, JobError, JobId, JobState
from eventing.job.store import Ending, JobIntake

_AT_ONCE: Final = 50
"""Followers that one script ends: a few milliseconds of the store."""
_log = structlog.get_logger()


class Promoter(Protocol):
    """Lets a follower run (`eventing.broker.intake.Intake`)."""

    async def promote(self, follower: Job, followers: Followers) -> bool: ...


class FollowerListener:
    """An `EndListener`."""

    def __init__(
        self, store: JobIntake, followers: Followers, intake: Promoter, publisher: Publisher
    ) -> None:
        self._store = store
        self._followers = followers
        self._intake = intake
        self._publisher = publisher

    async def ended(self, job: Job) -> None:
        """Raises `Unavailable`; the call must then be repeated."""
        if job.cache is None:
            if not job.request.url:  # deleted since: not known whether others follow it
                await self.settle(job.id)
        elif job.cache.status is CacheStatus.MISS or job.cache.kind is CacheKind.SEMANTIC:
            await self.settle(job.id)  # a step sends the result event itself
        elif job.cache.is_hit:
            whole = await self._store.get(job.id)
            if whole is not None and whole.state.is_terminal:
                await self._publisher.publish(result_event(whole))

    async def settle(self, leader: JobId) -> None:
        """End the followers of a job that has ended, or let one of them run. Idempotent."""
        while True:
            step = await self._followers.settle_followers(leader, _AT_ONCE)
            match step.status:
                case FollowerStatus.DONE | FollowerStatus.RUNNING:
                    return
                case FollowerStatus.MOVED if step.job_id:
                    leader = step.job_id
                case FollowerStatus.ORPHANED if step.job_id:
                    await self._promote(step.job_id)

    async def _promote(self, job_id: JobId) -> None:
        follower = await self._store.get(job_id, with_result=False)
        if follower is None:
            return
        try:
            is_queued = await self._intake.promote(follower, self._followers)
        except BadRequest as error:  # no broker takes it any more
            reason = JobError(code=error.code, message=error.message, field=error.field)
            ending = Ending(state=JobState.FAILED, error=reason, is_dead_letter=True)
            await self._store.conclude(job_id, ending)
            return
        if is_queued:
            _log.info("runs in another's place", action="promote", job_id=job_id)

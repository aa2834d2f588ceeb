"""Interfaces to kept answers, and to jobs that wait for another job's answer.

Implemented by both stores. Called by `eventing.outbox.followers`, which ends followers, and by the api's cache routes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from eventing.job.job import Job, JobId
from eventing.job.store import Publication


class FollowerStatus(StrEnum):
    """What one step over a job's followers found."""

    DONE = "done"  #: none is left
    MORE = "more"  #: some are left
    RUNNING = "running"  #: the job that they follow has not ended
    ORPHANED = "orphaned"  #: it ended without an answer, and one of them is to be promoted
    MOVED = "moved"  #: they follow another job now


@dataclass(frozen=True, slots=True)
class FollowerStep:
    """One step: its status, and the job that it is about (the oldest follower, or whom they follow now)."""

    status: FollowerStatus
    job_id: JobId | None = None


class Followers(Protocol):
    """Ends followers, and lets one of them run."""

    async def settle_followers(self, leader: JobId, limit: int) -> FollowerStep:
        """End at most `limit` followers of an ended job with its answer; idempotent."""

    async def promote(self, follower: Job, publication: Publication) -> bool:
        """Queue a follower whose leader ended without an answer; False when it follows that job no more."""


class KeptAnswers(Protocol):
    """The answers of a tenant that are served again."""

    async def forget_answer(self, tenant: str, name: str) -> bool:
        """Drop one entry; False when there is none."""

    async def invalidate_answers(
        self, tenant: str, models: Sequence[str], *, is_all: bool, is_dry_run: bool
    ) -> int:
        """Void the kept answers of these models, or of all; how many were, or would be, voided. Answers on their way
        are not kept either.
        """


class Answers(Followers, KeptAnswers, Protocol):
    """Both, as a store has them."""

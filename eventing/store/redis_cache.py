"""The exact cache on Redis: what a submit asks of it, kept answers, and followers.

Called by `eventing.store.redis_store` only.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
from redis.asyncio import Redis

from eventing.job.cache.cache import cache_use_of
from eventing.job.cache.followers import FollowerStatus, FollowerStep
from eventing.job.job import Job, JobId
from eventing.job.store import LeaseSettings, NewJob, Publication
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import Argument, run
from eventing.store.job_record.parse import fresh


def ask_args(new: NewJob, retention_s: int, *, has_objects: bool) -> bytes:
    """The script's arguments about the cache; empty where it is not asked. Without `has_objects`, answers in the
    object store are not served.
    """
    ask = new.cache
    if ask is None:
        return b""
    if not ask.key:
        return orjson.dumps({"only_if_cached": ask.only_if_cached})
    return orjson.dumps(
        {
            "key": ask.key,
            "model": new.request.model,
            "ttl_s": ask.ttl_s,
            "max_age_s": ask.max_age_s,
            "reads": ask.reads,
            "only_if_cached": ask.only_if_cached,
            "has_objects": has_objects,
            "retention_s": retention_s,
        }
    )


def following(new: NewJob, created_ms: int, leader: bytes, use: bytes) -> Job:
    """The job just recorded as another's follower."""
    job = fresh(new, created_ms)
    return replace(job, follows=leader.decode(), cache=cache_use_of(use))


class RedisAnswers:
    """Kept answers and followers; the client belongs to the caller."""

    def __init__(self, redis: Redis, settings: LeaseSettings) -> None:
        self._redis = redis
        self._settings = settings

    async def settle_followers(self, leader: JobId, limit: int) -> FollowerStep:
        names = [keys.job(leader), keys.followers(leader)]
        answer = await self._run(
            "settle_followers", names, [leader, limit, self._settings.retention_s]
        )
        status = FollowerStatus(answer[0].decode())
        return FollowerStep(status, JobId(answer[1].decode()) if len(answer) > 1 else None)

    async def promote(self, follower: Job, publication: Publication) -> bool:
        leader = JobId(follower.follows)
        names = [keys.job(follower.id), keys.tokens(follower.id)]
        names += [keys.job(leader), keys.tokens(leader), keys.followers(leader)]
        args: list[Argument] = [
            follower.id,
            leader,
            self._settings.republish_after_s * 1000,
            int(publication.max_unpublished is not None),
            publication.event,
            self._settings.retention_s,
            *publication.queues,
        ]
        return bool(await self._run("promote", names, args) == b"queued")

    async def forget_answer(self, tenant: str, name: str) -> bool:
        args = [keys.escape(tenant), name]
        return bool(await self._run("cache_forget", [keys.cache_entry(tenant, name)], args))

    async def invalidate_answers(
        self, tenant: str, models: Sequence[str], *, is_all: bool, is_dry_run: bool
    ) -> int:
        args: list[Argument] = [keys.escape(tenant), int(is_dry_run), int(is_all), *models]
        return int(await self._run("cache_invalidate", [keys.cache_epochs(tenant)], args))

    async def _run(self, name: str, names: Sequence[str], args: Sequence[Argument]) -> Any:
        async with failures_named():
            return await run(self._redis, name, names, args)

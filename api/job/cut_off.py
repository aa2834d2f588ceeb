"""Jobs of held calls that a shutdown cut off, for the clients that repeat the call.

Called by `api.routes.held`. OpenAI's SDKs repeat a call that was answered 503, with `x-stainless-retry-count` and
without an Idempotency-Key: the repeat takes over the first call's job. Must not know HTTP.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from eventing.job.job import JobId
from eventing.redis.connection import failures_named
from eventing.redis.keys import PREFIX

_KEPT_S: Final = 600


class CutOffCalls:
    """Cut-off calls in Redis; the client belongs to the caller. Every method may raise `StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def note(self, tenant: str, path: str, body: Mapping[str, Any], job_id: JobId) -> None:
        """Record that the call is cut off while its job goes on."""
        key = _key(tenant, path, body)
        async with failures_named(), self._redis.pipeline(transaction=True) as pipe:
            pipe.rpush(key, job_id)
            pipe.expire(key, _KEPT_S)
            await pipe.execute()

    async def take(self, tenant: str, path: str, body: Mapping[str, Any]) -> JobId | None:
        """The job of the same call by the same tenant, cut off in the last ten minutes; it is given to one caller
        only.
        """
        async with failures_named():
            found = await self._redis.lpop(_key(tenant, path, body))
        return JobId(found.decode()) if isinstance(found, bytes) else None


def _key(tenant: str, path: str, body: Mapping[str, Any]) -> str:
    asked = orjson.dumps([tenant, path, body], option=orjson.OPT_SORT_KEYS)
    return f"{PREFIX}:cut_off:{hashlib.sha256(asked).hexdigest()}"

"""One submit at a time under one job id: repeats of an `Idempotency-Key` or of an event that come at once.

Called by `api.limit.gate` where a tenant has limits. Without it each of them would take its place in the limits beside
the others', and be refused by what the others hold.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from redis.asyncio import Redis

from eventing.errors import Overloaded, StoreUnavailable
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run

_LOOK_EVERY_S: Final = 0.02
_AGAIN_S: Final = 1.0


class SubmitTurns:
    """The turns of all processes; the client belongs to the caller. `longest_s` is that of a process that died."""

    def __init__(self, redis: Redis, longest_s: float) -> None:
        self._redis = redis
        self._longest_ms = int(longest_s * 1000)

    @asynccontextmanager
    async def of(self, job_id: JobId, wait_s: float) -> AsyncIterator[bool]:
        """Wait for the turn of a submit, and hold it. Gives True when the job is recorded already; then no turn is
        waited for. Raises `StoreUnavailable`, and `Overloaded` when it does not come in time.
        """
        token = secrets.token_hex(8)
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    is_held = await self._take(job_id, token)
                    is_recorded = await self._is_recorded(job_id)
                    if is_held or is_recorded:
                        break
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError as error:
            raise Overloaded(
                "the first call with this identity is in progress", _AGAIN_S
            ) from error
        try:
            yield is_recorded
        finally:
            if is_held:
                with suppress(StoreUnavailable):
                    await self._leave(job_id, token)

    async def _is_recorded(self, job_id: JobId) -> bool:
        async with failures_named():
            return bool(await self._redis.exists(keys.job(job_id)))

    async def _take(self, job_id: JobId, token: str) -> bool:
        name = keys.submitting(job_id)
        async with failures_named():
            return bool(await self._redis.set(name, token, nx=True, px=self._longest_ms))

    async def _leave(self, job_id: JobId, token: str) -> None:
        async with failures_named():
            await run(self._redis, "leave_turn", [keys.submitting(job_id)], [token])

"""Limits the number of concurrent submits to the store and the broker.

Called by `api.job.submission`. In a burst beyond their capacity, running all submits at once would make all of them
too late. A bounded number runs, some wait a moment, and the rest is refused with Retry-After while that is cheap.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from eventing.errors import Overloaded

_ABREAST: Final = 64
_WAITING: Final = 1_000
_RETRY_AFTER_S: Final = 2.0


class ConcurrencyLimiter:
    """Runs at most `max_concurrent` at a time, first come first served."""

    def __init__(self, max_concurrent: int = _ABREAST, waiting: int = _WAITING) -> None:
        self._slots = asyncio.Semaphore(max_concurrent)
        self._room = waiting
        self._waiting = 0

    @asynccontextmanager
    async def acquire(self, timeout_s: float) -> AsyncIterator[None]:
        """Raises `Overloaded` when too many are waiting already, or the wait was too long."""
        if self._waiting >= self._room:
            raise Overloaded("too many submits at once", _RETRY_AFTER_S)
        if self._slots.locked():
            await self._wait(timeout_s)
        else:
            await self._slots.acquire()  # no one waits: no timer needed
        try:
            yield
        finally:
            self._slots.release()

    async def _wait(self, timeout_s: float) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise Overloaded("too many submits at once", _RETRY_AFTER_S) from error
        finally:
            self._waiting -= 1

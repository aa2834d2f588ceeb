"""Wakes callers that wait for a job's end.

Called by the api for held calls and long polls. One connection of the process reads the tail of the stream of ended
jobs (`eventing.redis.keys.ENDED`) and resumes after a reconnect. An entry is only a hint: the job's record has the
outcome, and waiting callers also read it at intervals. Must not know HTTP.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from eventing.errors import StoreUnavailable
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import SharedRedis

_BACKOFF_S: Final = 0.5
_REMEMBERED: Final = 4_096
"""Number of recent endings remembered, for callers that start waiting just after the end."""

_log = structlog.get_logger()


class CompletionNotifier:
    """Run `run` in a task of the process."""

    def __init__(self, redis: SharedRedis) -> None:
        self._redis = redis
        self._tail = redis.dedicated_connection()
        self._cursor = b""
        self._waiting: dict[bytes, list[asyncio.Event]] = {}
        self._ended: dict[bytes, None] = {}
        self.is_reading = False  #: set while the stream is read

    @contextmanager
    def expecting(self, job_id: JobId) -> Iterator[asyncio.Event]:
        """An event that is set when the job's record should be read: the job has ended, or may have ended while the
        stream could not be read.
        """
        key, news = job_id.encode(), asyncio.Event()
        if key in self._ended or not self.is_reading:
            news.set()
        self._waiting.setdefault(key, []).append(news)
        try:
            yield news
        finally:
            self._waiting[key].remove(news)
            if not self._waiting[key]:
                del self._waiting[key]

    async def run(self) -> None:
        """Read until cancelled; waits while the store is unavailable."""
        while True:
            try:
                async with failures_named():
                    await self._start()
                    while True:
                        await self._read()
            except StoreUnavailable as error:
                _log.debug("waits for the store", action="tail", reason=error.code)
                await asyncio.sleep(_BACKOFF_S)
            finally:
                self.is_reading = False

    async def _start(self) -> None:
        """Start at the newest entry; callers that wait already read the record themselves. The last cursor is not
        used: a store that came back with an older stream would deliver nothing until it had passed that cursor.
        """
        newest = await self._redis.xrevrange(keys.ENDED, count=1)
        self._cursor = newest[0][0] if newest else b"0-0"
        self.is_reading = True
        for news in [event for events in self._waiting.values() for event in events]:
            news.set()

    async def _read(self) -> None:
        block_ms = self._redis.longest_block_ms
        command = ("XREAD", "COUNT", 1000, "BLOCK", block_ms, "STREAMS", keys.ENDED, self._cursor)
        (found,) = await self._tail.send([command])
        for cursor, flat in found[0][1] if found else ():
            self._cursor = cursor
            self._notify(flat[flat.index(b"job") + 1])

    def _notify(self, job_id: bytes) -> None:
        self._ended[job_id] = None
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]
        for news in self._waiting.get(job_id, ()):
            news.set()

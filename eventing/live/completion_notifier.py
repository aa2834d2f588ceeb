"""Tells who waits for a job's end that it has come: one message a job, however many tokens it made.

Called by the api for held calls and long polls. The scripts that end a job publish its key
(`eventing.redis.keys.ENDED`); one connection of the process listens. A message is a hint: the record
says how the job ended. Messages can be lost with the connection, so everybody looks at the record
when it is back, and those who wait look now and then anyway. Must not know HTTP.
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

_PING_EVERY_S: Final = 1.0
_BACKOFF_S: Final = 0.5
_REMEMBERED: Final = 4_096
"""Ends of the last seconds, for those who begin to wait just after."""

_log = structlog.get_logger()


class CompletionNotifier:
    """Run `run` in a task of the process."""

    def __init__(self, redis: SharedRedis) -> None:
        self._line = redis.dedicated_connection(self._notify)
        self._waiting: dict[bytes, list[asyncio.Event]] = {}
        self._ended: dict[bytes, None] = {}
        self.is_listening = False  #: ends are heard of now

    @contextmanager
    def expecting(self, job_id: JobId) -> Iterator[asyncio.Event]:
        """An event that is set when the job's record should be looked at: it has ended, or it may
        have while nobody listened.
        """
        key, news = keys.job(job_id).encode(), asyncio.Event()
        if key in self._ended or not self.is_listening:
            news.set()
        self._waiting.setdefault(key, []).append(news)
        try:
            yield news
        finally:
            self._waiting[key].remove(news)
            if not self._waiting[key]:
                del self._waiting[key]

    async def run(self) -> None:
        """Listen until cancelled; a store that is away is waited for."""
        while True:
            try:
                async with failures_named():
                    await self._listen()
            except StoreUnavailable as error:
                _log.debug("waits for the store", action="bell", reason=error.code)
                await asyncio.sleep(_BACKOFF_S)
            finally:
                self.is_listening = False

    async def _listen(self) -> None:
        """Returns when the line was opened anew and nobody has subscribed on it."""
        await self._line.send([("SUBSCRIBE", keys.ENDED)])
        self.is_listening = True
        for news in [event for events in self._waiting.values() for event in events]:
            news.set()
        while await self._is_subscribed():  # noqa: ASYNC110 (a connection has no event to await)
            await asyncio.sleep(_PING_EVERY_S)

    async def _is_subscribed(self) -> bool:
        """A server answers a subscriber's ping with a list, anybody else's with a word."""
        (pong,) = await self._line.send([("PING",)])
        return isinstance(pong, list)

    def _notify(self, key: bytes) -> None:
        self._ended[key] = None
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]
        for news in self._waiting.get(key, ()):
            news.set()

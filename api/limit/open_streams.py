"""The streams that each tenant has open at this process, the rate at which they are opened, and whether the key of
each is still valid.

Called by `api.routes.route` for every call, and by the handlers of streams. Must not know what is streamed.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from api.auth.principal import Principal
from api.limit.limit import RateLimited
from eventing.errors import Unavailable

_LOOK_EVERY_S: Final = 5.0
_FULL_S: Final = 5.0
_OPENED_AT_ONCE: Final = 4
"""Streams that begin in one iteration of the event loop. Opening one takes about a millisecond, and whatever else
the process serves waits for it.
"""


class StreamCredentials(Protocol):
    """Checks credentials again (`api.auth.authenticator.CredentialAuthenticator`)."""

    async def is_still_good(self, principal: Principal) -> bool: ...


@dataclass(frozen=True, slots=True)
class StreamHold:
    """One open stream of a principal, which is counted until `count` is closed."""

    streams: "OpenStreams"
    principal: Principal
    count: AbstractContextManager[Any]

    async def until_revoked(self) -> None:
        """Return once the key is revoked; never for a credential that cannot be revoked."""
        await self.streams.until_revoked(self.principal)


class OpenStreams:
    """The open streams of this process by tenant; `limit` is 0 for none."""

    def __init__(self, limit: int, credentials: StreamCredentials) -> None:
        self._limit = limit
        self._credentials = credentials
        self._open: Counter[str] = Counter()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._begun = 0

    async def turn(self) -> None:
        """Return when one more stream may be opened: in the order of the calls, so many in each iteration of the event
        loop, so that other calls are answered while thousands of readers return at once.
        """
        loop = asyncio.get_running_loop()
        if not self._begun:
            loop.call_soon(self._next_iteration)
        if self._begun < _OPENED_AT_ONCE:
            self._begun += 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next_iteration(self) -> None:
        self._begun = 0
        while self._waiting and self._begun < _OPENED_AT_ONCE:
            turn = self._waiting.popleft()
            if not turn.done():  # its call was cancelled
                turn.set_result(None)
                self._begun += 1
        if self._begun:
            asyncio.get_running_loop().call_soon(self._next_iteration)

    @contextmanager
    def counted(self, principal: Principal) -> Iterator[None]:
        """Counts a stream of the tenant while the block runs. Raises `RateLimited` when the tenant has the largest
        allowed number of streams here.
        """
        if self._limit and self._open[principal.tenant] >= self._limit:
            raise RateLimited(f"{self._limit} streams of this tenant are open here", _FULL_S)
        self._open[principal.tenant] += 1
        try:
            yield
        finally:
            self._open[principal.tenant] -= 1
            if not self._open[principal.tenant]:
                del self._open[principal.tenant]

    async def until_revoked(self, principal: Principal) -> None:
        """Return once the key that opened a stream is revoked. While the store is unavailable, a key counts as
        valid.
        """
        while True:
            await asyncio.sleep(_LOOK_EVERY_S if principal.is_revocable else 3600)
            with suppress(Unavailable):
                if not await self._credentials.is_still_good(principal):
                    return

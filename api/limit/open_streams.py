"""How many streams each tenant holds open at this process, and whether the key that opened one is still good.

Called by `api.routes.route` for every call, and by the handlers of streams. Must not know what is streamed.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from api.auth.principal import Principal
from api.limit.limit import RateLimited
from eventing.errors import Unavailable

_LOOK_EVERY_S: Final = 5.0
_FULL_S: Final = 5.0


class StreamCredentials(Protocol):
    """Tells of credentials that were good once (`api.auth.authenticator.CredentialAuthenticator`)."""

    async def is_still_good(self, principal: Principal) -> bool: ...


@dataclass(frozen=True, slots=True)
class StreamHold:
    """One open stream: who opened it, and where it is counted."""

    streams: "OpenStreams"
    principal: Principal

    def counted(self) -> AbstractContextManager[None]:
        """While it is open."""
        return self.streams.counted(self.principal)

    async def until_revoked(self) -> None:
        """Return once its key is good no longer; never where no key can be revoked."""
        await self.streams.until_revoked(self.principal)


class OpenStreams:
    """Counted where they are held; `limit` is 0 for none."""

    def __init__(self, limit: int, credentials: StreamCredentials) -> None:
        self._limit = limit
        self._credentials = credentials
        self._open: Counter[str] = Counter()

    def check_room(self, principal: Principal) -> None:
        """Raises `RateLimited` when the tenant has as many streams here as it may."""
        if self._limit and self._open[principal.tenant] >= self._limit:
            raise RateLimited(f"{self._limit} streams of this tenant are open here", _FULL_S)

    @contextmanager
    def counted(self, principal: Principal) -> Iterator[None]:
        """While a stream of the tenant is open."""
        self._open[principal.tenant] += 1
        try:
            yield
        finally:
            self._open[principal.tenant] -= 1
            if not self._open[principal.tenant]:
                del self._open[principal.tenant]

    async def until_revoked(self, principal: Principal) -> None:
        """Return once the key that opened a stream is good no longer. A store that is away says nothing."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S if principal.is_revocable else 3600)
            with suppress(Unavailable):
                if not await self._credentials.is_still_good(principal):
                    return

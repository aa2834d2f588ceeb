"""Which runs may be under way together: any number, or one alone that may be killing processes.

Called by `steps.runner`. A run whose process died leaves its step in progress; the next run of it may die of the same
input, and would cost every run beside it a try. So it waits for the others to end and runs alone; what comes
meanwhile is refused, which costs no try (docs/adr/0018 has the same rule for predictors). Must not know steps.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from eventing.errors import Unavailable

_RETRY_S: Final = 0.5
_ANSWERS_LEAVE_S: Final = 0.05
"""Until the answers of the others are on the wire: a process that dies first would cost them a try."""


class RoomTaken(Unavailable):
    """A run is alone, most of them for a moment: the broker need not pause."""

    def __init__(self, message: str) -> None:
        super().__init__(message, _RETRY_S)
        self.headers = {"retry-after": "0"}


class Room:
    """The runs of one process."""

    def __init__(self) -> None:
        self._is_taken = False
        self.is_closed = False
        self._left = asyncio.Condition()
        self.in_flight = 0

    @property
    def is_open(self) -> bool:
        """False while deliveries are refused."""
        return not (self.is_closed or self._is_taken)

    def close(self) -> None:
        """Admit nothing more: the process shuts down."""
        self.is_closed = True

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """A run beside others. Raises `Unavailable` while one runs, or waits to run, alone."""
        if self.is_closed:
            raise Unavailable("this process shuts down", _RETRY_S)
        if self._is_taken:
            raise RoomTaken("a run that may kill its process is alone")
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            async with self._left:
                self._left.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Within `shared`: until every other run has ended, and none begins. Raises `Unavailable` when another run
        has asked for that.
        """
        if self._is_taken:
            raise RoomTaken("another run is alone")
        self._is_taken = True
        try:
            async with self._left:
                await self._left.wait_for(lambda: self.in_flight == 1)
            await asyncio.sleep(_ANSWERS_LEAVE_S)
            yield
        finally:
            self._is_taken = False
            async with self._left:
                self._left.notify_all()

    async def until_open(self, within_s: float) -> bool:
        """True once deliveries are taken; False when that takes longer, or the process shuts down."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), self._left:
                await self._left.wait_for(lambda: self.is_open or self.is_closed)
        return self.is_open

    async def wait_idle(self) -> None:
        """Return when no run is under way."""
        async with self._left:
            await self._left.wait_for(lambda: self.in_flight == 0)

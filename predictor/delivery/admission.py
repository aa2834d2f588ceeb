"""Admission control: at most the engine's useful batch runs at once, and nothing while the engine cannot serve.

Called by `predictor.delivery.delivery`, `.drain` and `predictor.serving.direct_call`, so that queued jobs and
direct calls share one limit. There is no queue in here: a call of one sequence that does not fit is refused with
Retry-After and waits in the durable queue. A call of many sequences would be refused for ever while small ones take
each slot that is freed, so one at a time may reserve the slots it needs: no other call is admitted until it has
them. Must not know jobs or HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from typing import Any, Final

from eventing.errors import Overloaded, Unavailable
from predictor.engine.engine import Engine

_RETRY_STARTING_S: Final = 2.0
_RETRY_FULL_S: Final = 1.0
_RETRY_DRAINING_S: Final = 1.0


class AdmissionPhase(StrEnum):
    """The phases of a predictor's life."""

    STARTING = "starting"  #: the engine loads
    SERVING = "serving"  #: takes work
    DRAINING = "draining"  #: shutting down; running calls may end
    BROKEN = "broken"  #: the engine died


def sequences(body: Mapping[str, Any]) -> int:
    """The number of slots that a call takes: its prompts times its choices. At least 1 for any body; an invalid
    body is refused by the engine.
    """
    prompts, choices = body.get("prompt"), body.get("n")
    chats = body.get("messages")
    if isinstance(chats, list) and chats and all(isinstance(chat, list) for chat in chats):
        prompts = chats
    is_many = isinstance(prompts, list) and not all(isinstance(part, int) for part in prompts)
    count = len(prompts) if is_many and isinstance(prompts, list) else 1
    return max(1, count) * (choices if isinstance(choices, int) and choices > 0 else 1)


class Slot:
    """The slots that one delivery holds."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._size = 0
        self._is_exclusive = False

    async def take(self, size: int) -> None:
        """Take `size` slots, or the whole batch for a larger request. When they are not free, a request of several
        sequences reserves them and waits; a single sequence is refused. Raises `Unavailable`.
        """
        self.release()
        await self._admission.wait_for(size)
        self._size = self._admission.add(size)

    async def take_all(self) -> None:
        """Take the whole batch exclusively: no other call may even wait until it is released."""
        await self.take(self._admission.capacity)
        self._is_exclusive = self._admission.is_reserved = True

    def release(self) -> None:
        """Release the slots."""
        self._admission.remove(self._size)
        self._size = 0
        if self._is_exclusive:
            self._is_exclusive = self._admission.is_reserved = False


class Admission:
    """The slots of one engine. Readiness here concerns this process, not the store."""

    def __init__(self, engine: Engine, on_change: Callable[[int], None] = lambda _: None) -> None:
        self._engine = engine
        self._on_change = on_change
        self._in_flight = 0
        self._is_open = False
        self._is_draining = False
        self.is_reserved = False  #: no other call is admitted, nor may wait
        self._freed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def capacity(self) -> int:
        """The useful batch."""
        return max(1, self._engine.max_concurrency)

    @property
    def phase(self) -> AdmissionPhase:
        if self._is_draining:
            return AdmissionPhase.DRAINING
        if not self._is_open:
            return AdmissionPhase.STARTING
        return AdmissionPhase.SERVING if self._engine.is_healthy() else AdmissionPhase.BROKEN

    @property
    def in_flight(self) -> int:
        """Slots taken by jobs and direct calls."""
        return self._in_flight

    def open(self) -> None:
        """The engine can serve."""
        self._is_open = True

    def drain(self) -> None:
        """Admit nothing more, for good."""
        self._is_draining = True
        self._freed.set()

    async def wait_idle(self) -> None:
        """Return when no slot is taken."""
        await self._idle.wait()

    @contextmanager
    def slot(self, size: int = 1) -> Iterator[None]:
        """Take `size` slots (the whole batch for a larger request). Raises `Unavailable` at once when they are not
        free.
        """
        self._check(size)
        taken = self.add(size)
        try:
            yield
        finally:
            self.remove(taken)

    @asynccontextmanager
    async def reserve(self, size: int = 1) -> AsyncIterator[Slot]:
        """Takes `size` slots while the block runs. Raises as `Slot.take` does."""
        slot = Slot(self)
        try:
            await slot.take(size)
            yield slot
        finally:
            slot.release()

    async def wait_for(self, size: int) -> None:
        """Return when `size` slots are free. Raises `Unavailable` when they are not and this is one sequence, when
        another call waits already, or when this predictor starts to drain meanwhile.
        """
        if size == 1 or self._fits(size) or self.is_reserved:
            self._check(size)
            return
        self._check_phase()
        self.is_reserved = True
        try:
            while not self._fits(size):
                self._freed.clear()
                await self._freed.wait()
                self._check_phase()
        finally:
            self.is_reserved = False

    def add(self, size: int) -> int:
        """Take `size` slots, at most all; gives the number taken."""
        taken = min(size, self.capacity)
        self._change(+taken)
        return taken

    def remove(self, taken: int) -> None:
        """Release what `add` took."""
        if taken:
            self._change(-taken)

    def _fits(self, size: int) -> bool:
        return self._in_flight + min(size, self.capacity) <= self.capacity

    def _check(self, size: int) -> None:
        self._check_phase()
        if self.is_reserved:
            raise Overloaded("the next free slots are reserved for a larger job", _RETRY_FULL_S)
        if not self._fits(size):
            raise Overloaded("every slot of the engine's batch is taken", _RETRY_FULL_S)

    def _check_phase(self) -> None:
        match self.phase:
            case AdmissionPhase.STARTING:
                raise Unavailable("the engine is starting", _RETRY_STARTING_S)
            case AdmissionPhase.DRAINING:
                raise Unavailable("this predictor is draining", _RETRY_DRAINING_S)
            case AdmissionPhase.BROKEN:
                raise Unavailable("the engine is gone; this predictor ends", _RETRY_STARTING_S)

    def _change(self, by: int) -> None:
        self._in_flight += by
        self._freed.set()
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()
        self._on_change(self._in_flight)

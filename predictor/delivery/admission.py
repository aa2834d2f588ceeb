"""Who may start: no more than the engine's useful batch, and nobody while it cannot serve.

Called by `predictor.delivery.delivery`, `.drain` and `predictor.serving.direct_call`, so that queued jobs
and direct calls share one limit. There is no queue in here: a call of one sequence that does not fit is
told to come back, and waits where waiting is durable. A larger delivery would come back for ever while
small ones take each slot that frees, so one at a time may reserve what it needs: nobody else is admitted
until it has it. Must not know jobs or HTTP.
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
    """Where a predictor is in its life."""

    STARTING = "starting"  #: the engine loads
    SERVING = "serving"  #: takes work
    DRAINING = "draining"  #: told to go; ends what it has
    BROKEN = "broken"  #: the engine died


def sequences(body: Mapping[str, Any]) -> int:
    """How many slots of the batch a call takes: its prompts times its choices. At least 1, whatever
    the body holds: what is wrong with it is the engine's to say.
    """
    prompts, choices = body.get("prompt"), body.get("n")
    is_many = isinstance(prompts, list) and not all(isinstance(part, int) for part in prompts)
    count = len(prompts) if is_many and isinstance(prompts, list) else 1
    return max(1, count) * (choices if isinstance(choices, int) and choices > 0 else 1)


class Slot:
    """The part of the batch that one delivery holds."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._size = 0
        self._is_exclusive = False

    async def take(self, size: int) -> None:
        """Hold `size` sequences, all of the batch for a request larger than it. One that does not fit
        at once reserves them and waits, unless it is a single sequence. Raises `Unavailable` when that
        may not be.
        """
        self.release()
        await self._admission.wait_for(size)
        self._size = self._admission.add(size)

    async def take_all(self) -> None:
        """Hold the whole batch, alone: nobody may even wait here until it is released."""
        await self.take(self._admission.capacity)
        self._is_exclusive = self._admission.is_reserved = True

    def release(self) -> None:
        """Hold nothing."""
        self._admission.remove(self._size)
        self._size = 0
        if self._is_exclusive:
            self._is_exclusive = self._admission.is_reserved = False


class Admission:
    """Who may start. Not ready is a matter of this process, not of the store."""

    def __init__(self, engine: Engine, on_change: Callable[[int], None] = lambda _: None) -> None:
        self._engine = engine
        self._on_change = on_change
        self._in_flight = 0
        self._is_open = False
        self._is_draining = False
        self.is_reserved = False  #: nobody else is admitted, nor may wait
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
        """The engine serves."""
        self._is_open = True

    def drain(self) -> None:
        """Take nothing new, for ever."""
        self._is_draining = True
        self._freed.set()

    async def wait_idle(self) -> None:
        """Return when nothing is in flight."""
        await self._idle.wait()

    @contextmanager
    def slot(self, size: int = 1) -> Iterator[None]:
        """Hold `size` sequences of the batch (all of them, for a request larger than it). Raises
        `Unavailable` at once when they are not free.
        """
        self._check(size)
        taken = self.add(size)
        try:
            yield
        finally:
            self.remove(taken)

    @asynccontextmanager
    async def reserve(self, size: int = 1) -> AsyncIterator[Slot]:
        """A slot of `size` sequences, held for as long as this lasts. Raises what `Slot.take` raises."""
        slot = Slot(self)
        try:
            await slot.take(size)
            yield slot
        finally:
            slot.release()

    async def wait_for(self, size: int) -> None:
        """Return when `size` sequences are free. Raises `Unavailable` when they are not and this is
        one sequence, another waits already, or this predictor has been told to go meanwhile.
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
        """Take `size` sequences, no more than all; gives how many that are."""
        taken = min(size, self.capacity)
        self._change(+taken)
        return taken

    def remove(self, taken: int) -> None:
        """Give back what `add` took."""
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

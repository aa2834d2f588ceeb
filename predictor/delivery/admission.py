"""Who may start: no more than the engine's useful batch, and nobody while it cannot serve.

Called by `predictor.delivery.delivery`, `.drain` and `predictor.serving.direct_call`, so that queued jobs
and direct calls share one limit. There is no queue in here: who does not fit is told to come back,
and waits where waiting is durable. Must not know jobs or HTTP.
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


class Phase(StrEnum):
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


class Admission:
    """The predictor's one door. Not ready is a matter of this process, not of the store."""

    def __init__(self, engine: Engine, on_change: Callable[[int], None] = lambda _: None) -> None:
        self._engine = engine
        self._on_change = on_change
        self._in_flight = 0
        self._is_open = False
        self._is_draining = False
        self._is_kept_for_one = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def phase(self) -> Phase:
        if self._is_draining:
            return Phase.DRAINING
        if not self._is_open:
            return Phase.STARTING
        return Phase.SERVING if self._engine.is_healthy() else Phase.BROKEN

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

    async def wait_idle(self) -> None:
        """Return when nothing is in flight."""
        await self._idle.wait()

    @contextmanager
    def slot(self, size: int = 1) -> Iterator[None]:
        """Hold `size` slots of the batch (all of them, for a request larger than it). Raises
        `Unavailable` at once when they are not free.
        """
        size = min(size, max(1, self._engine.max_concurrency))
        self._check(size)
        self._change(+size)
        try:
            yield
        finally:
            self._change(-size)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Hold the whole batch. The door is shut from now on, for as long as it takes until what
        runs has ended and this one too. Raises `Unavailable` when another waits for it already, or
        this predictor has been told to go meanwhile.
        """
        if self._is_kept_for_one:
            raise Overloaded("this predictor is kept for one job", _RETRY_FULL_S)
        self._is_kept_for_one = True
        try:
            await self.wait_idle()
            self._check_phase()
            self._change(+self._engine.max_concurrency)
            try:
                yield
            finally:
                self._change(-self._engine.max_concurrency)
        finally:
            self._is_kept_for_one = False

    def _check(self, size: int) -> None:
        self._check_phase()
        if self._is_kept_for_one:
            raise Overloaded("this predictor is kept for one job", _RETRY_FULL_S)
        if self._in_flight + size > self._engine.max_concurrency:
            raise Overloaded("every slot of the engine's batch is taken", _RETRY_FULL_S)

    def _check_phase(self) -> None:
        match self.phase:
            case Phase.STARTING:
                raise Unavailable("the engine is starting", _RETRY_STARTING_S)
            case Phase.DRAINING:
                raise Unavailable("this predictor is draining", _RETRY_DRAINING_S)
            case Phase.BROKEN:
                raise Unavailable("the engine is gone; this predictor ends", _RETRY_STARTING_S)

    def _change(self, by: int) -> None:
        self._in_flight += by
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()
        self._on_change(self._in_flight)

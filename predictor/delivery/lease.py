"""Renews the leases of all running jobs, and interrupts attempts that must not run any more.

One per process, run by `predictor.server`. Each round is one round trip whatever the number of jobs: it reads the
status of each (so that a cancelled job frees its slot within a second, during prefill too), and at a third of the
lease it renews it. Also decided here, by the clock: an engine that stalls, and a store that does not answer for as
long as the lease.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from eventing.clock import Clock
from eventing.errors import StoreUnavailable
from eventing.job.store import JobWorker
from predictor.generation.generation import Generation, Interrupted

_log = structlog.get_logger()


class LeaseKeeper:
    """The renewal loop. If it stops (a frozen process), the leases lapse and others take over the jobs."""

    def __init__(
        self, store: JobWorker, clock: Clock, *, lease_s: float, watch_s: float, stall_s: float
    ) -> None:
        self._store = store
        self._clock = clock
        self._lease_s = lease_s
        self.watch_s = min(watch_s, lease_s / 6)
        self._stall_s = stall_s
        self._running: dict[str, Generation] = {}

    @property
    def running(self) -> int:
        """Attempts whose leases are renewed."""
        return len(self._running)

    @contextmanager
    def watching(self, generation: Generation) -> Iterator[None]:
        """Renews the attempt's lease while the block runs."""
        key = generation.attempt.job_id
        self._running[key] = generation
        try:
            yield
        finally:
            if self._running.get(key) is generation:
                del self._running[key]

    def interrupt_all(self, why: Interrupted) -> None:
        """Interrupt every running attempt."""
        for generation in list(self._running.values()):
            generation.interrupt(why)

    async def run(self) -> None:
        """Run until cancelled. Store checks and clock checks run concurrently, since the store may be slow."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep())
            group.create_task(self._watch())

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self.watch_s)
            if self._running:
                await self._renew(list(self._running.values()))

    async def _renew(self, generations: list[Generation]) -> None:
        now = self._clock.monotonic_s()
        oldest = min(generation.extended_s for generation in generations)
        extend = now - oldest >= self._lease_s / 3
        leases = [generation.attempt.lease for generation in generations]
        try:
            holds = await self._store.renew(leases, extend=extend)
        except StoreUnavailable as error:
            _log.debug("leases not renewed", action="renew", reason=error.message)
            return
        for generation, hold in zip(generations, holds, strict=True):
            if extend:
                generation.extended_s = now
            generation.on_hold(hold)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.watch_s)
            now = self._clock.monotonic_s()
            for generation in list(self._running.values()):
                # Less one round: the lease might end before the next one.
                safe_s = self._lease_s - self.watch_s
                if why := verdict(generation, now, lease_s=safe_s, stall_s=self._stall_s):
                    generation.interrupt(why)


def verdict(
    generation: Generation, now: float, *, lease_s: float, stall_s: float
) -> Interrupted | None:
    """The decision about a running attempt by the clock alone."""
    if now - generation.extended_s >= lease_s:
        return Interrupted.STORE_LOST
    if now - generation.last_step_s >= stall_s:
        return Interrupted.STALLED
    return None

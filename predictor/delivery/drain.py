"""Graceful shutdown of a predictor: admit nothing, let running jobs end, hand the rest over.

Begun by SIGTERM, SIGINT, or SIGUSR1 (a preemption notice); run by `predictor.server`. There is no HTTP route for
it: behind Knative's queue-proxy every caller has a loopback address. If the process is killed before it is done,
leases lapse and the next attempts continue from the checkpoints.
"""

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from predictor.delivery.admission import Admission
from predictor.delivery.lease import LeaseKeeper
from predictor.generation.generation import Interrupted

_log = structlog.get_logger()

_HANDOVER_S: Final = 4.0
"""The part of the grace period kept for flushing and releasing (mostly 50 ms) and for stopping vLLM (3 s)."""


def handover_after_s(grace_s: float) -> float:
    """How long running jobs may continue, out of the grace period."""
    return grace_s - min(_HANDOVER_S, grace_s / 3)


class Drain:
    """Runs once."""

    def __init__(self, admission: Admission, keeper: LeaseKeeper, *, grace_s: float) -> None:
        self._admission = admission
        self._keeper = keeper
        self._grace_s = grace_s
        self._begun = asyncio.Event()

    def begin(self, reason: str) -> None:
        """Admit nothing from now on. A second call changes nothing, so the grace period cannot be shortened."""
        if not self._begun.is_set():
            in_flight = self._admission.in_flight
            _log.info("draining", action="drain", reason=reason, in_flight=in_flight)
            self._admission.drain()
            self._begun.set()

    async def wait_begun(self) -> None:
        await self._begun.wait()

    async def run(self) -> None:
        """From `begin` until no job is running, or the grace period is over."""
        await self._begun.wait()
        ends_by_itself_s = handover_after_s(self._grace_s)
        if not await self._idle_within(ends_by_itself_s):
            _log.info("handing over", action="handover", in_flight=self._admission.in_flight)
            self._keeper.interrupt_all(Interrupted.HANDOVER)
            await self._idle_within((self._grace_s - ends_by_itself_s) / 2)

    async def _idle_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._admission.wait_idle(), seconds)
        return self._admission.in_flight == 0

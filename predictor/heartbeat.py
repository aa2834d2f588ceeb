"""Reports the phases of this predictor's start to Prometheus and to the replica directory.

Called by `predictor.server`. While the store is unavailable only the report is delayed.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import structlog

from eventing.clock import Clock
from eventing.errors import StoreUnavailable
from eventing.replica import ReplicaDirectory
from predictor import metrics
from predictor.engine.engine import ColdStartPhase

_log = structlog.get_logger()

EVERY_S: Final = 5.0
"""A third of the time after which a replica counts as silent (`eventing.replica`)."""


class Heartbeat:
    """The phases of one start, and their reports."""

    def __init__(
        self,
        directory: ReplicaDirectory | None,
        clock: Clock,
        *,
        model: str,
        replica_id: str,
        started_s: float,
        revision: str = "",
    ) -> None:
        self._revision = revision
        self._directory = directory
        self._clock = clock
        self._model = model
        self._replica_id = replica_id
        self.device = ""
        self._phase: str = ColdStartPhase.IMPORT
        self._since_s = started_s
        self._seconds: dict[str, float] = {}
        self._news = asyncio.Event()

    @property
    def phase(self) -> str:
        """The current phase."""
        return self._phase

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of each finished phase."""
        return self._seconds

    def enter(self, phase: str) -> None:
        """The next phase begins; a repeated phase continues."""
        now = self._clock.monotonic_s()
        if phase == self._phase:
            return
        if self._phase != ColdStartPhase.READY:
            took_s = round(now - self._since_s, 3)
            self._seconds[self._phase] = took_s
            metrics.COLD_START.labels(self._phase).set(took_s)
            _log.info("phase ends", action="cold_start", phase=self._phase, seconds=took_s)
        self._phase, self._since_s = phase, now
        self._news.set()

    async def run(self) -> None:
        """Report every few seconds, and at once when something changed."""
        while True:
            self._news.clear()
            await self._report()
            # Not wait_for: until Python 3.12 it swallows a cancel that comes with the event, and a
            # predictor told to go just after it was ready never ended (F31).
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._news.wait()

    async def failed(self, reason: str) -> None:
        """Report why the engine did not start."""
        if self._directory is not None:
            with suppress(StoreUnavailable):
                await self._directory.report_failure(self._model, reason)

    async def end(self) -> None:
        """Remove this replica from the directory."""
        if self._directory is not None:
            with suppress(StoreUnavailable):
                await self._directory.remove(self._model, self._replica_id)

    async def _report(self) -> None:
        if self._directory is None:
            return
        age_ms = int((self._clock.monotonic_s() - self._since_s) * 1000)
        try:
            await self._directory.report(
                self._model,
                self._replica_id,
                self._phase,
                self._seconds,
                age_ms,
                device=self.device,
                revision=self._revision,
            )
        except StoreUnavailable as error:
            _log.debug("no heartbeat", action="heartbeat", reason=error.message)

"""What audits and everything else took of the GPU time lately.

Called by `api.audit.round`, which keeps the budget, and by `api.audit.figures`, which shows it.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from api.audit.budget import GpuTime, Spent, audit_seconds, gpu_time
from api.audit.store import DAY_MS, AuditStore
from eventing.telemetry.metric.ledger import Ledger, Measures, by_name

_DAYS: Final = 2
"""The budget is kept over this day and the one before (UTC)."""
_READ_EVERY_S: Final = 30.0
"""The ledger's sums only grow: older ones allow less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUsage:
    """What the audits of each critic took, and the ledger's measures of each model."""

    spent: Mapping[str, Spent]
    models: Mapping[str, Measures]

    def of(self, critic: str) -> GpuTime:
        """The GPU time that is paid for, as a critic's audits are measured by it."""
        return gpu_time(self.models, critic)

    @property
    def audits_s(self) -> float:
        """GPU-seconds of all audits, with their part of idle time and starts."""
        return sum(audit_seconds(each, self.of(critic)) for critic, each in self.spent.items())


class UsageReader:
    """Reads the usage; store and ledger belong to the caller."""

    def __init__(self, audits: AuditStore, ledger: Ledger) -> None:
        self._audits = audits
        self._ledger = ledger
        self._models: Mapping[str, Measures] = {}
        self._read_s = float("-inf")

    async def read(self) -> GpuUsage:
        """The usage of today and yesterday. Raises `StoreUnavailable`."""
        now_ms = await self._audits.now_ms()
        first = now_ms // DAY_MS - _DAYS + 1
        now_s = asyncio.get_running_loop().time()
        if now_s - self._read_s > _READ_EVERY_S:
            rows = await self._ledger.since((now_ms - first * DAY_MS) // 1000)
            self._models, self._read_s = by_name(rows, "model"), now_s
        spent = await self._audits.spent(range(first, first + _DAYS))
        return GpuUsage(spent=spent, models=self._models)

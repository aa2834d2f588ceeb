"""Metrics of audits, read from the store: the rate of unsupported answers with its interval, and how good critics are.

Run by the api. Every process shows the same figures of the same store, so take `max`, never `sum`, over instances.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from api.audit.estimate import AuditedCounts, GoldenCounts, Rate, hallucination_rate
from api.audit.golden import GoldenSet
from api.audit.store import DAY_MS, AuditStore
from api.audit.usage import UsageReader
from eventing.job.pipelines.audit import AuditRules, critics_of
from eventing.telemetry.metric.family import Family, Latest, Samples, Series

RATE: Final = Family(
    "torpor_hallucination_rate",
    "Share of answers with a claim that their passages do not support, corrected for the critic's errors.",
    ("model",),
)
RATE_LOW: Final = Family(
    "torpor_hallucination_rate_low", "Lower end of its 95 % interval.", ("model",)
)
RATE_HIGH: Final = Family(
    "torpor_hallucination_rate_high", "Upper end of its 95 % interval.", ("model",)
)
AUDITED: Final = Family(
    "torpor_hallucination_audited_jobs", "Audited answers that the rate is made of.", ("model",)
)
KAPPA: Final = Family(
    "torpor_critic_kappa",
    "Cohen's kappa of a critic and the golden set; below 0.6 no rate is given.",
    ("critic",),
)
WAITING: Final = Family(
    "torpor_audits_waiting", "Audits that a critic was not asked for yet.", ("critic",)
)
SHARE: Final = Family(
    "torpor_audit_gpu_share", "Share of the paid GPU time that audits took, of two days.", ()
)
_latest: Final = Latest((RATE, RATE_LOW, RATE_HIGH, AUDITED, KAPPA, WAITING, SHARE))
_EVERY_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticFigures:
    """What is known of one critic: of its newest version, and of the models that it judges."""

    golden: GoldenCounts
    waiting: int
    models: dict[str, AuditedCounts]

    def rate(self, model: str) -> Rate | None:
        """The rate of a model; None while it must not be given."""
        return hallucination_rate(self.models.get(model, AuditedCounts()), self.golden)


class AuditFigures:
    """Reads the sums every quarter of a minute. `version_of` gives the version of a critic as it is now."""

    def __init__(
        self,
        audits: AuditStore,
        usage: UsageReader,
        rules: AuditRules,
        golden: GoldenSet,
        version_of: Callable[[str], Coroutine[Any, Any, str]],
        window_days: int,
    ) -> None:
        self._audits = audits
        self._usage = usage
        self._critics = tuple(critics_of(rules))
        self._golden = golden
        self._version_of = version_of
        self._window_days = window_days

    async def run(self) -> None:
        """Read until cancelled; while the store is unavailable nothing is shown."""
        while True:
            await self.refresh()
            await asyncio.sleep(_EVERY_S)

    async def refresh(self) -> bool:
        """Show the store's figures; nothing, and False, while it is unavailable."""
        return await _latest.refresh(self.samples)

    async def critics(self) -> dict[str, CriticFigures]:
        """The figures of each critic. Raises `StoreUnavailable`."""
        today = await self._audits.now_ms() // DAY_MS
        sums = await self._audits.counts(range(today - self._window_days + 1, today + 1))
        found = {}
        for critic in self._critics:
            version = await self._version_of(critic)
            run = await self._audits.golden(version)
            found[critic] = CriticFigures(
                golden=self._golden.counts(run.verdicts),
                waiting=await self._audits.waiting(critic),
                models={model: counts for (of, model), counts in sums.items() if of == version},
            )
        return found

    async def samples(self) -> Samples:
        """The metrics. Raises `StoreUnavailable`."""
        found = Series(list)
        for critic, figures in (await self.critics()).items():
            found[WAITING].append(((critic,), figures.waiting))
            if figures.golden.rows:
                found[KAPPA].append(((critic,), figures.golden.kappa))
            for model, counts in figures.models.items():
                found[AUDITED].append(((model,), counts.jobs))
                if rate := figures.rate(model):
                    found[RATE].append(((model,), rate.rate))
                    found[RATE_LOW].append(((model,), rate.low))
                    found[RATE_HIGH].append(((model,), rate.high))
        usage = await self._usage.read()
        paid_s = usage.of("").paid_s
        found[SHARE].append(((), usage.audits_s / paid_s if paid_s else 0.0))
        return found

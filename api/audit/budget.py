"""How many audits may run, so that all of them together take no more than their share of the GPU time. Pure.

Called by `api.audit.round`. What an audit costs has its part of the critic's idle time and starts in it: a critic that
is started for audits alone is paid for by them alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from eventing.telemetry.cost import overhead, spend_of

MOST_IN_FLIGHT = 32
"""Audits of one critic that run or wait in its queue; the others wait in the store, where they cost nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """GPU time that audits of one critic took, and how many there were."""

    gpu_ms: int = 0
    jobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTime:
    """Paid GPU-seconds of all models, those of the critic for each second whose tokens were kept, and the kept seconds
    of a mean job, for a critic of which no audit is known yet.
    """

    paid_s: float
    overhead: float
    mean_job_s: float


def gpu_time(models: Mapping[str, Mapping[str, int]], critic: str) -> GpuTime:
    """These figures, of the ledger's measures by model."""
    spends = {name: spend_of(measures) for name, measures in models.items()}
    jobs = sum(each.jobs for each in spends.values())
    kept_s = sum(each.kept_s for each in spends.values())
    mine = spends.get(critic)
    return GpuTime(
        paid_s=sum(each.paid_s for each in spends.values()),
        overhead=max(1.0, (overhead(mine) if mine else None) or 1.0),
        mean_job_s=kept_s / jobs if jobs else 0.0,
    )


def audit_seconds(spent: Spent, time: GpuTime) -> float:
    """The GPU-seconds that these audits cost, with their part of idle time and starts."""
    return spent.gpu_ms / 1000 * time.overhead


def most_in_flight(mine: Spent, all_critics_s: float, time: GpuTime, share: float) -> int:
    """How many audits of this critic may be in flight, each at the mean cost of those before, so that all audits
    (`all_critics_s` so far) stay within `share` of the paid GPU time. Where no GPU time is known, as with providers
    alone, there is nothing to have a share of.
    """
    if not time.paid_s:
        return MOST_IN_FLIGHT
    mean_s = mine.gpu_ms / 1000 / mine.jobs if mine.jobs else time.mean_job_s
    left_s = share * time.paid_s - all_critics_s
    if left_s <= 0:
        return 0
    cost_s = mean_s * time.overhead
    return MOST_IN_FLIGHT if cost_s <= 0 else min(MOST_IN_FLIGHT, int(left_s / cost_s))

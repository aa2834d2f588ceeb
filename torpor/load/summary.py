"""The figures of a run. Pure.

Called by the command and the benches. Percentiles are nearest-rank over every completed request, counted from when
it was due; other outcomes are counted separately.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from torpor.load.growth import growth
from torpor.load.sample import LoadSample, SampleOutcome
from torpor.load.watch import MetricsSnapshot, is_accounted

_LATE_S: Final = 0.05
"""With a lag above this the generator measures itself."""
_SHARES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The parameters of the run, for the report."""

    title: str
    target: str
    model: str
    is_open: bool
    seed: int
    started_at: str


def summarise(
    setup: Setup, samples: Sequence[LoadSample], looks: Sequence[MetricsSnapshot]
) -> dict[str, Any]:
    """The report as plain data."""
    done = [s for s in samples if s.outcome is SampleOutcome.COMPLETED]
    span_s = max((s.ended_s for s in samples), default=0.0)
    tokens = sum(s.output_tokens for s in done)
    return {
        "setup": asdict(setup),
        "notes": notes(setup, samples) + _cost_notes(looks, len(done)),
        "span_s": round(span_s, 2),
        "sent": len(samples),
        "outcomes": dict(Counter(str(s.outcome) for s in samples)),
        "refusals_by_status": dict(
            Counter(s.status for s in samples if s.outcome is SampleOutcome.REFUSED)
        ),
        "accepted": sum(s.accepted_s > 0 for s in samples),
        "lost": sum(s.outcome is SampleOutcome.LOST for s in samples),
        "retried": sum(s.attempts > 1 for s in samples),
        "throughput": {
            "completed_per_s": _rate(len(done), span_s),
            "output_tokens_per_s": _rate(tokens, span_s),
        },
        "seconds": {
            "accept": percentiles(done, lambda s: s.accepted_s - s.due_s),
            "wait": percentiles(done, lambda s: s.queued_s),
            "ttft": percentiles(done, lambda s: s.ttft_s),
            "total": percentiles(done, lambda s: s.total_s),
        },
        "seconds_by_client": {
            kind: percentiles([s for s in done if s.kind == kind], lambda s: s.total_s)
            for kind in sorted({str(s.kind) for s in samples})
        },
        "generator_lag_seconds": percentiles(
            [s for s in samples if s.outcome is not SampleOutcome.UNSENT], lambda s: s.lag_s
        ),
        "cost": _cost(looks, tokens, len(done)),
        "replicas": _replicas(looks),
        "growth": growth(looks),
    }


def notes(setup: Setup, samples: Sequence[LoadSample]) -> list[str]:
    """Remarks that a reader needs to judge the figures."""
    if setup.is_open:
        said = [
            "Open loop: requests were sent when due; times are counted from when they were due."
        ]
    else:
        said = [
            "Closed loop: each user waits for its answer before it asks again, so a slow system "
            "was asked less (coordinated omission). Compare such runs only with each other."
        ]
    lag = percentiles(samples, lambda s: s.lag_s)
    if lag and lag["p99"] > _LATE_S:
        said.append(
            f"The generator itself was late (p99 {lag['p99']:.3f} s): it was short of CPU, and the "
            "times hold that too."
        )
    if unsent := sum(s.outcome is SampleOutcome.UNSENT for s in samples):
        said.append(f"{unsent} requests were not sent: too many were open. They count as errors.")
    if any(s.kind == "async" for s in samples):
        said.append("First tokens of polling clients are the record's: they cannot see one.")
    return said


def percentiles(
    samples: Sequence[LoadSample], value: Callable[[LoadSample], float | None]
) -> dict[str, float] | None:
    """Nearest-rank percentiles of `value`; None without values."""
    values = sorted(v for v in map(value, samples) if v is not None)
    if not values:
        return None
    found = {
        name: round(values[max(math.ceil(share * len(values)), 1) - 1], 4)
        for name, share in _SHARES.items()
    }
    return found | {"mean": round(sum(values) / len(values), 4), "count": len(values)}


def _cost_notes(looks: Sequence[MetricsSnapshot], jobs: int) -> list[str]:
    if not looks or is_accounted(looks[0], looks[-1], jobs):
        return []
    return [
        "The cost is a lower bound: attempts were charged more GPU-seconds than their predictors "
        "have posted. One died with some, or is late."
    ]


def _cost(looks: Sequence[MetricsSnapshot], tokens: int, jobs: int) -> dict[str, float | None]:
    """The cost of the run with everything included; None without the servers' figures."""
    known = [look for look in looks if look.gpu_s is not None]
    if len(known) < 2:
        return {"gpu_seconds": None, "cost": None, "per_1k_output_tokens": None, "per_job": None}
    gpu_s = (known[-1].gpu_s or 0.0) - (known[0].gpu_s or 0.0)
    cost = (known[-1].cost or 0.0) - (known[0].cost or 0.0)
    return {
        "gpu_seconds": round(gpu_s, 2),
        "cost": round(cost, 6),
        "per_1k_output_tokens": round(1000 * cost / tokens, 6) if tokens else None,
        "per_job": round(cost / jobs, 6) if jobs else None,
    }


def _replicas(looks: Sequence[MetricsSnapshot]) -> dict[str, float | None]:
    ready = [look.ready for look in looks if look.ready is not None]
    if not ready:
        return {"mean": None, "most": None}
    return {"mean": round(sum(ready) / len(ready), 3), "most": max(ready)}


def _rate(count: int, span_s: float) -> float:
    return round(count / span_s, 3) if span_s > 0 else 0.0

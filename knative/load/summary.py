"""What a run showed, in numbers. Pure.

Called by the command and the benches. Percentiles are nearest-rank over every shot that ended well,
counted from when it was due; what ended otherwise is counted, not averaged away.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from knative.load.sample import Outcome, Sample
from knative.load.watch import Look, growth_per_hour

_LATE_S: Final = 0.05
"""A generator later than this measures itself."""
_SOAK_S: Final = 600
_GROWTH_A_HOUR: Final = 0.1
_FILES_A_HOUR: Final = 10.0
"""Ten an hour is 240 a day, a quarter of the usual limit; fewer is connections that come and go."""
_KEYS_A_JOB: Final = 2
_OTHER_KEYS: Final = 100
_SHARES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What was run, for the report."""

    title: str
    target: str
    model: str
    is_open: bool
    seed: int
    started_at: str


def summarise(setup: Setup, samples: Sequence[Sample], looks: Sequence[Look]) -> dict[str, Any]:
    """The report as plain data."""
    done = [s for s in samples if s.outcome is Outcome.COMPLETED]
    span_s = max((s.ended_s for s in samples), default=0.0)
    tokens = sum(s.output_tokens for s in done)
    return {
        "setup": asdict(setup),
        "notes": notes(setup, samples),
        "span_s": round(span_s, 2),
        "sent": len(samples),
        "outcomes": dict(Counter(str(s.outcome) for s in samples)),
        "refusals_by_status": dict(
            Counter(s.status for s in samples if s.outcome is Outcome.REFUSED)
        ),
        "accepted": sum(s.accepted_s > 0 for s in samples),
        "lost": sum(s.outcome is Outcome.LOST for s in samples),
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
            [s for s in samples if s.outcome is not Outcome.UNSENT], lambda s: s.lag_s
        ),
        "cost": _cost(looks, tokens, len(done)),
        "replicas": _replicas(looks),
        "growth": growth(looks),
    }


def notes(setup: Setup, samples: Sequence[Sample]) -> list[str]:
    """What a reader must know before believing the figures."""
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
    if unsent := sum(s.outcome is Outcome.UNSENT for s in samples):
        said.append(f"{unsent} requests were not sent: too many were open. They count as errors.")
    if any(s.kind == "async" for s in samples):
        said.append("First tokens of polling clients are the record's: they cannot see one.")
    return said


def percentiles(
    samples: Sequence[Sample], value: Callable[[Sample], float | None]
) -> dict[str, float] | None:
    """Nearest-rank percentiles of what `value` gives; None when it gives nothing."""
    values = sorted(v for v in map(value, samples) if v is not None)
    if not values:
        return None
    found = {
        name: round(values[max(math.ceil(share * len(values)), 1) - 1], 4)
        for name, share in _SHARES.items()
    }
    return found | {"mean": round(sum(values) / len(values), 4), "count": len(values)}


def growth(looks: Sequence[Look]) -> dict[str, Any]:
    """How memory, open files and keys changed: first, last, and the trend an hour."""
    series: dict[str, list[tuple[float, float]]] = {}
    for look in looks:
        for part, value in look.memory_bytes.items():
            series.setdefault(f"{part} memory_bytes", []).append((look.at_s, value))
        for part, value in look.open_files.items():
            series.setdefault(f"{part} open_files", []).append((look.at_s, value))
        for name, amount in (("store keys", look.keys), ("store bytes", look.store_bytes)):
            if amount is not None:
                series.setdefault(name, []).append((look.at_s, amount))
    return {
        name: {
            "first": points[0][1],
            "last": points[-1][1],
            "highest": max(value for _, value in points),
            "per_hour": _rounded(growth_per_hour(points)),
        }
        for name, points in sorted(series.items())
    }


def growing(report: Mapping[str, Any]) -> list[str]:
    """What a soak run says no to, in words: a trend of memory or open files that a day would not
    forgive, or more keys than the jobs that are kept account for (a record and a token stream
    each). In less than ten minutes nothing can be told.
    """
    if report["span_s"] < _SOAK_S:
        return [f"unknown: {report['span_s']:g} s are too short to tell"]
    found: list[str] = []
    for name, figures in report["growth"].items():
        if name == "store bytes":
            continue  # follows the keys, and the lengths of what was asked
        if name == "store keys":
            added = figures["last"] - figures["first"]
            if added > _KEYS_A_JOB * report["sent"] + _OTHER_KEYS:
                found.append(f"{name}: {added:.0f} more, for {report['sent']} jobs")
            continue
        allowed = max(_GROWTH_A_HOUR * figures["first"], _FILES_A_HOUR)
        if (figures["per_hour"] or 0.0) > allowed:
            found.append(f"{name}: {figures['per_hour']:.0f} an hour")
    return found


def _cost(looks: Sequence[Look], tokens: int, jobs: int) -> dict[str, float | None]:
    """What the span cost, with everything in it; None where the other side did not say."""
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


def _replicas(looks: Sequence[Look]) -> dict[str, float | None]:
    ready = [look.ready for look in looks if look.ready is not None]
    if not ready:
        return {"mean": None, "most": None}
    return {"mean": round(sum(ready) / len(ready), 3), "most": max(ready)}


def _rate(count: int, span_s: float) -> float:
    return round(count / span_s, 3) if span_s > 0 else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)

"""Whether a canary may be promoted, by its errors and latency compared with the model's.

`judge` is pure; `measure` queries Prometheus. Called by `promote`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from math import isnan, sqrt

import aiohttp

from knative.deploy.errors import ClusterUnreachable

QUERY_TIMEOUT_S = 10.0
# Outcomes of an attempt that a new version may have caused.
FAULTS = "engine_dead|engine_request_failed|stalled|out_of_step|bug"


class CanaryDecision(StrEnum):
    """What to do with a canary."""

    PROMOTE = "promote"  #: it is not worse
    ROLL_BACK = "roll back"  #: it is significantly worse
    WAIT = "wait"  #: too few requests to decide


@dataclass(frozen=True, slots=True)
class CanarySample:
    """The figures of one version in the window. `p95_s` is seconds per token; None without any."""

    requests: float
    errors: float
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class CanaryLimits:
    """The largest difference allowed."""

    min_requests: int = 50
    error_rise: float = 0.02
    latency_ratio: float = 1.25


@dataclass(frozen=True, slots=True)
class CanaryVerdict:
    """The decision and its figures."""

    decision: CanaryDecision
    reason: str


def lower_bound(errors: float, requests: float, z: float = 1.645) -> float:
    """Give the lower bound of the error rate (Wilson, one-sided 95 %)."""
    if requests <= 0:
        return 0.0
    rate = errors / requests
    middle = rate + z * z / (2 * requests)
    spread = z * sqrt(rate * (1 - rate) / requests + z * z / (4 * requests * requests))
    return max(0.0, (middle - spread) / (1 + z * z / requests))


def judge(stable: CanarySample, canary: CanarySample, limits: CanaryLimits) -> CanaryVerdict:
    """Give the decision. «Worse» is decided as soon as it is significant; «not worse» needs enough requests."""
    usual = stable.errors / stable.requests if stable.requests else 0.0
    least = lower_bound(canary.errors, canary.requests)
    if least > usual + limits.error_rise:
        return CanaryVerdict(
            CanaryDecision.ROLL_BACK,
            f"{canary.errors:.0f} of {canary.requests:.0f} failed (at least {least:.1%}), "
            f"the model {usual:.1%}",
        )
    if canary.requests < limits.min_requests:
        return CanaryVerdict(
            CanaryDecision.WAIT, f"{canary.requests:.0f} of {limits.min_requests} requests seen"
        )
    if canary.p95_s is not None and stable.p95_s:
        ratio = canary.p95_s / stable.p95_s
        if ratio > limits.latency_ratio:
            return CanaryVerdict(
                CanaryDecision.ROLL_BACK,
                f"p95 is {canary.p95_s:.3g} s a token, {ratio:.2f} times the model's "
                f"{stable.p95_s:.3g} s",
            )
    return CanaryVerdict(
        CanaryDecision.PROMOTE,
        f"{canary.errors:.0f} of {canary.requests:.0f} failed, "
        f"p95 {canary.p95_s or 0:.3g} s a token",
    )


def queries(service: str, window: str) -> dict[str, str]:
    """Give the PromQL of one version's sample, from its predictors' metrics.

    Attempts that say nothing about the version (cancelled, handed over, invalid) are left out. Latency is seconds
    per token: a job's duration depends more on the job than on the version.
    """
    pods = f'pod=~"{service}-predictor-.*"'
    ended = f'outcome=~"completed|{FAULTS}"'
    count = f"sum(increase(torpor_attempts_total{{{pods},{ended}}}[{window}]))"
    errors = f'sum(increase(torpor_attempts_total{{{pods},outcome=~"{FAULTS}"}}[{window}]))'
    speed = f"rate(torpor_time_per_output_token_seconds_bucket{{{pods}}}[{window}])"
    buckets = f"sum by (le) ({speed})"
    return {
        "requests": count,
        "errors": errors,
        "p95_s": f"histogram_quantile(0.95, {buckets})",
    }


async def measure(prometheus_url: str, service: str, window: str) -> CanarySample:
    """Give one version's sample. Raises ClusterUnreachable when Prometheus does not answer."""
    timeout = aiohttp.ClientTimeout(total=QUERY_TIMEOUT_S)
    wanted = queries(service, window)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        values = await asyncio.gather(
            *(_query(session, prometheus_url, query) for query in wanted.values())
        )
    found = dict(zip(wanted, values, strict=True))
    return CanarySample(found["requests"] or 0.0, found["errors"] or 0.0, found["p95_s"])


async def _query(session: aiohttp.ClientSession, url: str, query: str) -> float | None:
    try:
        async with session.get(
            f"{url.rstrip('/')}/api/v1/query", params={"query": query}
        ) as response:
            response.raise_for_status()
            answer = await response.json()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ClusterUnreachable(
            f"Prometheus at {url}: {error or 'no answer in time'}. Give --prometheus, or --now to "
            "decide without it"
        ) from error
    results = answer["data"]["result"]
    value = float(results[0]["value"][1]) if results else None
    return None if value is None or isnan(value) else value

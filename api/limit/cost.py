"""What an ended job cost, for budgets and for usage. Pure.

Called by `api.limit.gate` and `api.limit.usage`. Must not know the store.
"""

from collections.abc import Mapping
from typing import Any

from api.limit.limit import prompt_tokens
from eventing.job.job import Job
from eventing.telemetry.cost import Prices


def cost_of(job: Job, prices: Prices) -> float:
    """The cost of an ended job."""
    return sum(costs_of(job, prices).values())


def costs_of(job: Job, prices: Prices) -> dict[str, float]:
    """The cost of an ended job, by kind (`eventing.telemetry.cost.KINDS`)."""
    model, usage = job.to_run.model, job.usage
    if job.cache is not None and job.cache.is_hit:
        usage = None
    elif job.attempt and model in prices.tokens and not _is_counted(usage):  # it broke off
        usage = {
            "prompt_tokens": prompt_tokens(job.request),
            "completion_tokens": job.token_count,
        }
    return prices.of(usage, model, job.gpu_ms / 1000)


def _is_counted(usage: Mapping[str, Any] | None) -> bool:
    return isinstance((usage or {}).get("prompt_tokens"), int)

"""What an ended job adds to its tenant's usage: tokens, GPU time, money, and what kept answers saved.

`UsageTally` is called by `eventing.live.ended` for every end, and counted once. Pure. Must not know the store.
"""

from collections.abc import Collection
from typing import Final

from api.limit.cost import costs_of
from eventing.job.job import KEY, RUNNABLE_URLS, Job, JobState
from eventing.live.ended import EndCount
from eventing.redis import keys
from eventing.telemetry.cost import (
    MICRO,
    Prices,
    TokenPrice,
    cached_tokens,
    spent_tokens,
    tokens_in,
)
from eventing.telemetry.usage import DAY_S

OTHER: Final = "other"
"""The model of a job that names one which is not configured."""
_ANSWERED: Final = (JobState.COMPLETED, JobState.INCOMPLETE)


class UsageTally:
    """An `EndTally`. Only configured `models` are named, since an event may name any."""

    def __init__(self, models: Collection[str], prices: Prices, kept_days: int) -> None:
        self._models = frozenset(models)
        self._prices = prices
        self.kept_s = kept_days * DAY_S

    def count(self, job: Job, url: str) -> EndCount:
        """What the job adds to its tenant's day."""
        url = url if url in RUNNABLE_URLS else ""
        model = job.request.model if job.request.model in self._models else OTHER
        return EndCount(
            key=keys.usage_of(job.tenant, job.finished_ms // 1000 // DAY_S),
            row=f"{url}|{model}|{job.metadata.get(KEY, '')}",
            measures=measures_of(job, self._prices),
        )


def measures_of(job: Job, prices: Prices) -> dict[str, int]:
    """What an ended job used; amounts of 0 are left out."""
    usage, cache = job.usage or {}, job.cache
    found = {
        str(job.state): 1,
        "dead_letters": int(job.is_dead_letter),
        "input_tokens": tokens_in(usage, "prompt_tokens"),
        "cached_tokens": cached_tokens(usage),
        "output_tokens": tokens_in(usage, "completion_tokens"),
        "thought_tokens": tokens_in(usage.get("completion_tokens_details"), "reasoning_tokens"),
        "gpu_ms": max(job.gpu_ms, 0),
    }
    costs = costs_of(job, prices)
    found["cost"] = round(sum(costs.values()) * MICRO)
    for each in spent_tokens(usage, job.to_run.model)[1:]:
        name = f"{each.kind}_tokens"
        found[name] = found.get(name, 0) + each.input_tokens + each.output_tokens
        found[f"{each.kind}_cost"] = round(costs[each.kind] * MICRO)
    if not usage and job.token_count and not job.is_dead_letter:  # it broke off; a redrive goes on
        found["output_tokens"] = job.token_count
    if cache is not None and cache.is_hit and job.state in _ANSWERED:
        saved = cache.saved_usage or {}
        tokens = tokens_in(saved, "prompt_tokens"), tokens_in(saved, "completion_tokens")
        price = prices.tokens.get(job.request.model, TokenPrice())
        found |= {f"hits_{cache.kind}": 1, "saved_cost": round(price.of(*tokens) * MICRO)}
        found |= {"saved_input_tokens": tokens[0], "saved_output_tokens": tokens[1]}
        found["output_tokens"] = 0
    return {name: amount for name, amount in found.items() if amount}

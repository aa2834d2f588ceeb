"""What an ended job cost, for budgets and for usage. Pure.

Called by `api.limit.gate` and `api.limit.usage`. Must not know the store.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from api.limit.limit import prompt_tokens
from api.settings import ApiSettings
from eventing.job.job import Job
from eventing.telemetry.cost import Price, TokenPrice


@dataclass(frozen=True, slots=True)
class Prices:
    """Of a predictor, and of the tokens of models that have a price."""

    gpu: Price
    tokens: Mapping[str, TokenPrice]


def prices_of(settings: ApiSettings) -> Prices:
    """The configured prices."""
    return Prices(settings.price, settings.token_prices)


def cost_of(job: Job, prices: Prices) -> float:
    """What an ended job did cost: GPU time, or what its provider takes for its tokens."""
    price = prices.tokens.get(job.to_run.model)
    if price is None or (job.cache is not None and job.cache.is_hit):
        return prices.gpu.of(job.gpu_ms / 1000)
    usage = job.usage or {}
    if not isinstance(usage.get("prompt_tokens"), int):  # it broke off
        return price.of(prompt_tokens(job.request), job.token_count) if job.attempt else 0.0
    return price.of(usage["prompt_tokens"], int(usage.get("completion_tokens") or 0))

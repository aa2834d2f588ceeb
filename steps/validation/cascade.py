"""The cascade of `validate-output`: which better model is asked next, and how often a tenant may ask for one in a day.

Called by `steps.validation.step`. The count is in the store, shared by all processes, and of each answer once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from redis.asyncio import Redis

from eventing.errors import BadRequest
from eventing.job.job import Job, may_use
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import run

MOST_TIERS: Final = 4
PER_DAY: Final = "cascade_per_day"
_DEFAULT: Final = "default"


class CascadeLimit(Protocol):
    """Counts answers that were made by a better model."""

    async def take(self, job: Job, tier: int, most: int) -> bool:
        """True when this answer is within the tenant's number for today. Raises `StoreUnavailable`."""


class SharedCascadeLimit:
    """Counts in Redis; the client belongs to the caller."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def take(self, job: Job, tier: int, most: int) -> bool:
        """See `CascadeLimit.take`."""
        name = keys.cascade(job.tenant, job.request.model)
        async with failures_named():
            return bool(await run(self._redis, "cascade_take", [name], [f"{job.id} {tier}", most]))


def parse_cascade(value: Any) -> tuple[str, ...]:
    """The models in the setting `cascade`. Raises `BadRequest`."""
    is_list = isinstance(value, list | tuple) and all(isinstance(e, str) and e for e in value)
    if not is_list or len(value) > MOST_TIERS:
        raise BadRequest(f"cascade must be a list of up to {MOST_TIERS} models", "cascade")
    return tuple(value)


def parse_per_day(value: Any) -> Mapping[str, int]:
    """The number a day of each tenant in the setting `cascade_per_day`, under `default` that of the others; empty for
    no limit. Raises `BadRequest`.
    """
    numbers = {} if value is None else value if isinstance(value, Mapping) else {_DEFAULT: value}
    for tenant, most in numbers.items():
        is_whole = isinstance(most, int) and not isinstance(most, bool) and most >= 0
        if not isinstance(tenant, str) or not is_whole:
            what = "a whole number, or an object of whole numbers by tenant"
            raise BadRequest(f"{PER_DAY} must be {what}", PER_DAY)
    return dict(numbers)


def usable(models: Sequence[str], job: Job) -> list[str]:
    """Those that the job's key and tenant may use."""
    return [model for model in models if may_use(job.metadata, model)]


def most_per_day(numbers: Mapping[str, int], tenant: str) -> int | None:
    """How many answers of a tenant may be made by a better model in a day; None for any number."""
    return numbers.get(tenant, numbers.get(_DEFAULT))

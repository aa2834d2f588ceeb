"""The table of handlers: one line a step.

Called by `steps.server`. A handler is made at start and should be cheap to make: what it needs for long (a model, an
index) it loads at its first call.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from eventing.clock import Clock
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.store.steps.redis_steps import RedisStepStore
from steps.handler import Handler
from steps.no_op import no_op
from steps.settings import StepsSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What handlers may be made of."""

    settings: StepsSettings
    redis: SharedRedis
    store: RedisStepStore
    clock: Clock


def handlers(parts: Parts) -> Mapping[str, Handler]:
    """The handler of each step, by its name in `pipelines.yaml`."""
    del parts  # the first step needs none of them
    return {
        "no-op": no_op,
    }

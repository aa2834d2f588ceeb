"""Which models run when several want more replicas than there are places (GPUs, or memory for so many predictors).

Called by the local stack and by the bench. Each model's own policy says how many replicas it wants; here some get
fewer. Must not know engines, queues or pods.

* A replica that works keeps its place, and one whose model wants it no more gives it up.
* Free places go to models with waiting jobs: first to those without a replica, the least time left first, then the
  most work. A second replica comes after every model's first.
* An idle replica gives its place to a model with waiting jobs; the one that was idle for longest goes first.
* When no place is free, a replica that works gives its own to a model that has none and must start now. It is taken
  from the model with the most replicas, then the one whose own waiting jobs have the most time left, and only after it
  was up for `least_up_s`, so that models that never rest take turns instead of restarting each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """A model that shares the places.

    `wanted` replicas by its own policy, `up` that run or start, `busy` of them with a job. `work` waits (in one unit
    for all models), and its most urgent job must have been started in `left_s` (infinite when none waits). Its replicas
    are idle for `idle_s` and have been up for `up_s`.
    """

    name: str
    wanted: int
    up: int = 0
    busy: int = 0
    work: float = 0.0
    left_s: float = math.inf
    idle_s: float = 0.0
    up_s: float = 0.0

    @property
    def waits(self) -> bool:
        """Whether a job waits."""
        return self.work > 0


def granted(
    models: Sequence[ModelDemand], places: int, *, lead_s: float, least_up_s: float
) -> dict[str, int]:
    """The replicas of each model. A job must be given a replica `lead_s` before it must have been started."""
    grants = {each.name: min(each.busy, each.wanted) for each in models}
    while sum(grants.values()) < places and (following := _next(models, grants)):
        grants[following.name] += 1
    for urgent in sorted(models, key=lambda each: (each.left_s, -each.work, each.name)):
        if grants[urgent.name] or not urgent.wanted or urgent.left_s > lead_s:
            continue
        loser = _loser(models, grants, urgent, least_up_s)
        if loser is not None:
            grants[loser.name] -= 1
            grants[urgent.name] = 1
    return grants


def _next(models: Sequence[ModelDemand], grants: dict[str, int]) -> ModelDemand | None:
    """Who gets the next free place: waiting models, then idle replicas that are still wanted."""
    open_to = [each for each in models if grants[each.name] < each.wanted]
    waiting = [each for each in open_to if each.waits]
    if waiting:
        return min(waiting, key=lambda each: _turn(each, grants[each.name]))
    return min(
        open_to,
        key=lambda each: (each.up <= grants[each.name], each.idle_s, each.name),
        default=None,
    )


def _turn(each: ModelDemand, has: int) -> tuple[bool, float, float, str]:
    return has > 0, each.left_s, -each.work / (has + 1), each.name


def _loser(
    models: Sequence[ModelDemand],
    grants: dict[str, int],
    urgent: ModelDemand,
    least_up_s: float,
) -> ModelDemand | None:
    """The model that gives a place to one that must start now."""
    able = [
        each
        for each in models
        if grants[each.name]
        and each.up_s >= least_up_s
        and (grants[each.name] > 1 or each.left_s > urgent.left_s)
    ]
    return max(
        able, key=lambda each: (grants[each.name], each.left_s, -each.work, each.name), default=None
    )

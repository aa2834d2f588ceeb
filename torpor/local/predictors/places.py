"""The bound on how many predictors of all models run at once (`--most-running`).

Called by the autoscaler loop of each model, as its scale. `knative.autoscaling.work.places` decides who gets a place.
"""

import asyncio
from dataclasses import dataclass

from knative.autoscaling.work.places import ModelDemand, granted
from torpor.local.predictors.activator import Activator
from torpor.local.predictors.autoscaler import PolicyClock
from torpor.local.predictors.fleet import Fleet

_USUAL_START_S = 5.0


@dataclass(slots=True)
class _Sharer:
    """A model, and how many predictors its own autoscaler wants."""

    fleet: Fleet
    activator: Activator
    wanted: int = 0


class Places:
    """The places that models share. A request may wait `allowed_s` before its model takes the place of one that works,
    and that one has had its place for as long.
    """

    def __init__(self, most_running: int, allowed_s: float, clock: PolicyClock) -> None:
        self._most = most_running
        self._allowed_s = allowed_s / clock.scale
        self._sharers: dict[str, _Sharer] = {}
        self._start_s = _USUAL_START_S / clock.scale

    def shared(self, name: str, fleet: Fleet, activator: Activator) -> "SharedScale":
        """What the model's autoscaler scales."""
        self._sharers[name] = _Sharer(fleet, activator)
        return SharedScale(self, name, fleet)

    def want(self, name: str, wanted: int) -> None:
        """Share the places anew, with one model wanting that many."""
        self._sharers[name].wanted = wanted
        demands = [self._demand(each, sharer) for each, sharer in self._sharers.items()]
        grants = granted(demands, self._most, lead_s=self._start_s, least_up_s=self._allowed_s)
        # Those that give a place up come first: a predictor that drains still holds its own.
        for each in sorted(self._sharers, key=lambda one: grants[one] - self._fleet(one).alive):
            fleet = self._fleet(each)
            free = self._most - sum(sharer.fleet.processes for sharer in self._sharers.values())
            fleet.scale_to(min(grants[each], fleet.alive + max(0, free)))

    def _fleet(self, name: str) -> Fleet:
        return self._sharers[name].fleet

    def _demand(self, name: str, sharer: _Sharer) -> ModelDemand:
        now = asyncio.get_running_loop().time()
        up = [each for each in sharer.fleet.replicas if each.is_wanted]
        self._start_s = max((self._start_s, *(each.ready_after_s for each in up)))
        return ModelDemand(
            name=name,
            wanted=sharer.wanted,
            up=len(up),
            busy=sum(each.in_flight > 0 for each in up),
            work=float(sharer.activator.waiting),
            left_s=sharer.activator.left_s(self._allowed_s),
            idle_s=now - sharer.activator.busy_at,
            up_s=now - max((each.started_s for each in up), default=now),
        )


class SharedScale:
    """The scale of one model among several."""

    def __init__(self, places: Places, name: str, fleet: Fleet) -> None:
        self._places = places
        self._name = name
        self._fleet = fleet

    @property
    def ready(self) -> int:
        return self._fleet.ready

    @property
    def alive(self) -> int:
        return self._fleet.alive

    def scale_to(self, wanted: int) -> None:
        """What its policy wants; it gets as many as there are places for."""
        self._places.want(self._name, wanted)

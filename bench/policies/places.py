"""Several models on few GPUs, simulated: by deadline and work, beside first come first served without turns.

    python -m bench.policies.places

Each model has a world of its own (its own seed) and our work-aware policy; all worlds go on one clock. What
the policies want together is more than there are GPUs. `granted` decides who gets one; the rival gives a free place to
the model that asked first, and takes none away. Waits are of all jobs of a model.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from knative.autoscaling.work.places import ModelDemand, granted
from torpor.simulator.candidate import work_spec
from torpor.simulator.engine import GPU_ASSUMED, SimulatedJob
from torpor.simulator.load import Load
from torpor.simulator.measure import RunOutcome
from torpor.simulator.policy import WorkPolicy
from torpor.simulator.view import PolicyView
from torpor.simulator.workload import Profile, ProfileKind
from torpor.simulator.world import Scenario, World

SLOTS = 16
TAIL_S = 1800.0


@dataclass
class Places:
    """The GPUs, what each model wants and holds, and since when."""

    count: int
    start_s: float
    wait_s: float
    takes_turns: bool
    demands: dict[str, ModelDemand] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    most_held: int = 0

    def share(self, demand: ModelDemand, existing: int, draining: int) -> int:
        """The replicas that a model gets now."""
        self.demands[demand.name] = demand
        self.held[demand.name] = existing + draining
        if self.takes_turns:
            models = list(self.demands.values())
            lead_s = self.start_s + 1
            grant = granted(models, self.count, lead_s=lead_s, least_up_s=2 * self.start_s)
            allowed = grant[demand.name]
        else:
            allowed = demand.wanted
        free = self.count - sum(self.held.values())
        given = min(allowed, existing + max(0, free))
        self.held[demand.name] += max(0, given - existing)
        self.most_held = max(self.most_held, sum(self.held.values()))
        return given


class SharingPolicy(WorkPolicy):
    """Our policy of one model, which gets as many replicas as there are places for."""

    def __init__(self, name: str, places: Places, slots: int) -> None:
        spec = work_spec(GPU_ASSUMED, slots, start_s=places.start_s, p95_wait_s=places.wait_s)
        super().__init__(replace(spec, margin_s=2))
        self._name, self._places, self._slots = name, places, slots
        self._idle_from = self._up_from = 0.0

    def step(self, view: PolicyView, now: float) -> int:
        """What the policy wants, as far as there are places."""
        wanted = super().step(view, now)
        if view.running:
            self._idle_from = now
        if not view.existing:
            self._up_from = now
        left_s = min((self._left_s(job, now) for job in view.queue), default=math.inf)
        demand = ModelDemand(
            self._name,
            wanted,
            up=view.existing,
            busy=min(view.existing, math.ceil(view.running / self._slots)),
            work=float(len(view.queue)),
            left_s=left_s,
            idle_s=now - self._idle_from,
            up_s=now - self._up_from,
        )
        return self._places.share(demand, view.existing, view.draining)

    def _left_s(self, job: SimulatedJob, now: float) -> float:
        return self._places.wait_s - (now - job.arrived)


def together(
    loads: Sequence[Load], places: Places, grace_s: float, tail_s: float = TAIL_S
) -> list[RunOutcome]:
    """Each model's outcome, on one clock."""
    horizon_s = max(load.span_s for load in loads) + tail_s
    scenario = Scenario(
        GPU_ASSUMED, horizon_s, places.start_s, container_concurrency=SLOTS, grace_s=grace_s
    )
    worlds = []
    for number, load in enumerate(loads):
        world = World(scenario, SharingPolicy(f"model-{number}", places, SLOTS))
        world.begin(load.requests())
        worlds.append(world)
    going = list(worlds)
    while going:
        soonest = min(going, key=lambda world: world.next_at)
        if not soonest.advance():
            going.remove(soonest)
    return [world.outcome() for world in worlds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cold-start", type=float, default=30.0)
    parser.add_argument("--wait", type=float, default=60.0)
    given = parser.parse_args()
    # Half of them never rest, at a rate that one replica does easily.
    busy = Profile(ProfileKind.STEADY, 3600, 0.2, 0.2)
    bursts = Profile(ProfileKind.BURST, 3600, 0.005, 1.0)
    loads = [Load((bursts, busy)[number % 2], seed=number) for number in range(given.models)]
    print("| GPUs | who gets a place | worst p95 wait | longest wait | unserved | GPU-seconds |")
    print("|---|---|---|---|---|---|")
    for count in given.gpus:
        for name, takes_turns in (("first come", False), ("deadline, work, turns", True)):
            places = Places(count, given.cold_start, given.wait, takes_turns)
            found = together(loads, places, grace_s=10.0)
            worst = max(each.wait.quantile(0.95) for each in found)
            longest = max(each.wait.largest for each in found)
            unserved = sum(each.unserved for each in found)
            billed = sum(each.gpu.billed for each in found)
            cells = f"{worst:.0f} s | {longest:.0f} s | {unserved} | {billed:.0f}"
            print(f"| {count} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

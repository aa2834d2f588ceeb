"""What the world shows a policy, and what it asks of one.

Called by `world.py` and implemented in `policy.py`. It must not know any policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torpor.simulator.engine import SimulatedJob


@dataclass(frozen=True, slots=True)
class PolicyView:
    """The world as a metrics pipeline sees it.

    `asked`: replicas asked for last; `existing`: those that are there, draining ones left out; `in_flight_average`:
    queued and running together, averaged since the last step; `slot_share`: used share of the ready replicas'
    places in the same time; `p95_s`: of total times in the last minute. `queued` and `running` count batch jobs too,
    `running_batch` only these; `queue` has the interactive jobs that wait, oldest first, and `batch` the others.
    """

    queued: int
    running: int
    asked: int
    existing: int
    ready: int
    in_flight_average: float
    slot_share: float
    p95_s: float | None
    queue: Sequence[SimulatedJob]
    batch: Sequence[SimulatedJob] = ()
    running_batch: int = 0
    draining: int = 0


class Autoscaler(Protocol):
    """A policy in the simulator; `tick_s` is how often it is asked."""

    tick_s: float

    def step(self, view: PolicyView, now: float) -> int:
        """The replicas to ask for."""
        ...

    def wake(self, view: PolicyView, now: float) -> int | None:
        """The replicas to ask for because a request came while none were asked for.

        None: this policy notices at its next step.
        """
        ...


@runtime_checkable
class Learner(Protocol):
    """A policy that learns from what happens to jobs."""

    def arrived(self, job: SimulatedJob, now: float) -> None:
        """A job came in."""
        ...

    def finished(self, job: SimulatedJob, now: float) -> None:
        """A job ended, its answer complete."""
        ...

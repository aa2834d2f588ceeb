"""A predictor process as activator and autoscaler see it, and the choice among several. No I/O.

Called by the activator (where to send) and the fleet (which run).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class ReplicaState(StrEnum):
    """The life of a replica, in order."""

    WAKING = "waking"  #: starting
    READY = "ready"  #: serves
    DRAINING = "draining"  #: shutting down; accepts nothing new
    ENDED = "ended"  #: the process has ended


@dataclass(slots=True)
class LocalReplica:
    """One predictor. `in_flight` counts the activator's unanswered requests."""

    id: str
    url: str
    pid: int = 0
    state: ReplicaState = ReplicaState.WAKING
    in_flight: int = 0
    started_s: float = 0.0
    ready_after_s: float = 0.0
    is_held: bool = False  #: a job whose tools run is expected back
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def is_wanted(self) -> bool:
        """Counts towards the scale: starting or ready."""
        return self.state in (ReplicaState.WAKING, ReplicaState.READY)


def least_busy(replicas: Iterable[LocalReplica], *, concurrency: int) -> LocalReplica | None:
    """The ready replica with the fewest requests, among those below `concurrency`; None when all are full or away."""
    free = [r for r in replicas if r.state is ReplicaState.READY and r.in_flight < concurrency]
    return min(free, key=lambda r: r.in_flight, default=None)


def held(replicas: Iterable[LocalReplica], expected: Collection[str]) -> int:
    """How many replicas are held for jobs whose tools run, of those `expected` back at which; all are marked."""
    for replica in (own := list(replicas)):
        replica.is_held = replica.id in expected
    return sum(each.is_held and each.is_wanted for each in own)


def to_drain(replicas: Iterable[LocalReplica], surplus: int) -> list[LocalReplica]:
    """Which to drain when there are `surplus` too many: those not ready first, then those not held, then the
    least busy.
    """
    wanted = [r for r in replicas if r.is_wanted]
    wanted.sort(key=lambda r: (r.state is ReplicaState.READY, r.is_held, r.in_flight, -r.started_s))
    return wanted[: max(0, surplus)]  # a negative end would drain all but a few

"""A predictor process as the activator and the autoscaler see it, and the choice among them. No
I/O.

Called by the activator (which to send to) and the fleet (who lives).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class ReplicaState(StrEnum):
    """The life of a replica, in order."""

    WAKING = "waking"  #: started, cannot serve yet
    READY = "ready"  #: serves
    DRAINING = "draining"  #: told to end; takes nothing new
    ENDED = "ended"  #: the process is gone


@dataclass(slots=True)
class LocalReplica:
    """One predictor. `in_flight` counts what the activator has sent it and not heard back."""

    id: str
    url: str
    pid: int = 0
    state: ReplicaState = ReplicaState.WAKING
    in_flight: int = 0
    started_s: float = 0.0
    ready_after_s: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def is_wanted(self) -> bool:
        """Counts towards the scale: waking or ready."""
        return self.state in (ReplicaState.WAKING, ReplicaState.READY)


def least_busy(replicas: Iterable[LocalReplica], *, concurrency: int) -> LocalReplica | None:
    """The ready replica with the fewest requests, among those below `concurrency`; None when all
    are full or away.
    """
    free = [r for r in replicas if r.state is ReplicaState.READY and r.in_flight < concurrency]
    return min(free, key=lambda r: r.in_flight, default=None)


def to_drain(replicas: Iterable[LocalReplica], surplus: int) -> list[LocalReplica]:
    """Which to end when there are `surplus` too many: those that are not ready yet, then the least
    busy.
    """
    wanted = [r for r in replicas if r.is_wanted]
    wanted.sort(key=lambda r: (r.state is ReplicaState.READY, r.in_flight, -r.started_s))
    return wanted[: max(0, surplus)]  # a negative end would drain all but a few

"""Batch jobs in the scaling policy: they run where other jobs leave room, and cause a replica only for their deadline.

Called by `work.py`. Must not know engines or queues. A batch job is taken by any free slot at once, so those that wait
here are more than the running replicas have room for, or nothing runs. Starting a replica for them later costs no
more GPU-seconds, and until then another job may start one that they share.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A waiting batch job: its GPU-seconds in a full batch, and the time left until it must have been started."""

    work_s: float
    left_s: float


def more_replicas(
    jobs: Iterable[BatchJob], *, spare: float, lead_s: float, max_utilisation: float
) -> int:
    """How many replicas must be requested now, beside `spare` replicas' worth of room, for every batch job to start in
    time. A replica takes jobs `lead_s` after its request.

    For each deadline: what the room does not do until then must fit into the time after the start of a new replica. As
    long as one replica that is requested later would do, none is.
    """
    due_s = 0.0
    more = 0
    for job in sorted(jobs, key=lambda each: each.left_s):
        due_s += job.work_s / max_utilisation
        short_s = due_s - spare * max(0.0, job.left_s) / max_utilisation
        usable_s = job.left_s - lead_s
        if short_s <= _ROUNDING or short_s < usable_s:
            continue
        if usable_s > 0:
            more = max(more, math.ceil(short_s / usable_s - _ROUNDING))
        else:
            # No replica would be up in time; with no room at all one must be, for the job's sake.
            more = max(more, 0 if spare > 0 else 1)
    return more

"""The jobs that wait in the simulated world: interactive ones in order of arrival, batch jobs by their deadline.

Called by `world.py`. It must not know replicas or policies. The embedded broker draws lots among lanes, in which batch
gets at least 1 in 21; here batch only gets what the others leave over.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator

from torpor.simulator.engine import SimulatedJob


class WaitingJobs:
    """Both classes. `interactive` and `batch` are for reading; batch is a heap: its first has the earliest deadline."""

    def __init__(self) -> None:
        self.interactive: deque[SimulatedJob] = deque()
        self._batch: list[tuple[float, int, SimulatedJob]] = []

    def __len__(self) -> int:
        return len(self.interactive) + len(self._batch)

    @property
    def batch(self) -> list[SimulatedJob]:
        """The batch jobs, in no order."""
        return [job for _, _, job in self._batch]

    def append(self, job: SimulatedJob) -> None:
        """A job that came in."""
        if job.void_at is None:
            self.interactive.append(job)
        else:
            heapq.heappush(self._batch, (job.void_at, job.id, job))

    def popleft(self) -> SimulatedJob:
        """The next job to run."""
        if self.interactive:
            return self.interactive.popleft()
        return heapq.heappop(self._batch)[2]

    def put_back(self, jobs: Iterable[SimulatedJob]) -> None:
        """Jobs that were handed over, oldest first: they run before those of their class that came later."""
        again = list(jobs)
        self.interactive.extendleft(reversed([job for job in again if job.void_at is None]))
        for job in again:
            if job.void_at is not None:
                self.append(job)

    def popped_while_older(self, now: float, after_s: float) -> Iterator[SimulatedJob]:
        """Removes and gives the interactive jobs that have waited for `after_s`; batch jobs have a deadline instead."""
        while self.interactive and now - self.interactive[0].arrived >= after_s:
            yield self.interactive.popleft()

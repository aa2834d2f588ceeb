"""Drives the clients, in an open or a closed loop, and keeps their samples.

Called by `torpor load` and the benches. *Open*: requests are sent when they are due, whatever happened to earlier
ones, so that a stalled server is measured as stalled (no coordinated omission). *Closed*: a number of users, each
waiting for its answer before the next request; the load then slows down with the server, and the report says so.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from torpor.load.client import Clients
from torpor.load.sample import LoadSample, SampleOutcome
from torpor.load.schedule import Shot

_REFUSED_PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A closed loop: `users` users for `duration_s`, each pausing `think_s` between two requests."""

    users: int
    duration_s: float
    think_s: float = 0.0


class Run:
    """One run. `samples` grows while it runs, and may be read meanwhile."""

    def __init__(
        self, clients: Clients, now: Callable[[], float], *, most_open: int = 5000
    ) -> None:
        self._clients = clients
        self._now = now
        self._most_open = most_open
        self.samples: list[LoadSample] = []
        self.open = 0
        self._stopped = False

    def stop(self) -> None:
        """Send nothing new; requests in flight are followed to their end."""
        self._stopped = True

    async def open_loop(self, shots: Iterator[Shot]) -> None:
        """Send each request when it is due; return when the last has ended."""
        async with asyncio.TaskGroup() as group:
            for shot in shots:
                await asyncio.sleep(max(shot.at_s - self._now(), 0.0))
                if self._stopped:
                    break
                sample = self._sample(shot, shot.at_s)
                if self.open >= self._most_open:
                    # Waiting here would hide the delay that this request would have had.
                    sample.outcome, sample.ended_s = SampleOutcome.UNSENT, self._now()
                    continue
                group.create_task(self._send(shot, sample))
        await self._settle()

    async def closed_loop(self, closed: Closed, shots_of: Callable[[int], Iterator[Shot]]) -> None:
        """Keep every user busy for the duration; return when the last answer has come."""
        async with asyncio.TaskGroup() as group:
            for user in range(closed.users):
                group.create_task(self._user(closed, shots_of(user)))
        await self._settle()

    async def _user(self, closed: Closed, shots: Iterator[Shot]) -> None:
        for shot in shots:
            if self._stopped or self._now() >= closed.duration_s:
                return
            sample = await self.shoot(shot)
            refused = sample.outcome in (SampleOutcome.REFUSED, SampleOutcome.UNREACHED)
            await asyncio.sleep(max(closed.think_s, _REFUSED_PAUSE_S if refused else 0.0))

    async def shoot(self, shot: Shot) -> LoadSample:
        """Send one request now, and follow it to its end."""
        sample = self._sample(shot, self._now())
        await self._send(shot, sample)
        return sample

    async def _send(self, shot: Shot, sample: LoadSample) -> None:
        self.open += 1
        try:
            await self._clients.send(shot, sample)
        finally:
            self.open -= 1

    def _sample(self, shot: Shot, due_s: float) -> LoadSample:
        sample = LoadSample(kind=shot.kind, due_s=due_s)
        self.samples.append(sample)
        return sample

    async def _settle(self) -> None:
        for sample in self.samples:
            await self._clients.settle(sample)

"""Several processes of each part behind the links of one system, as a Deployment has them behind a Service:
whoever joins is given new connections, whoever leaves is given none.
"""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from tests.faults.processes import System
from tests.faults.programs import Program, Zygote, port_of

PARTS: Final = ("api", "broker", "predictor")


@dataclass(eq=False)
class Fleet:
    """The members of each part; every process that ever was is ended with it."""

    system: System
    members: dict[str, list[Program]]
    started: list[Program] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(2))

    @property
    def everybody(self) -> list[Program]:
        return [program for part in PARTS for program in self.members[part]]

    async def grow(self, part: str, zygote: Zygote | None = None) -> Program:
        """One more member, ready and given work."""
        makers = {
            "api": self.system.new_api,
            "broker": self.system.new_broker,
            "predictor": self.system.new_predictor,
        }
        made = makers[part](f"{part}-{next(self._numbers)}")
        made.zygote = zygote or made.zygote
        self.started.append(made)
        made.start()
        await made.ready()
        self.members[part].append(made)
        self._route()
        return made

    def retire(self, part: str, program: Program) -> None:
        """Give it no new work; what it has, it keeps."""
        self.members[part].remove(program)
        self._route()

    def _route(self) -> None:
        self.system.client.bases[:] = [
            api.health.removesuffix("/healthz") for api in self.members["api"]
        ]
        self.system.api_broker.targets = [port_of(each) for each in self.members["broker"]]
        self.system.delivery.targets = [port_of(each) for each in self.members["predictor"]]


@asynccontextmanager
async def fleet_of(system: System, **sizes: int) -> AsyncIterator[Fleet]:
    """So many of each part; the first of each is the system's own."""
    first = {"api": system.api, "broker": system.broker, "predictor": system.predictor}
    fleet = Fleet(system, {part: [program] for part, program in first.items()})
    try:
        for part, size in sizes.items():
            for _ in range(size - 1):
                await fleet.grow(part)
        yield fleet
    finally:
        for program in fleet.started:
            program.signal(signal.SIGKILL)

"""Faults drawn at random over a whole fleet: killed, frozen, told to end, cut off, a store that stands still, and a
failover to a replica that lags. Who was hurt is well again before it is hurt once more.
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import redis as redis_client

from tests.faults.fleet import Fleet
from tests.faults.history import Kind
from tests.faults.programs import Program, Tuning
from tests.faults.proxy import Proxy, Way
from tests.redis_server import RedisServer

_REPLICA: Final = ("--repl-diskless-sync-delay", "0", "--replica-read-only", "yes")
_SYNCED_WITHIN_S: Final = 30.0


@dataclass(eq=False)
class Replica:
    """A replica of whatever server the system uses, behind a link that can be stopped."""

    tuning: Tuning
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    async def follow(self, fleet: Fleet, link: Proxy) -> RedisServer:
        """A fresh replica of the system's server, in sync."""
        link.target = fleet.system.server.port
        folder = fleet.system.folder / f"replica-{next(self.numbers)}"
        where = ("--replicaof", "127.0.0.1", str(link.port))
        options = (*self.tuning.redis_options, *_REPLICA, *where)
        made = RedisServer(folder, binary=self.tuning.binary, options=options)
        made.launch()
        async with asyncio.timeout(_SYNCED_WITHIN_S):
            while not _is_in_sync(made):
                await asyncio.sleep(0.1)
        return made


def _is_in_sync(server: RedisServer) -> bool:
    with redis_client.Redis(port=server.port, socket_timeout=5) as probe:
        try:
            return probe.info("replication").get("master_link_status") == "up"
        except redis_client.RedisError:
            return False


@dataclass(eq=False)
class Faults:
    """`lost_s` says from when until when answers may have told of what a failover took back."""

    fleet: Fleet
    draw: random.Random
    replica: RedisServer
    link: Proxy
    replicas: Replica
    freeze_s: tuple[float, float] = (5.0, 20.0)
    done: dict[str, int] = field(default_factory=dict)
    lost_s: list[tuple[float, float]] = field(default_factory=list)
    on_failover: Callable[[float], Awaitable[None]] | None = None
    failing_over: int = 0
    """Failovers after which not everything has been asked again yet."""
    _hurt: set[Program | Proxy] = field(default_factory=set)
    _api_is_frozen: int = 0
    _store: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, until_s: float) -> None:
        """One fault after the other until that time."""
        kinds = {
            self.kill: 4,
            self.freeze: 2,
            self.terminate: 2,
            self.pause_store: 1,
            self.cut: 3,
            self.fail_over: 1,
        }
        while time.monotonic() < until_s:
            (fault,) = self.draw.choices(list(kinds), weights=list(kinds.values()))
            self.done[fault.__name__] = self.done.get(fault.__name__, 0) + 1
            await fault()
            await asyncio.sleep(self.draw.uniform(0, 2))

    async def kill(self) -> None:
        async with self._victim("kill") as program:
            await program.kill()
            await asyncio.sleep(self.draw.uniform(0, 1))
            program.start()
            await program.ready()

    async def terminate(self) -> None:
        async with self._victim("terminate") as program:
            program.signal(signal.SIGTERM)
            await program.gone(40)
            program.start()
            await program.ready()

    async def freeze(self) -> None:
        async with self._victim("freeze") as program:
            is_api = program in self.fleet.members["api"]
            if is_api and self._store.locked():
                return  # as in `fail_over`
            self._api_is_frozen += is_api
            program.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(self.draw.uniform(*self.freeze_s))
            finally:
                program.signal(signal.SIGCONT)
                self._api_is_frozen -= is_api
            await program.ready()

    async def pause_store(self) -> None:
        async with self._store:
            server = self.fleet.system.server
            self._note("pause", "store")
            server.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(self.draw.uniform(0.2, 3))
            finally:
                server.signal(signal.SIGCONT)

    async def cut(self) -> None:
        """A partition of one link: closed, or one way swallowed, or both."""
        links = [link for link in self.fleet.system.proxies if link not in self._hurt]
        link = self.draw.choice(links)
        how = self.draw.choice(["closed", "both", Way.UP, Way.DOWN])
        self._hurt.add(link)
        self._note("partition", f"{self.fleet.system.proxies.index(link)} {how}")
        if how == "closed":
            link.close()
        else:
            link.black_hole(*(Way if how == "both" else [Way(how)]))
        await asyncio.sleep(self.draw.uniform(0.2, 5))
        link.heal()
        self._hurt.remove(link)

    async def fail_over(self) -> None:
        """The replica stops hearing, the primary dies, the replica takes its place, a new one follows it."""
        if self._api_is_frozen:
            return  # it would tell later, of any time, what was taken back
        self.failing_over += 1
        async with self._store:
            since_s = time.monotonic()
            await self._promote()
            self.replica = await self.replicas.follow(self.fleet, self.link)
        self.lost_s.append((since_s, time.monotonic()))
        if self.on_failover is not None:
            await self.on_failover(since_s)
        self.failing_over -= 1

    async def _promote(self) -> None:
        system, heir = self.fleet.system, self.replica
        self._note("failover", system.server.url)
        self.link.black_hole()
        await asyncio.sleep(self.draw.uniform(0.05, 1))
        system.server.kill()
        with redis_client.Redis(port=heir.port) as promoted:
            promoted.replicaof("NO", "ONE")
        self.link.heal()
        await system.fail_over_to(heir)
        await asyncio.sleep(2)  # answers that were on their way

    @asynccontextmanager
    async def _victim(self, what: str) -> AsyncIterator[Program]:
        whole = [each for each in self.fleet.everybody if each not in self._hurt]
        program = self.draw.choice(whole)
        self._hurt.add(program)
        self._note(what, program.name)
        try:
            yield program
        finally:
            self._hurt.remove(program)

    def _note(self, operation: str, what: str) -> None:
        self.fleet.system.history.add(Kind.FAULT, operation, what=what)


@asynccontextmanager
async def faults_of(
    fleet: Fleet, draw: random.Random, freeze_s: tuple[float, float]
) -> AsyncIterator[Faults]:
    """Faults for a fleet whose store has a replica."""
    replicas = Replica(fleet.system.tuning)
    async with Proxy(0).serving() as link:
        first = await replicas.follow(fleet, link)
        made = Faults(fleet, draw, first, link, replicas, freeze_s)
        try:
            yield made
        finally:
            made.replica.kill()
            for program in fleet.everybody:
                program.signal(signal.SIGCONT)

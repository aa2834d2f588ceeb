"""A TCP proxy that does to a connection what networks do: cut, swallow, delay, stop at a byte.

Stands between two real processes, so that a fault needs no hook in product code. Kill points are
made of it too: `hold(needle)` stops the stream at the bytes that start a step (the SHA of a Lua
script, the first line of an answer), and the test kills whoever is waiting.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from tests.redis_server import free_port

_CHUNK = 65_536


class Way(StrEnum):
    """Which way bytes go."""

    UP = "up"  #: from the client to the server
    DOWN = "down"  #: from the server to the client


@dataclass(slots=True)
class Hold:
    """A place in the stream where everything stops, once."""

    needle: bytes
    way: Way
    is_forwarded: bool
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    is_dropped: bool = False

    def drop(self) -> None:
        """End the hold; what was held never arrives (its sender died)."""
        self.is_dropped = True
        self.released.set()


@dataclass(eq=False, slots=True)
class _Pipe:
    """One connection through the proxy."""

    up: asyncio.StreamWriter
    down: asyncio.StreamWriter

    def cut(self) -> None:
        for writer in (self.up, self.down):
            with suppress(OSError, RuntimeError):
                writer.transport.abort()


class Proxy:
    """Forwards `port` to `target`, with faults on demand. All faults are off at first."""

    def __init__(self, target: int, *, draw: random.Random | None = None) -> None:
        self.port = free_port()
        self.targets = [target]
        """Where a new connection goes: to any of these that answers."""
        self.delay_s = 0.0
        self.jitter_s = 0.0
        self.cut_chance = 0.0
        self.swallows: set[Way] = set()
        self.is_closed = False
        self.cut_after_bytes: dict[Way, int] = {}
        self.accepted = 0
        self._draw = draw or random.Random(0)
        self._pipes: set[_Pipe] = set()
        self._holds: list[Hold] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def target(self) -> int:
        return self.targets[0]

    @target.setter
    def target(self, port: int) -> None:
        self.targets = [port]

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            self._server.close()
            self.cut()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection there is; new ones are taken."""
        for pipe in list(self._pipes):
            pipe.cut()

    def close(self) -> None:
        """Reset every connection and every new one, until `heal`."""
        self.is_closed = True
        self.cut()

    def black_hole(self, *ways: Way) -> None:
        """Swallow what is sent (both ways when none is named); connections stay open."""
        self.swallows = set(ways or Way)

    def heal(self) -> None:
        """End every fault. Connections that lost bytes are cut, as they are no use any more."""
        had_lost = bool(self.swallows)
        self.is_closed, self.swallows, self.cut_after_bytes = False, set(), {}
        self.delay_s = self.jitter_s = self.cut_chance = 0.0
        for hold in self._holds:
            hold.released.set()
        self._holds.clear()
        if had_lost:
            self.cut()

    def hold(self, needle: bytes, way: Way = Way.UP, *, is_forwarded: bool = False) -> Hold:
        """Stop the stream when `needle` comes by: before it (the step has not happened), or right
        after it was sent on (it has, and nobody has heard). Once.
        """
        made = Hold(needle, way, is_forwarded)
        self._holds.append(made)
        return made

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.is_closed:
            writer.transport.abort()
            return
        found = None
        try:
            found = await self._connect()
        finally:
            if found is None:
                writer.transport.abort()
        if found is None:
            return
        theirs, ours = found
        pipe = _Pipe(up=ours, down=writer)
        self._pipes.add(pipe)
        ways = (
            self._copy(reader, ours, Way.UP, pipe),
            self._copy(theirs, writer, Way.DOWN, pipe),
        )
        # Cancelled only by `serving`, at its end; asyncio's streams would log a cancelled task.
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*ways)
        pipe.cut()
        self._pipes.discard(pipe)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for port in self._draw.sample(self.targets, len(self.targets)):
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: Way, pipe: _Pipe
    ) -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                if self.delay_s or self.jitter_s:
                    await asyncio.sleep(self.delay_s + self._draw.uniform(0, self.jitter_s))
                if self.cut_chance and self._draw.random() < self.cut_chance:
                    break
                if way in self.swallows:
                    continue
                held = next((h for h in self._holds if h.way is way and h.needle in data), None)
                if held is not None:
                    self._holds.remove(held)
                    await self._stop_at(held, data, sink)
                    continue
                if not self._allowed(way, data, sink):
                    break
                await sink.drain()
        pipe.cut()

    async def _stop_at(self, held: Hold, data: bytes, sink: asyncio.StreamWriter) -> None:
        if held.is_forwarded:
            sink.write(data)
            await sink.drain()
        held.reached.set()
        await held.released.wait()
        if not held.is_forwarded and not held.is_dropped:
            sink.write(data)
            await sink.drain()

    def _allowed(self, way: Way, data: bytes, sink: asyncio.StreamWriter) -> bool:
        """Write on; False when the byte was reached at which to cut."""
        left = self.cut_after_bytes.get(way)
        if left is None:
            sink.write(data)
            return True
        sink.write(data[:left])
        self.cut_after_bytes[way] = max(left - len(data), 0)
        return left > len(data)

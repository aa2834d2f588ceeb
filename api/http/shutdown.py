"""Shutdown of the process, for handlers with an open call: they answer before the server closes their connections.

Called by `api.__main__`, which runs the server, and by every handler that waits. Must not know jobs.
"""

import asyncio
import os
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import uvicorn

from eventing.errors import Unavailable

_T = TypeVar("_T")
_RETRY_AFTER_S = 1.0
_FAREWELL_S = 1.0
_READS_NOTHING_S = 1.0
_ACCEPTED_AT_ONCE = 16
"""Connections that one iteration of the event loop accepts; uvloop's listeners accept one each."""


class ShuttingDown(Unavailable):
    """This process is shutting down; another one will answer."""

    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("this process is shutting down; call again", _RETRY_AFTER_S)


class Shutdown:
    """Whether the process is shutting down."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._farewells = 0
        self._all_said = asyncio.Event()

    def begin(self) -> None:
        self._begun.set()

    async def wait(self) -> None:
        """Return once the process is shutting down."""
        await self._begun.wait()

    @contextmanager
    def farewell(self) -> Iterator[None]:
        """While the block runs, the server waits with hanging up, for a moment: WebSockets it would
        close before their handlers could say why.
        """
        self._farewells += 1
        try:
            yield
        finally:
            self._farewells -= 1
            self._all_said.set()

    async def wait_for_farewells(self) -> None:
        """Return once no such block runs, or a moment has passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                while self._farewells:
                    self._all_said.clear()
                    await self._all_said.wait()

    async def cut_off(self, held: Coroutine[Any, Any, _T]) -> _T:
        """The result of `held`. Raises `ShuttingDown` when the process shuts down before it."""
        answer, ending = asyncio.create_task(held), asyncio.create_task(self.wait())
        try:
            await asyncio.wait({answer, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ShuttingDown
            return answer.result()
        finally:
            answer.cancel()
            ending.cancel()


class ShutdownServer(uvicorn.Server):
    """uvicorn's server; it sets `Shutdown` before it waits for open calls, and accepts many connections at a time, so
    that a new one (a health check) does not wait for as many iterations of the loop as there are before it.
    """

    def __init__(self, config: uvicorn.Config, shutdown: Shutdown) -> None:
        super().__init__(config)
        self._shutdown = shutdown

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop, config = asyncio.get_running_loop(), self.config

        def connection() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        listening = [sock for server in self.servers for sock in server.sockets]
        for sock in listening:
            for _ in range(_ACCEPTED_AT_ONCE - 1):
                again = socket.socket(fileno=os.dup(sock.fileno()))
                self.servers.append(
                    await loop.create_server(connection, sock=again, backlog=config.backlog)
                )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._shutdown.begin()
        await self._shutdown.wait_for_farewells()
        aborting = asyncio.create_task(self._abort_clients_that_read_nothing())
        try:
            await super().shutdown(sockets)
        finally:
            aborting.cancel()

    async def _abort_clients_that_read_nothing(self) -> None:
        """Let a client go that takes nothing of what was sent to it: its connection would never close, and the
        process would wait for it as long as for any call.
        """
        before: dict[Any, int] = {}
        while True:
            left = {
                connection.transport: unsent_bytes
                for connection in self.server_state.connections
                if (unsent_bytes := connection.transport.get_write_buffer_size())
            }
            for transport, unsent_bytes in left.items():
                if before.get(transport) == unsent_bytes:
                    transport.abort()
            before = left
            await asyncio.sleep(_READS_NOTHING_S)

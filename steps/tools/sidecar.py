"""The steps process as the sidecar of one tool server: it takes that server's calls alone, once the server listens.

Called by `steps.server`. The pump in the pod claims nothing while this process is not ready, so a call waits in its
queue, where what scales the tool counts it, until there is something to dial.
"""

import asyncio
from contextlib import suppress
from typing import Final

from yarl import URL

from eventing.cloudevent.event import Event
from eventing.errors import NotFound
from eventing.job.tools.server import ToolServer
from steps.tools.caller import Caller

SERVER: Final = "toolserver"
"""The extension with the label of the server that a call is for."""
_CONNECT_S: Final = 0.4
"""Longest wait for a connection: probes have a second."""


class ToolSidecar:
    """The calls of one server. The caller belongs to the process."""

    def __init__(self, server: ToolServer, caller: Caller) -> None:
        self._server = server
        self._caller = caller
        self.drained = asyncio.Event()  #: set once no call is under way and none begins any more

    async def __call__(self, event: Event) -> None:
        """One delivery. Raises `NotFound` for a call of another server's."""
        label = event.extensions.get(SERVER, "")
        if label != self._server.label:
            raise NotFound(f"calls of {self._server.label} are run here, not of {label!r:.40}")
        await self._caller(event)

    async def listens(self) -> bool:
        """True where the server takes a connection."""
        url = URL(self._server.url)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(url.host, url.port)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return True
        return False

"""The clients of tool servers, made at the first call: what they import takes half a second.

Called by the step `list-tools` and by what runs calls.
"""

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING

from eventing.clock import Clock
from steps.handler import packages
from steps.tools.client.answer import Target

if TYPE_CHECKING:
    from steps.tools.client.function_client import FunctionClient
    from steps.tools.client.mcp_client import McpClient


class Clients:
    """The clients of a process, one of each kind."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._is_ready = False

    async def ready(self) -> None:
        """Import what the clients need, beside the event loop. Raises `NotInstalled`."""
        if not self._is_ready:
            await asyncio.to_thread(lambda: (self._mcp, self._function))
            self._is_ready = True

    async def wake(self, target: Target, within_s: float) -> None:
        """Return once the server answers. Raises `Unavailable`."""
        from steps.tools.client.wake import until_awake

        await until_awake(target, within_s)

    def mcp(self) -> "McpClient":
        return self._mcp

    def function(self) -> "FunctionClient":
        return self._function

    @cached_property
    def _mcp(self) -> "McpClient":
        with packages():
            from steps.tools.client.mcp_client import McpClient
        return McpClient(self._clock)

    @cached_property
    def _function(self) -> "FunctionClient":
        with packages():
            from steps.tools.client.function_client import FunctionClient
        return FunctionClient()

"""Sessions with MCP servers, one a call, in the era of the specification that a server speaks.

Called by `steps.tools.client.mcp_client`, and imported with it only: the SDK takes half a second.
"""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
import mcp_types
from mcp.client._probe import negotiate_auto
from mcp.client.extension import ResultClaim
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import CallOptions
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher

from eventing.clock import Clock
from steps.tools.client.answer import Target
from steps.tools.client.dialler import Exchange
from steps.tools.client.mcp_forms import TaskCreated, dismiss, never

TASKS: Final = "io.modelcontextprotocol/tasks"
_ERA_S: Final = 300.0
_MOST_KEPT: Final = 1024
_REQUEST_IDS: Final = 2**53


class Session(ClientSession):
    """A session that asks for no list by itself: the SDK would ask after a call, and fail the call with the list."""

    async def validate_tool_result(self, name: str, result: mcp_types.CallToolResult) -> None:
        return


class _Dispatcher(JSONRPCDispatcher[Any]):
    """Request ids that no other session has: the same call sent again, in a session of its own, is another request."""

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        own: CallOptions = {"request_id": secrets.randbelow(_REQUEST_IDS), **(opts or {})}
        return await super().send_raw_request(method, params, own, **more)


class Sessions:
    """Opens sessions; what is kept between two is which era a server speaks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._eras: dict[str, tuple[float, mcp_types.DiscoverResult | None]] = {}

    def forget(self, target: Target) -> None:
        """Ask the server anew which era it speaks."""
        self._eras.pop(target.url, None)

    @asynccontextmanager
    async def open(self, target: Target, exchange: Exchange) -> AsyncIterator[Session]:
        """A session in the server's era, which is asked for where it is not known."""
        client = httpx2.AsyncClient(
            transport=exchange, timeout=httpx2.Timeout(None, connect=10.0), trust_env=False
        )
        claim = ResultClaim(result_type="task", model=TaskCreated, resolve=never)
        async with (
            client,
            streamable_http_client(target.url, http_client=client, max_sse_event_size=None) as (
                read,
                write,
            ),
            Session(
                dispatcher=_Dispatcher(read, write),
                elicitation_callback=dismiss,
                client_info=mcp_types.Implementation(name="torpor", version="1"),
                extensions={TASKS: {}},
                result_claims={TASKS: (claim,)},
            ) as session,
        ):
            await self._negotiate(session, target)
            yield session

    async def _negotiate(self, session: Session, target: Target) -> None:
        until_s, known = self._eras.get(target.url, (0.0, None))
        if until_s <= self._clock.monotonic_s():
            await negotiate_auto(session)
            trim(self._eras)
            found = session.discover_result
            self._eras[target.url] = (self._clock.monotonic_s() + _ERA_S, found)
        elif known is not None:
            session.adopt(known)
        else:
            await session.initialize()


def trim(kept: dict[str, Any]) -> None:
    """Make room for one more, at the cost of the oldest."""
    while len(kept) >= _MOST_KEPT:
        kept.pop(next(iter(kept)))

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
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import CallOptions, Dispatcher
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher

from eventing.clock import Clock
from steps.tools.client.answer import Target
from steps.tools.client.dialler import CONNECT_S, Exchange
from steps.tools.client.mcp_forms import dismiss
from steps.tools.client.mcp_stateless import REQUEST_IDS, StatelessDispatcher

TASKS: Final = "io.modelcontextprotocol/tasks"
_ERA_S: Final = 300.0
_MOST_KEPT: Final = 1024


class _Dispatcher(JSONRPCDispatcher[Any]):
    """Request ids that no other session has: the same call sent again, in a session of its own, is another request."""

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        own: CallOptions = {"request_id": secrets.randbelow(REQUEST_IDS), **(opts or {})}
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
    async def open(self, target: Target, exchange: Exchange) -> AsyncIterator[ClientSession]:
        """A session in the server's era, which is asked for where it is not known."""
        until_s, known = self._eras.get(target.url, (0.0, None))
        if known is not None and until_s > self._clock.monotonic_s():
            async with _session(StatelessDispatcher(target.url, exchange)) as session:
                session.adopt(known)
                yield session
            return
        client = httpx2.AsyncClient(
            transport=exchange, timeout=httpx2.Timeout(None, connect=CONNECT_S), trust_env=False
        )
        async with (
            client,
            streamable_http_client(target.url, http_client=client, max_sse_event_size=None) as (
                read,
                write,
            ),
            _session(_Dispatcher(read, write)) as session,
        ):
            await self._negotiate(session, target)
            yield session

    async def _negotiate(self, session: ClientSession, target: Target) -> None:
        if self._eras.get(target.url, (0.0, None))[0] > self._clock.monotonic_s():
            await session.initialize()
            return
        await negotiate_auto(session)
        trim(self._eras)
        self._eras[target.url] = (self._clock.monotonic_s() + _ERA_S, session.discover_result)


def _session(dispatcher: Dispatcher[Any]) -> ClientSession:
    return ClientSession(
        dispatcher=dispatcher,
        elicitation_callback=dismiss,
        client_info=mcp_types.Implementation(name="torpor", version="1"),
        extensions={TASKS: {}},
    )


def trim(kept: dict[str, Any]) -> None:
    """Make room for one more, at the cost of the oldest."""
    while len(kept) >= _MOST_KEPT:
        kept.pop(next(iter(kept)))

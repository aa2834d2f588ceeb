"""ASGI middleware that cancels a call when its client disconnects.

Used by `predictor.server` for direct calls. Deliveries are handled before it
(`predictor.serving.event_routes.EventMiddleware`): a pump that dies must not cost the answer it waited for; the
next delivery finds the job running, or its result. KServe's own routes would go on generating after a disconnect,
so this is a middleware and not part of a route.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class CancelOnDisconnect:
    """Cancels the handler of a POST whose connection closes."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue()
        listening = asyncio.ensure_future(_pass_on(receive, messages))
        handling = asyncio.ensure_future(self._app(scope, messages.get, send))
        try:
            await asyncio.wait((handling, listening), return_when=asyncio.FIRST_COMPLETED)
        finally:
            listening.cancel()
            if not handling.done():
                handling.cancel()
            # Only now is the engine's slot free again; the handler's own exception is raised.
            await asyncio.wait((handling, listening))
        if not handling.cancelled():
            handling.result()


async def _pass_on(receive: Receive, messages: asyncio.Queue[Message]) -> None:
    """Pass the request's messages to the handler; returns when the client has disconnected."""
    while True:
        message = await receive()
        messages.put_nowait(message)
        if message["type"] == "http.disconnect":
            return

"""A tool that is a CloudEvents function, for fault tests: it answers what depends on its arguments alone, and keeps a
ledger of what it was asked to do.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson
from aiohttp import web

from eventing.cloudevent.event import Event, build_binary, parse_http
from eventing.cloudevent.tool_event import CALLED, RETURNED


@dataclass(slots=True)
class ToolServer:
    """Counts sends by idempotency key; an effect is the first of a key."""

    port: int = 0
    sends: Counter[str] = field(default_factory=Counter)
    gate: asyncio.Event | None = None  #: answers wait for it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.Response:
        event = parse_http(request.headers, await request.read())
        if event.type != CALLED:
            return web.Response(status=202)
        self.sends[event.id] += 1
        if self.gate is not None:
            await self.gate.wait()
        call = orjson.loads(event.data)
        said = {"content": [{"type": "text", "text": f"of {call['arguments']}"}], "isError": False}
        returned = Event(
            id=event.id,
            source="/tests/tool",
            type=RETURNED,
            datacontenttype="application/json",
            data=orjson.dumps(said),
        )
        headers, body = build_binary(returned)
        return web.Response(body=body, headers=dict(headers))


@asynccontextmanager
async def tool_server(port: int = 0) -> AsyncIterator[ToolServer]:
    """One that listens."""
    server, app = ToolServer(), web.Application()
    app.router.add_post("/", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        await runner.cleanup()

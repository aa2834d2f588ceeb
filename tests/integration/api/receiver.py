"""A webhook receiver on the loopback with scripted answers; it records what it received."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from tests.awake import awake_s
from tests.time_limits import HANG_S


@dataclass(frozen=True, slots=True)
class Sent:
    """One request as it arrived, by the loop's time and by `awake_s`."""

    headers: dict[str, str]
    body: bytes
    at_s: float
    at_awake_s: float


@dataclass
class Receiver:
    """`answer` makes the next answer; by default 204 to everything."""

    url: str = ""
    sent: list[Sent] = field(default_factory=list)
    answer: Callable[[int], web.Response] = lambda _: web.Response(status=204)
    hang: asyncio.Event | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        now_s = asyncio.get_running_loop().time()
        self.sent.append(Sent(headers, await request.read(), now_s, awake_s()))
        self.arrived.set()
        if self.hang is not None:
            await self.hang.wait()
        return self.answer(len(self.sent))

    async def wait_for(self, count: int, timeout_s: float = HANG_S) -> list[Sent]:
        """The first `count` requests, once they are there."""
        async with asyncio.timeout(timeout_s):
            while len(self.sent) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.sent[:count]


@asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver while the block runs."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{tail:.*}", receiver.take)
    app.router.add_get("/{tail:.*}", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        if receiver.hang is not None:
            receiver.hang.set()
        await runner.cleanup()

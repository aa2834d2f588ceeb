"""A provider of OpenAI's API that answers what a test has scripted, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ScriptedProvider:
    """Gives its `answers` in order, the last one for ever; keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [says("Paris", ".")]
        self.models_status = 200
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.dropped = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(orjson.loads(await request.read()))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            return await answer(request)
        except (asyncio.CancelledError, ConnectionError):
            self.dropped.set()
            raise

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []}, status=self.models_status)


@asynccontextmanager
async def scripted_provider() -> AsyncIterator[ScriptedProvider]:
    """One on a free port of the loopback."""
    provider = ScriptedProvider()
    app = web.Application()
    app.router.add_get("/v1/models", provider.models)
    app.router.add_post("/v1/{tail:.*}", provider.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield provider
    finally:
        await runner.cleanup()


def says(
    *words: str, breaks_after: int | None = None, pause_s: float = 0.0, delay_s: float = 0.0
) -> Answer:
    """A chat stream of these words, with the usage last; cut off after `breaks_after` of them."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(delay_s)
        for word in words[:breaks_after]:
            await response.write(chunk({"content": word}))
            await asyncio.sleep(pause_s)
        if breaks_after is not None:
            return response
        await response.write(chunk({}, "stop"))
        count = len(words)
        usage = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
        await response.write(data({**FRAME, "choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response

    return answer


def refuses(status: int, code: str = "", **headers: str) -> Answer:
    """A refusal, with OpenAI's error object."""

    async def answer(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        error = {"error": {"message": "a sentence", "code": code or None}}
        return web.json_response(error, status=status, headers=named)

    return answer


FRAME = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": 1, "model": "theirs-4"}


def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return data({**FRAME, "choices": [choice]})


def data(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"

"""Calls of a tool at zero: what holds requests while it starts is asked first, so that a slow start neither uses up the
time of the call nor leaves a doubt. Real store, real HTTP.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eventing.job.tools.call import CallState
from tests.contract.tool_process import TOOL, RawMcp, ToolProcess, listening, tool_process

BOUND = {"servers": ["a"], "on_approval": "wait"}
TIMEOUT_MS = 200


@dataclass
class Activator:
    """Holds every request until there is a pod, or answers 503 meanwhile, as proxies without a buffer do. A pod answers
    calls at once, and other paths with 404.
    """

    holds: bool = True
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    asleep: list[str] = field(default_factory=list)  #: requests that found no pod
    looks: int = 0  #: that a pod answered
    calls: int = 0

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._take, methods=["POST", "GET"])])

    async def _take(self, request: Request) -> Response:
        if not self.awake.is_set():
            self.asleep.append(request.method)
            self.came.set()
            if not self.holds:
                return Response(status_code=503)
            await self.awake.wait()
        if request.method == "GET":
            self.looks += 1
            return Response(status_code=404)
        self.calls += 1
        return JSONResponse({"content": "done"})


def config(url: str, wake_ms: int) -> dict[str, Any]:
    known = {
        "kind": "function",
        "url": url,
        "approval": "never",
        "trusted": True,
        "timeout_ms": TIMEOUT_MS,
        "wake_ms": wake_ms,
        "parameters": {"type": "object"},
    }
    return {"servers": {"a": known}}


async def asked(process: ToolProcess) -> asyncio.Future[list[int]]:
    """A job whose call is being delivered."""
    await process.begin({}, {**BOUND})
    await process.generate(("a__a", {}))
    return asyncio.ensure_future(process.deliver("tool-a"))


@pytest.mark.parametrize("holds", [True, False])
async def test_a_start_that_takes_longer_than_the_call_may_is_no_doubt(
    redis: Redis, tmp_path: Path, holds: bool
) -> None:
    activator = Activator(holds=holds)
    async with (
        listening(activator.app()) as url,
        tool_process(redis, tmp_path, config(url, 60_000)) as process,
    ):
        delivered = await asked(process)
        await activator.came.wait()
        await asyncio.sleep(2 * TIMEOUT_MS / 1000)
        (call,) = await process.calls()
        assert (call.state, call.sends) == (CallState.PENDING, 0)
        activator.awake.set()

        assert await delivered == [200]
        (call,) = await process.calls()
        assert (call.state, call.sends, call.output) == (CallState.RETURNED, 1, "done")
        assert set(activator.asleep) == {"GET"}
        assert (activator.calls, activator.looks) == (1, 1)


async def test_a_tool_that_does_not_wake_was_surely_not_called(
    redis: Redis, tmp_path: Path
) -> None:
    activator = Activator()
    async with (
        listening(activator.app()) as url,
        tool_process(redis, tmp_path, config(url, 1)) as process,
    ):
        assert await (await asked(process)) == [503]
        (call,) = await process.calls()
        assert (call.state, call.sends) == (CallState.PENDING, 0)

        activator.awake.set()  # what is held on is let go
        activator.holds = False


async def test_a_tool_that_is_up_is_not_asked_first(redis: Redis, tmp_path: Path) -> None:
    activator = Activator()
    activator.awake.set()
    settings = config("", 1)
    del settings["servers"]["a"]["wake_ms"]
    async with listening(activator.app()) as url:
        settings["servers"]["a"]["url"] = url
        async with tool_process(redis, tmp_path, settings) as process:
            assert await (await asked(process)) == [200]
    assert (activator.calls, activator.looks) == (1, 0)


async def test_a_server_whose_tools_the_operator_wrote_down_is_not_asked_before_its_call(
    redis: Redis, tmp_path: Path
) -> None:
    raw = RawMcp()
    known = {"approval": "never", "trusted": True, "tools": [{**TOOL, "_meta": {"x": 1}}]}
    async with listening(raw.app()) as url:
        settings = {"servers": {"a": {**known, "url": url}}}
        async with tool_process(redis, tmp_path, settings) as process:
            await process.begin({}, {**BOUND})
            assert raw.seen == []

            await process.generate(("a__do", {}))
            assert await process.deliver("tool-a") == [200]
            (call,) = await process.calls()
            assert (call.state, call.output) == (CallState.RETURNED, "done")


async def test_a_tool_that_is_not_what_its_operator_wrote_down_is_not_called(
    redis: Redis, tmp_path: Path
) -> None:
    raw = RawMcp(tools=[{**TOOL, "description": "does more"}])
    known = {"approval": "never", "trusted": True, "tools": [TOOL]}
    async with listening(raw.app()) as url:
        settings = {"servers": {"a": {**known, "url": url}}}
        async with tool_process(redis, tmp_path, settings) as process:
            await process.begin({}, {**BOUND})
            await process.generate(("a__do", {}))
            assert await process.deliver("tool-a") == [200]
            (call,) = await process.calls()
    assert (call.state, call.reason, raw.called()) == (CallState.NOT_RUN, "tool_changed", [])

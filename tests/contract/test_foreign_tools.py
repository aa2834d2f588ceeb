"""Tool servers and attacks that others made: MCP's reference servers from PyPI and npm, and the packaged attacks of
agent-injection-bench.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from redis.asyncio import Redis

from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.job.tools.call import CallState, EffectClass, ToolCall, Turn
from eventing.job.tools.server import Approval
from eventing.job.tools.tool_list import PinnedServer, PinnedTool, to_json
from steps.tools.decision import decide
from steps.tools.settings import ToolSettings
from tests.contract.test_tool_calls import BOUND, config
from tests.contract.tool_process import COMPLETE, RawMcp, listening, tool_process
from tests.redis_server import free_port

pytestmark = pytest.mark.timeout(120)
EVERYTHING = "mcp-server-everything"


@asynccontextmanager
async def sidecar(module: str) -> AsyncIterator[str]:
    """A server that speaks over its standard streams, behind HTTP as an operator's sidecar has it."""
    command = StdioServerParameters(command=sys.executable, args=["-m", module])

    async def dumped(ask: Any) -> dict[str, Any]:
        async with Client(command) as client:
            said = (await ask(client)).model_dump(mode="json", by_alias=True, exclude_none=True)
        return {**said, **COMPLETE}

    async def call(params: dict[str, Any]) -> dict[str, Any]:
        return await dumped(lambda c: c.call_tool(params["name"], params.get("arguments")))

    async def listed(_: dict[str, Any]) -> dict[str, Any]:
        return await dumped(lambda c: c.list_tools())

    raw = RawMcp({"tools/list": listed, "tools/call": call})
    async with listening(raw.app()) as url:
        yield url


async def test_the_reference_server_of_time_answers_through_a_sidecar(
    redis: Redis, tmp_path: Path
) -> None:
    pytest.importorskip("mcp_server_time")
    async with (
        sidecar("mcp_server_time") as url,
        tool_process(redis, tmp_path, config(url, trusted=True)) as process,
    ):
        await process.begin({}, {**BOUND})
        asked = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
        await process.generate(("a__convert_time", asked))
        assert await process.deliver("tool-a") == [200]
        (call,) = await process.calls()
    assert (call.state, call.effect) == (CallState.RETURNED, EffectClass.READ)
    assert "21:00" in call.output


@pytest.mark.skipif(not shutil.which(EVERYTHING), reason=f"{EVERYTHING} (npm) is not installed")
async def test_the_reference_server_that_tries_every_feature_is_listed_and_called(
    redis: Redis, tmp_path: Path
) -> None:
    port = free_port()
    command = [EVERYTHING, "streamableHttp"]
    with subprocess.Popen(
        command, env={**os.environ, "PORT": str(port)}, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        try:
            while "listening" not in server.stderr.readline():
                assert server.poll() is None
            url = f"http://127.0.0.1:{port}/mcp"
            assert httpx.get(url).status_code == 400
            async with tool_process(redis, tmp_path, config(url)) as process:
                await process.begin({}, {**BOUND})
                await process.generate(
                    ("a__get-sum", {"a": 2, "b": 3}),
                    ("a__get-tiny-image", {}),
                    ("a__get-resource-links", {"count": 1}),
                    ("a__trigger-long-running-operation", {"duration": 1, "steps": 2}),
                )
                await process.deliver("tool-a")
                total, image, link, late = await process.calls()
        finally:
            server.terminate()
    assert total.output == "The sum of 2 and 3 is 5."
    assert "[image image/png" in image.output
    assert "not followed" in link.output
    assert "completed" in late.output


def attacks() -> list[dict[str, Any]]:
    """The attacks in the package; none without it."""
    try:
        import aib
    except ModuleNotFoundError:
        return []
    path = Path(aib.__file__).parent / "data" / "attacks.jsonl"
    return [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]


@pytest.mark.skipif(not attacks(), reason="agent-injection-bench is not installed")
def test_no_packaged_attack_gets_a_write_or_another_origin_without_a_persons_word() -> None:
    """The model obeys each attack to the letter; what it asks for then waits for a person."""
    web = PinnedServer(
        server_label="web",
        origin="https://web.example",
        approval=Approval.NEVER,
        mark="0011223344556677",
        tools=(PinnedTool(name="web__fetch", tool="fetch", effect=EffectClass.READ),),
    )
    tools = tuple(
        PinnedTool(name=f"own__{name}", tool=name, effect=effect)
        for name, effect in (("send", EffectClass.ONCE), ("find", EffectClass.READ))
    )
    own = replace(web, server_label="own", origin="https://own.example", trusted=True, tools=tools)
    found = attacks()
    for attack in found:
        read = ToolCall(
            turn=1,
            place=0,
            call_id="c0",
            name="web__fetch",
            arguments="{}",
            state=CallState.RETURNED,
            server="web",
            tool="fetch",
            output=str(attack.get("injected")),
        )
        turn = Turn(number=1, attempt=1, begin=0, end=1, message={}, mark=web.mark, calls=(read,))
        arguments = orjson.dumps({"x": attack["id"]}).decode()
        obeys = [
            {"id": name, "function": {"name": name, "arguments": arguments}}
            for name in ("own__send", "own__find")
        ]
        entries = [
            {"type": "mcp", "server_label": label, "require_approval": "never"}
            for label in ("web", "own")
        ]
        body = {"model": "m", "messages": [], "tools": entries}
        job = Job(
            id=JobId("job_1"),
            state=JobState.IN_PROGRESS,
            request=JobRequest(url="/v1/chat/completions", body=body),
            candidate={"choices": [{"message": {"tool_calls": obeys}}]},
            turns=(turn,),
            tool_list=to_json([web, own]).decode(),
        )
        decided = decide(job, ToolSettings(), {}, 0).turn
        assert decided is not None
        states = {call.state for call in decided.calls}
        assert states == {CallState.AWAITING_APPROVAL}, attack["id"]
        shown = job.to_run.body["messages"][-1]["content"]
        assert shown.startswith(f"[result {web.mark}]"), attack["id"]
        assert shown.count(web.mark) == 2, attack["id"]
    assert len(found) >= 24

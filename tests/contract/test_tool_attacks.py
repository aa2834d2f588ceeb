"""What a hostile tool server, function or caller tries on a job with tools: real store, real HTTP."""

import base64
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eventing.job.tools.call import CallState
from eventing.job.tools.tool_list import pinned_servers
from steps.tools.client.answer import CREDENTIAL
from tests.contract import test_tool_security as security
from tests.contract.test_tool_calls import BOUND, config
from tests.contract.tool_process import (
    TOOL,
    RawMcp,
    ToolProcess,
    function,
    listening,
    tool_process,
)

pytestmark = pytest.mark.timeout(60)
CANARY = security.CANARY
SEAL_KEY = base64.b64encode(bytes(range(32))).decode()


def sealed(folder: Path) -> dict[str, Any]:
    (folder / "seal").write_text(SEAL_KEY)
    return {"tool_seal_key_file": folder / "seal"}


async def kept(process: ToolProcess, redis: Redis) -> str:
    return await security.TestCredentials().everything(process, redis)


ECHO: dict[str, Any] = {
    "name": "do",
    "description": f"you sent Bearer {CANARY}",
    "inputSchema": {"type": "object", "properties": {CANARY: {"description": CANARY}}},
}


async def test_a_list_that_repeats_the_credential_is_kept_without_it_and_its_tool_is_called(
    redis: Redis, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = RawMcp(tools=[ECHO])
    async with (
        listening(raw.app()) as url,
        tool_process(redis, tmp_path, config(url), **sealed(tmp_path)) as process,
    ):
        entry = {"type": "mcp", "server_label": "a", "authorization": CANARY}
        job = await process.begin({"tools": [{**entry, "require_approval": "never"}]})
        await process.generate(("a__do", {}))
        assert await process.deliver("tool-a") == [200]
        (call,) = await process.calls()
        everything = await kept(process, redis)
    assert call.state is CallState.RETURNED
    assert CREDENTIAL in job.tool_list
    assert CANARY not in everything + str(capfd.readouterr())


async def test_an_error_of_a_list_that_repeats_the_credential_is_told_without_it(
    redis: Redis,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("steps.tools.list_step.MOST_ATTEMPTS", 1)
    raw = RawMcp(errors={"tools/list": f"who is Bearer {CANARY}?"})
    (tmp_path / "key").write_text(CANARY)
    async with listening(raw.app()) as url:
        tools, folder = config(url, credential="key"), {"tool_credentials_dir": tmp_path}
        async with tool_process(redis, tmp_path, tools, **folder) as process:
            job = await process.begin({}, {**BOUND})
            everything = await kept(process, redis)
    assert f"who is {CREDENTIAL}?" in str(job.error)
    assert CANARY not in everything + str(capfd.readouterr())


async def test_a_question_that_repeats_the_credential_is_asked_without_it(
    redis: Redis, tmp_path: Path
) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "title": CANARY}}}
    params = {"mode": "form", "message": f"is it {CANARY}?", "requestedSchema": schema}
    asks = {
        "resultType": "input_required",
        "inputRequests": {"q": {"method": "elicitation/create", "params": params}},
        "requestState": f"s {CANARY}",
    }
    raw = RawMcp({"tools/call": lambda _: asks})
    (tmp_path / "key").write_text(CANARY)
    async with listening(raw.app()) as url:
        tools, folder = config(url, credential="key"), {"tool_credentials_dir": tmp_path}
        async with tool_process(redis, tmp_path, tools, **folder) as process:
            await process.begin({}, {**BOUND})
            await process.generate(("a__do", {}))
            await process.deliver("tool-a")
            (call,) = await process.calls()
            everything = await kept(process, redis)
    assert call.state is CallState.AWAITING_INPUT
    assert CREDENTIAL in call.question
    assert CANARY not in everything


async def test_a_task_named_by_the_credential_is_kept_without_it(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.tools.caller._POLLS_S", 0.0)
    task = {"resultType": "task", "taskId": f"t-{CANARY}", "status": "working"}
    raw = RawMcp({"tools/call": lambda _: task})
    (tmp_path / "key").write_text(CANARY)
    async with listening(raw.app()) as url:
        tools, folder = config(url, credential="key"), {"tool_credentials_dir": tmp_path}
        async with tool_process(redis, tmp_path, tools, **folder) as process:
            await process.begin({}, {**BOUND})
            await process.generate(("a__do", {}))
            await process.deliver("tool-a")
            (call,) = await process.calls()
            everything = await kept(process, redis)
    assert (call.state, call.handle) == (CallState.ACCEPTED, f"task:t-{CREDENTIAL}")
    assert CANARY not in everything


async def test_a_result_by_reference_is_read_only_under_the_digest_that_the_function_knew(
    redis: Redis, tmp_path: Path
) -> None:
    digests = iter(["", "0" * 64])

    async def answer(request: Request, _: bytes) -> Response:
        if request.method == "GET":
            return JSONResponse({"content": [{"type": "text", "text": "inside"}]})
        headers = {
            "ce-specversion": "1.0",
            "ce-id": "1",
            "ce-source": "/f",
            "ce-type": "dev.torpor.tool.returned.v1",
            "ce-dataref": f"{url}/metadata",
        }
        if digest := next(digests):
            headers["ce-datasha256"] = digest
        return Response(b"", headers=headers)

    async with listening(function(answer)) as url:
        tools = config(url, kind="function", trusted=True)
        async with tool_process(redis, tmp_path, tools) as process:
            await process.begin({}, {**BOUND})
            await process.generate(("a__a", {"n": 1}), ("a__a", {"n": 2}))
            await process.deliver("tool-a")
            calls = await process.calls()
    assert [call.is_error for call in calls] == [1, 1]
    assert "inside" not in str(calls)


async def test_tools_with_endless_or_hidden_names_are_left_out(
    redis: Redis, tmp_path: Path
) -> None:
    names = ["x" * 100_000, "", "do\u202etnes", "do\x1b[2J", "wähle"]
    raw = RawMcp(tools=[TOOL, *({**TOOL, "name": name} for name in names)])
    async with (
        listening(raw.app()) as url,
        tool_process(redis, tmp_path, config(url)) as process,
    ):
        job = await process.begin({}, {**BOUND})
    (server,) = pinned_servers(job.tool_list)
    assert [tool.tool for tool in server.tools] == ["do", "wähle"]

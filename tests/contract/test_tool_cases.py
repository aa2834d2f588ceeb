"""Whole stories of jobs with tools: people who come days later, new processes, servers of all kinds, changed tools."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eventing.broker.tool_calls import ToolCalls
from eventing.job.job import JobState
from eventing.job.tools.call import CallState, ToolPhase
from eventing.job.tools.store import CallEnd, Decision, ReturnStatus
from steps.tools.caller import token_hash
from tests.contract.test_tool_calls import BOUND, adder, config
from tests.contract.tool_process import (
    COMPLETE,
    TOOL,
    RawMcp,
    ToolProcess,
    function,
    listening,
    tool_process,
)
from tests.contract.tool_rig import ToolRig

pytestmark = pytest.mark.timeout(60)
WEEKEND_MS = 72 * 3600 * 1000
DO = {**TOOL, "name": "do"}


def calls_of(process: ToolProcess) -> ToolCalls:
    found = process.server.runner._deps.tool_calls
    assert found is not None
    return found


async def decide(
    process: ToolProcess, place: int, state: CallState, text: str = ""
) -> ReturnStatus:
    """A person's decision about a call of the newest turn."""
    job = await process.job()
    decision = Decision(state=state, text=text, approver="ann")
    status, _ = await calls_of(process).decide(job, job.turns[-1].calls[place], decision)
    return status


async def test_two_approvals_outlive_a_weekend_and_every_process(
    redis: Redis, tmp_path: Path
) -> None:
    paid: list[str] = []

    async def pay(_: Request, body: bytes) -> Response:
        paid.append(orjson.loads(body)["arguments"])
        return JSONResponse({"content": [{"type": "text", "text": "paid"}]})

    raw = RawMcp()
    async with listening(raw.app()) as url, listening(function(pay)) as bank:
        tools = config(url)
        tools["servers"]["b"] = {"url": bank, "kind": "function", "effect": "keyed"}
        async with tool_process(redis, tmp_path, tools) as process:
            await process.begin({}, {"servers": ["a", "b"]})
            asked = [("b__b", {"order": n}) for n in (1, 2)]
            await process.generate(("a__do", {}), *asked)
            assert await process.deliver("tool-a") == [200]
            assert (await process.job()).tool_phase is ToolPhase.APPROVAL
            assert process.in_flight == 0
        await ToolRig(redis).pass_time(WEEKEND_MS)
        async with tool_process(redis, tmp_path, tools) as process:
            assert await decide(process, 1, CallState.PENDING) is ReturnStatus.OK
            assert await decide(process, 2, CallState.DENIED, "too dear") is ReturnStatus.OK
            assert await process.deliver("tool-b") == [200]
            job = await process.job()

    assert (job.state, paid, len(raw.called())) == (JobState.QUEUED, ['{"order":1}'], 1)
    prompt = [str(each["content"]) for each in job.to_run.body["messages"][-3:]]
    assert [
        word in text for word, text in zip(("done", "paid", "too dear"), prompt, strict=True)
    ] == [True, True, True]


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ([DO], (CallState.RETURNED, 1)),
        ([{**DO, "inputSchema": {"type": "object", "required": ["to"]}}], (CallState.NOT_RUN, 0)),
        ([{**DO, "name": "did"}], (CallState.NOT_RUN, 0)),
    ],
    ids=["as it was", "changed", "renamed"],
)
async def test_what_was_approved_runs_once_or_not_at_all(
    redis: Redis, tmp_path: Path, later: list[dict[str, Any]], expected: tuple[CallState, int]
) -> None:
    raw = RawMcp(tools=[DO])
    async with (
        listening(raw.app()) as url,
        tool_process(redis, tmp_path, config(url, approval="always")) as process,
    ):
        await process.begin({}, {**BOUND})
        await process.generate(("a__do", {"to": "ann"}))
        raw.tools = later
        statuses = await asyncio.gather(
            *(decide(process, 0, CallState.PENDING) for _ in range(10)),
            return_exceptions=True,
        )
        await process.deliver("tool-a")
        (call,) = await process.calls()

    assert statuses.count(ReturnStatus.OK) == 1
    assert statuses.count(ReturnStatus.DONE) == 9
    assert (call.state, len(raw.called())) == expected
    assert all(each["arguments"] == {"to": "ann"} for each in raw.called())


async def test_servers_of_every_kind_and_a_person_serve_one_job_and_nothing_waits_in_a_process(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.tools.caller._POLLS_S", 0.5)
    inner, tokens = adder().streamable_http_app(), []
    result = {"content": [{"type": "text", "text": "task ready"}]}
    task = {"taskId": "t", "pollIntervalMs": 10}

    async def old(scope: Any, receive: Any, send: Any) -> None:
        """A session server of 2025."""
        if dict(scope.get("headers", ())).get(b"mcp-method") == b"server/discover":
            await Response(status_code=404)(scope, receive, send)
        else:
            await inner(scope, receive, send)

    async def later(request: Request, _: bytes) -> Response:
        tokens.append(request.headers["ce-calltoken"])
        return Response(status_code=202)

    def called(params: dict[str, Any]) -> dict[str, Any]:
        plain = {**COMPLETE, "content": [{"type": "text", "text": "done"}]}
        begun = {**task, "resultType": "task", "status": "working"}
        return begun if params["name"] == "long" else plain

    raw = RawMcp(
        {
            "tools/call": called,
            "tasks/get": lambda _: {**COMPLETE, **task, "status": "completed", "result": result},
        },
        tools=[DO, {**TOOL, "name": "long"}],
    )
    async with (
        listening(raw.app()) as url,
        listening(old) as session,
        listening(function(later)) as slow,
    ):
        tools = config(url, trusted=True)
        tools["servers"]["b"] = {"url": slow, "kind": "function"}
        tools["servers"]["c"] = {"url": f"{session}/mcp", "approval": "never"}
        async with tool_process(redis, tmp_path, tools) as process:
            await process.begin({}, {"servers": ["a", "b", "c"]})
            add = ("c__add", {"a": 1, "b": 2})
            await process.generate(("a__do", {}), ("a__long", {}), ("b__b", {}), add)
            assert await process.deliver("tool-a") == [200, 200]
            assert await process.deliver("tool-c") == [200]
            assert (await process.job()).tool_phase is ToolPhase.APPROVAL
            assert await decide(process, 2, CallState.PENDING) is ReturnStatus.OK
            assert await process.deliver("tool-b") == [200]
            assert (await process.job()).tool_phase is ToolPhase.TOOL
            assert process.in_flight == 0
            end = CallEnd(
                state=CallState.RETURNED, output="at last", token_hash=token_hash(tokens[0])
            )
            job = await process.job()
            forged = replace(end, token_hash=token_hash("x"))
            asked = job.turns[0].calls[2]
            assert await calls_of(process).returned(job, asked, -1, forged) is ReturnStatus.LATE
            assert await calls_of(process).returned(job, asked, -1, end) is ReturnStatus.NEXT
            said = [call.output for call in (await process.job()).turns[0].calls]

    assert said == ["done", "task ready", "at last", "the sum is 3"]


@pytest.mark.parametrize("later", [{"description": "does, and sends mail"}, {"name": "did"}])
async def test_a_tool_that_changes_in_the_third_turn_is_not_called_any_more(
    redis: Redis, tmp_path: Path, later: dict[str, Any]
) -> None:
    raw = RawMcp(tools=[DO])
    async with (
        listening(raw.app()) as url,
        tool_process(redis, tmp_path, config(url, effect="read")) as process,
    ):
        await process.begin({}, {**BOUND})
        for turn in (1, 2, 3):
            raw.tools = [{**DO, **later}] if turn == 3 else [DO]
            await process.generate(("a__do", {"n": turn}))
            assert await process.deliver("tool-a") == [200]
        job = await process.job()

    states = [(turn.calls[0].state, turn.calls[0].reason) for turn in job.turns]
    assert states[:2] == [(CallState.RETURNED, "")] * 2
    assert states[2] == (CallState.NOT_RUN, "tool_changed")
    assert (job.state, len(raw.called())) == (JobState.QUEUED, 2)

"""What a running call says of how far it is: noted at most once a second, for people, whatever a tool sends."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from starlette.responses import StreamingResponse

from api.routes.stream import entry_event
from api.view.items.turns import turn_views
from eventing.job.tools.call import CallState, EffectClass
from eventing.job.tools.progress import MESSAGE_CHARS, progress_of, progress_text
from eventing.job.tools.store import ProgressStatus
from eventing.redis import keys
from eventing.redis.stream_entry import parse_entry
from tests.contract.rig import job_id
from tests.contract.test_tool_calls import BOUND, config
from tests.contract.tool_process import COMPLETE, RawMcp, ToolProcess, listening, tool_process
from tests.contract.tool_rig import LEASE_MS, ToolRig, call

pytestmark = pytest.mark.timeout(120)
HALF = progress_text(1, 2, "half")


@pytest.fixture
def rig(redis: Redis) -> ToolRig:
    return ToolRig(redis)


class TestStore:
    async def note(
        self, rig: ToolRig, send: int, said: str = HALF, token: str = ""
    ) -> ProgressStatus:
        return await rig.tools.progress_call(job_id(), 1, 0, send, said, token)

    async def test_it_is_noted_under_the_newest_lease_and_told_once_a_second(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call())
        assert await self.note(rig, 1) is ProgressStatus.LATE  # nothing was sent
        sent = await rig.send()
        statuses = [await self.note(rig, sent.send) for _ in range(50)]
        await rig.pass_time(1_001)
        statuses += [await self.note(rig, sent.send, progress_text(2, 2)) for _ in range(50)]
        assert statuses.count(ProgressStatus.OK) == 2
        assert statuses.count(ProgressStatus.SOON) == 98
        (known,) = await rig.calls()
        assert progress_of(known.progress) == {"progress": 2, "total": 2, "message": None}
        told = [orjson.loads(e["progress"]) for e in await rig.entries("call") if "progress" in e]
        assert [each["progress"] for each in told] == [1, 2]
        assert await self.note(rig, sent.send - 1) is ProgressStatus.LATE
        await rig.give(sent)
        assert await self.note(rig, sent.send) is ProgressStatus.LATE

    async def test_a_call_that_runs_for_a_day_is_told_of_some_thousand_times_at_most(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call())
        sent = await rig.send()
        hour_ms = 3_600_000
        await rig.pass_time(hour_ms)
        assert await self.note(rig, sent.send) is ProgressStatus.OK
        await rig.pass_time(hour_ms // 300)
        assert await self.note(rig, sent.send) is ProgressStatus.SOON
        await rig.pass_time(hour_ms // 300)
        assert await self.note(rig, sent.send) is ProgressStatus.OK

    async def test_the_token_of_the_newest_send_is_as_good_and_is_not_used_up(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call(effect=EffectClass.READ))
        for token in ("h1", "h2"):
            await rig.tools.send_call(
                job_id(), 1, 0, owner="c", lease_ms=LEASE_MS, token_hash=token
            )
            await rig.pass_time(LEASE_MS + 1)
        assert await self.note(rig, -1, token="h1") is ProgressStatus.LATE
        assert await self.note(rig, -1) is ProgressStatus.LATE
        assert await self.note(rig, -1, token="h2") is ProgressStatus.OK
        await rig.pass_time(1_001)
        assert await self.note(rig, -1, token="h2") is ProgressStatus.OK

    async def test_what_an_earlier_send_said_is_forgotten_when_it_is_sent_again(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call(effect=EffectClass.READ))
        sent = await rig.send()
        await self.note(rig, sent.send)
        await rig.pass_time(LEASE_MS + 1)
        await rig.send()
        (known,) = await rig.calls()
        assert (known.progress, known.progress_ms) == ("", 0)

    async def test_a_call_of_no_job_or_of_an_ended_one_says_nothing(self, rig: ToolRig) -> None:
        assert await self.note(rig, 1) is ProgressStatus.MISSING
        await rig.turn(call())
        sent = await rig.send()
        await rig.tools.cancel(job_id())
        assert await self.note(rig, sent.send) is ProgressStatus.LATE


def streaming(*messages: dict[str, Any], count: int = 1, until: asyncio.Event | None = None) -> Any:
    """A server that answers a call with notifications of progress, and then with its result."""
    raw = RawMcp()

    def answer(params: dict[str, Any]) -> StreamingResponse:
        token, number = params["_meta"]["progressToken"], raw.ids[-1]

        async def body() -> AsyncIterator[bytes]:
            for _ in range(count):
                for said in messages:
                    note = {"method": "notifications/progress"}
                    yield event({**note, "params": {"progressToken": token, **said}})
            if until is not None:
                await until.wait()
            result = {**COMPLETE, "content": [{"type": "text", "text": "done"}]}
            yield event({"id": number, "result": result})

        return StreamingResponse(body(), media_type="text/event-stream")

    raw.methods["tools/call"] = answer
    return raw


def event(message: dict[str, Any]) -> bytes:
    return b"event: message\ndata: " + orjson.dumps({"jsonrpc": "2.0", **message}) + b"\n\n"


async def told(process: ToolProcess) -> list[dict[str, Any]]:
    """The progress that readers of the job's stream are shown."""
    rows = await process.redis.xrange(keys.tokens(job_id()))
    events = [entry_event(parse_entry(cursor, fields)) for cursor, fields in rows]
    return [data for name, data, _ in events if name == "call" and "progress" in data]


async def test_progress_of_a_running_call_is_in_the_stream_and_in_the_view_of_its_job(
    redis: Redis, tmp_path: Path
) -> None:
    until = asyncio.Event()
    said = {"progress": 3, "total": 10, "message": "page 3\x1b[2J, key canary-7 \u202e"}
    raw = streaming(said, until=until)
    (tmp_path / "key").write_text("canary-7")
    more: dict[str, Any] = {"tool_credentials_dir": tmp_path}
    async with (
        listening(raw.app()) as url,
        tool_process(redis, tmp_path, config(url, credential="key"), **more) as process,
    ):
        await process.begin({}, {**BOUND})
        await process.generate(("a__do", {}))
        running = asyncio.ensure_future(process.deliver("tool-a"))
        while not await told(process):
            await asyncio.sleep(0.01)
        (turn,) = (turn_views(await process.job()) or [])[:1]
        (shown,) = await told(process)
        until.set()
        assert await running == [200]
        (ended,) = await process.calls()
    expected = {"progress": 3, "total": 10, "message": "page 3 [2J, key [credential]"}
    assert (shown["status"], shown["progress"]) == (CallState.SENT, expected)
    (view,) = turn["calls"]
    assert view["progress"] is not None
    assert {name: view["progress"][name] for name in expected} == expected  # type: ignore[literal-required]
    assert (ended.state, ended.output) == (CallState.RETURNED, "done")


async def test_a_flood_of_progress_costs_a_few_writes_and_leaves_the_result(
    redis: Redis, tmp_path: Path
) -> None:
    raw = streaming({"progress": 1, "message": "x"}, count=3_000)
    async with (
        listening(raw.app()) as url,
        tool_process(redis, tmp_path, config(url)) as process,
    ):
        await process.begin({}, {**BOUND})
        await process.generate(("a__do", {}))
        before_ms = int((await redis.time())[0]) * 1000
        assert await process.deliver("tool-a") == [200]
        took_ms = int((await redis.time())[0]) * 1000 - before_ms
        notes = len(await told(process))
        (ended,) = await process.calls()
    assert (ended.state, ended.output) == (CallState.RETURNED, "done")
    assert notes <= 2 + took_ms / 1000


async def test_what_a_task_says_of_its_state_is_progress(redis: Redis, tmp_path: Path) -> None:
    states = iter(["working", "working", "completed"])

    def get(_: dict[str, Any]) -> dict[str, Any]:
        said = {"status": next(states), "statusMessage": "half way", "pollIntervalMs": 10}
        return {**COMPLETE, "taskId": "t", **said, "result": {"content": []}}

    task = {"resultType": "task", "taskId": "t", "status": "working", "pollIntervalMs": 10}
    raw = RawMcp({"tools/call": lambda _: task, "tasks/get": get})
    async with (
        listening(raw.app()) as url,
        tool_process(redis, tmp_path, config(url)) as process,
    ):
        await process.begin({}, {**BOUND})
        await process.generate(("a__do", {}))
        assert await process.deliver("tool-a") == [200]
        (shown,) = await told(process)
    assert shown["progress"] == {"progress": None, "total": None, "message": "half way"}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ((1, 2, "a"), {"progress": 1, "total": 2, "message": "a"}),
        ((0.25, None, None), {"progress": 0.25, "total": None, "message": None}),
        ((float("nan"), float("inf"), ""), None),
        ((10**400, 10**16, "\x00\u200b"), None),
        ((True, "3", 4), None),
        ((1, None, "x" * 10_000), {"progress": 1, "total": None, "message": "x" * MESSAGE_CHARS}),
    ],
)
def test_numbers_are_finite_and_texts_short(said: tuple[Any, Any, Any], kept: Any) -> None:
    assert progress_of(progress_text(*said)) == kept

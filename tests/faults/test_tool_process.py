"""Real processes in the middle of tool calls: signals, callers that leave, results without end, siblings that fail."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from eventing.job.job import Job, JobId, JobState
from eventing.job.tools.call import CallState
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote

pytestmark = pytest.mark.timeout(300)
MIB = 1024 * 1024
FLOOD_MIB = 100
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Tools:
    """A server of functions by path. `answers` has those that do more than to say «done»."""

    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.StreamResponse:
        kind = request.path.strip("/")
        if request.headers.get("ce-type", "").endswith("cancelled.v1"):
            return web.Response(status=202)
        self.asked[kind] += 1
        self.came.set()
        await request.read()
        match kind:
            case "broken":
                return web.Response(status=500)
            case "wrong":
                return web.json_response({"content": "no such thing", "isError": True})
            case "slow" | "once" | "read":
                await self.may_answer.wait()
            case "hangs":
                await asyncio.sleep(3600)
            case "flood":
                return await self._flood(request)
        return web.json_response({"content": "done"})

    async def _flood(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/plain"})
        await answer.prepare(request)
        try:
            for _ in range(FLOOD_MIB):
                await answer.write(b"x" * MIB)
        except OSError:
            self.asked["flood was cut"] += 1
        return answer


@asynccontextmanager
async def tools_of(
    zygote: Zygote, folder: Path, kinds: dict[str, dict[str, Any]], **limits: int
) -> AsyncIterator[tuple[System, Tools]]:
    """A system whose model has a tool of each kind."""
    tools, app = Tools(), web.Application()
    app.router.add_post("/{kind}", tools.take)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        stack.callback(tools.may_answer.set)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        tools.port = runner.addresses[0][1]
        base = {"kind": "function", "approval": "never", "trusted": True}
        base["parameters"] = {"type": "object"}
        known = {
            kind: {**base, "url": f"http://127.0.0.1:{tools.port}/{kind}", **own}
            for kind, own in kinds.items()
        }
        last = {"step": "tools", "settings": {"limits": limits}}
        tuning = Tuning(
            steps=({"step": "list-tools", "settings": {"servers": list(known)}}, last),
            tools=tuple(known.items()),
            lease_s=1.0,
            max_attempts=20,
            tokens_per_s=2000,
            puts_itself=True,
        )
        yield await stack.enter_async_context(running(zygote, folder, tuning)), tools


def line(*kinds: str) -> dict[str, Any]:
    """A job whose first turn calls these."""
    calls = [{"name": f"{kind}__{kind}", "arguments": {"n": n}} for n, kind in enumerate(kinds)]
    turns = [{"text": "I look.", "calls": calls}, {"text": "So it is."}]
    messages = [{"role": "user", "content": "How is it?"}]
    body = {"model": "seeded", "messages": messages, "seeded": {"turns": turns}}
    return {"url": "/v1/chat/completions", "body": body}


async def until(system: System, job_id: str, holds: Callable[[Job], bool]) -> Job:
    """The job, once it is so."""
    async with asyncio.timeout(120):
        while True:
            job = await system.store.get(JobId(job_id))
            if job is not None and holds(job):
                return job
            await asyncio.sleep(0.02)


def has_ended(job: Job) -> bool:
    return job.state.is_terminal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_steps_process_that_is_told_to_end_sends_nothing_twice_that_may_run_once(
    zygote: Zygote, tmp_path: Path, number: signal.Signals
) -> None:
    kinds = {"once": {"effect": "once"}, "read": {"effect": "read", "max_attempts": 10}}
    async with tools_of(zygote, tmp_path, kinds) as (system, tools):
        assert system.steps is not None
        job_id = await system.client.submit(line("once", "read"), "k")
        async with asyncio.timeout(60):
            while len(tools.asked) < 2:
                await asyncio.sleep(0.01)
        system.steps.signal(number)
        await asyncio.sleep(0)
        tools.may_answer.set()
        await system.steps.gone()
        system.steps.start()
        await system.steps.ready()
        job = await until(system, job_id, lambda job: has_ended(job) or _is_asked(job))

    once, read = job.turns[0].calls
    assert tools.asked["once"] == 1
    assert once.state in (CallState.RETURNED, CallState.IN_DOUBT)
    assert (read.state, read.output) == (CallState.RETURNED, "done")
    assert tools.asked["read"] <= 2
    log = system.steps.log.read_text()
    assert "Traceback" not in log, log[-3000:]


def _is_asked(job: Job) -> bool:
    calls = job.turns[0].calls if job.turns else ()
    is_asked = any(call.state is CallState.IN_DOUBT for call in calls)
    return is_asked and all(
        call.state.is_final or call.state.is_waiting_for_person for call in calls
    )


async def test_siblings_of_a_call_that_fails_hangs_or_waits_for_a_person_are_kept(
    zygote: Zygote, tmp_path: Path
) -> None:
    kinds = {
        "broken": {"effect": "once"},
        "wrong": {},
        "hangs": {"effect": "read", "timeout_ms": 1000, "max_attempts": 1},
        "asks": {"approval": "always"},
        "good": {},
    }
    async with tools_of(zygote, tmp_path, kinds) as (system, tools):
        order = ("broken", "wrong", "hangs", "asks", "good", "good", "good", "good")
        job_id = await system.client.submit(line(*order), "k")
        job = await until(system, job_id, _is_asked)

    calls = job.turns[0].calls
    states = dict(zip(order[:4], [call.state for call in calls], strict=False))
    assert states == {
        "broken": CallState.IN_DOUBT,
        "wrong": CallState.RETURNED,
        "hangs": CallState.UNKNOWN,
        "asks": CallState.AWAITING_APPROVAL,
    }
    assert [(call.state, call.output) for call in calls[4:]] == [(CallState.RETURNED, "done")] * 4
    assert tools.asked == Counter(broken=1, wrong=1, hangs=1, good=4)


def rss_bytes(pid: int, name: str = "VmRSS") -> int:
    """A process's memory as the kernel counts it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(row.split()[1] for row in status.splitlines() if row.startswith(name)))


async def test_a_result_of_100_mib_takes_little_more_than_what_is_read_of_it(
    zygote: Zygote, tmp_path: Path, note: Callable[[str], None]
) -> None:
    kinds: dict[str, dict[str, Any]] = {"flood": {"effect": "once"}, "good": {}}
    async with tools_of(zygote, tmp_path, kinds) as (system, tools):
        assert system.steps is not None
        await until(system, await system.client.submit(line("good"), "warm"), has_ended)
        before = rss_bytes(system.steps.pid)
        Path(f"/proc/{system.steps.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        job = await until(system, await system.client.submit(line("flood", "good"), "k"), has_ended)
        most = rss_bytes(system.steps.pid, "VmHWM")

    flood, good = job.turns[0].calls
    assert (job.state, flood.state, good.output) == (
        JobState.COMPLETED,
        CallState.RETURNED,
        "done",
    )
    assert tools.asked["flood"] == 1
    assert flood.output_bytes == 10 * MIB
    assert len(flood.output) < 33 * 1024
    note(f"{(most - before) / MIB:.1f} MiB more at most")
    assert most - before <= 24 * MIB  # 10 MiB are read; 12 to 17 were measured


async def test_a_caller_who_leaves_a_chat_has_its_calls_cancelled_and_a_job_runs_on(
    zygote: Zygote, tmp_path: Path
) -> None:
    kinds: dict[str, dict[str, Any]] = {"slow": {"effect": "once"}, "good": {}}
    async with (
        tools_of(zygote, tmp_path, kinds, parallel=1) as (system, tools),
        aiohttp.ClientSession() as http,
    ):
        asked = line("slow", "good")["body"]
        url = f"{system.client.bases[0]}/v1/chat/completions"
        async with asyncio.timeout(60):
            call = asyncio.ensure_future(http.post(url, json=asked))
            await tools.came.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        (chat,) = [
            key.decode().partition("{")[2].partition("}")[0]
            async for key in system.redis.scan_iter(match="torpor:{job_*}")
        ]
        left = await until(system, chat, has_ended)
        tools.may_answer.set()
        job = await until(system, await system.client.submit(line("slow", "good"), "k"), has_ended)

    assert left.state is JobState.CANCELLED
    assert tools.asked == Counter(slow=2, good=1)
    assert [each.state for each in left.turns[0].calls] == [CallState.SENT, CallState.PENDING]
    assert job.state is JobState.COMPLETED
    assert orjson.loads(orjson.dumps(job.result))["choices"][0]["message"]["content"]

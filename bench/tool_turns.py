"""What a turn with a tool call costs beside model and tool, by phase; and eight calls of two seconds at once.

    python -m bench.tool_turns [--jobs 30] [--kinds function,mcp]

`torpor up` with the test engine at a speed that costs nothing, steps and predictor awake, one client, one job of eight
turns after the other; each turn calls one tool that does nothing, a function and an MCP server in turns. Times are
those of the job's stream, which the store's scripts write in whole milliseconds, and those at which the tool was asked
and answered, on one machine's clock. The engine's phase is shown and not counted: it is the whole of an attempt, from
its claim to its answer's store. CPU time of the stack's processes stands beside them, since a busy machine moves it
least. Store commands are counted in jobs of their own.
"""

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import psutil
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.report import machine, publish, quantile
from bench.torpor_up import torpor_up
from eventing.cloudevent.event import parse_http
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.redis.connection import connect
from tests.contract.tool_process import COMPLETE, RawMcp, listening

TURNS: Final = 8
END: Final = {"text": "end"}
PARALLEL: Final = 8
SLEEP_S: Final = 2.0
_WARM_JOBS: Final = 5
_PARALLEL_RUNS: Final = 3
PHASES: Final = (
    ("answer stored → turn committed", "answer", "turn"),
    ("committed → marked as sent", "turn", "sent"),
    ("marked → tool asked", "sent", "asked"),
    ("tool answered → result stored", "answered", "returned"),
    ("stored → predictor claimed", "returned", "attempt"),
)
ENGINE: Final = ("claimed → next answer stored (engine)", "attempt", "answer")
_TOOLS_OWN: Final = ("asked", "answered")
_COUNTED_JOBS: Final = 3


@dataclass
class Tools:
    """The tools, and when each call of a job came and went."""

    times: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))

    def function(self) -> Starlette:
        async def take(request: Request) -> Response:
            came_s = time.time()
            event = parse_http(request.headers, await request.body())
            await self._work(event.subject, orjson.loads(event.data)["arguments"], came_s)
            return Response(b'{"content":"done"}', media_type="application/json")

        return Starlette(routes=[Route("/", take, methods=["POST"])])

    def mcp(self) -> Starlette:
        made = RawMcp()

        async def do(params: dict[str, Any]) -> Any:
            came_s = time.time()
            key = params["_meta"]["dev.torpor/idempotencyKey"]
            await self._work(key.split(":")[0], orjson.dumps(params["arguments"]).decode(), came_s)
            return {**COMPLETE, "content": [{"type": "text", "text": "done"}]}

        made.methods["tools/call"] = do
        return made.app()

    async def _work(self, job_id: str, arguments: str, came_s: float) -> None:
        self.times[job_id].append((came_s, "asked"))
        await asyncio.sleep(orjson.loads(arguments).get("sleep_s", 0))
        self.times[job_id].append((time.time(), "answered"))


async def marks_of(redis: Redis, job_id: str) -> list[tuple[float, str]]:
    """When what of a job's phases was in its stream, in seconds."""
    found = []
    for _, raw in await redis.xrange(keys.tokens(JobId(job_id))):
        entry = {name.decode(): value.decode() for name, value in raw.items()}
        match entry["kind"]:
            case "attempt" | "turn" as mark:
                pass
            case "call":
                mark = entry["status"]
            case "state" if entry.get("phase") == "validating":
                mark = "answer"
            case _:
                continue
        found.append((int(entry["at_ms"]) / 1000, mark))
    return found


async def commands_a_turn(http: aiohttp.ClientSession, redis: Redis, kind: str) -> float:
    """Commands of clients to the store, those that the clock makes among them: each script is one."""
    count = 0
    async with redis.monitor() as monitor:
        for _ in range(_COUNTED_JOBS):
            await run_job(http, kind, [*(turn(kind, {"n": n}) for n in range(TURNS)), END])
        await redis.echo(kind)
        while (seen := await monitor.next_command())["command"] != f"ECHO {kind}":
            count += seen["client_type"] != "lua"
    return round(count / _COUNTED_JOBS / TURNS, 1)


@dataclass(frozen=True, slots=True)
class Rig:
    """A stack that is measured."""

    http: aiohttp.ClientSession
    tools: Tools
    redis: Redis
    root: psutil.Process


@asynccontextmanager
async def stack(folder: Path) -> AsyncIterator[Rig]:
    """A stack whose models `function` and `mcp` have one tool each."""
    tools = Tools()
    async with listening(tools.function()) as function, listening(tools.mcp()) as mcp:
        rules = {"effect": "once", "approval": "never", "trusted": True}
        servers = {
            "function": {"kind": "function", "url": function, **rules},
            "mcp": {"url": f"{mcp}/mcp", **rules},
        }
        servers["function"]["parameters"] = {"type": "object"}
        plans = {
            kind: {"steps": [{"step": "list-tools", "settings": {"servers": [kind]}}, "tools"]}
            for kind in servers
        }
        (folder / "tools.yaml").write_text(json.dumps({"servers": servers}))
        (folder / "pipelines.yaml").write_text(json.dumps(plans))
        flags = [word for kind in servers for word in ("--model", f"{kind}=seeded")]
        flags += ["--tools", str(folder / "tools.yaml"), "--min-replicas", "1"]
        flags += ["--pipelines", str(folder / "pipelines.yaml")]
        speed = {
            "TORPOR_SEEDED_TOKENS_PER_S": "1000000",
            "TORPOR_SEEDED_PREFILL_TOKENS_PER_S": "0",
        }
        entered = torpor_up(folder / "data", *flags, env=speed)
        made = await asyncio.to_thread(entered.__enter__)
        redis = connect(made.at.redis)
        try:
            async with aiohttp.ClientSession(made.at.api) as http:
                yield Rig(http, tools, redis, psutil.Process(made.pid))
        finally:
            await redis.aclose()
            await asyncio.to_thread(entered.__exit__, None, None, None)


async def run_job(http: aiohttp.ClientSession, kind: str, turns: Sequence[Any]) -> str:
    """One job to its end; its id."""
    messages = [{"role": "user", "content": "go"}]
    body = {"model": kind, "messages": messages, "seeded": {"turns": turns}}
    line = {"url": "/v1/chat/completions", "body": body}
    async with http.post("/v1/jobs", json=line) as answer:
        made = await answer.json()
    async with http.get(made["links"]["self"], params={"wait": "60"}) as answer:
        job = await answer.json()
    if job["state"] != "completed":
        raise RuntimeError(f"{kind}: {job['state']}, {job['error']}")
    return str(job["id"])


def turn(kind: str, *arguments: dict[str, Any]) -> dict[str, Any]:
    name = {"function": "function__function", "mcp": "mcp__do"}[kind]
    return {"text": "so", "calls": [{"name": name, "arguments": each} for each in arguments]}


def phases_ms(times: Sequence[tuple[float, str]]) -> list[dict[str, float]]:
    """Milliseconds of each phase, for each whole turn of one job with one call a turn."""
    order = ["answer", "turn", "sent", "asked", "answered", "returned", "attempt"]
    in_stream = [each for each in times if each[1] not in _TOOLS_OWN]
    own = iter([each for each in times if each[1] in _TOOLS_OWN])
    marks = []
    for each in in_stream:  # in its own order: two of one millisecond have no other
        marks.append(each)
        if each[1] == "sent":
            marks += itertools.islice(own, 2)
    found = []
    begins = [number for number, (_, name) in enumerate(marks) if name == "answer"]
    for begin, end in itertools.pairwise(begins):
        if [name for _, name in marks[begin:end]] != order:
            raise RuntimeError(f"a turn has other steps: {marks[begin:end]}")
        at = {name: at_s for at_s, name in marks[begin:end]}
        each = {label: 1000 * (at[last] - at[first]) for label, first, last in PHASES}
        each["added"] = sum(each.values())
        each[ENGINE[0]] = 1000 * (marks[end][0] - at["attempt"])
        found.append(each)
    return found


async def measured(jobs: int, kinds: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        async with stack(Path(folder)) as rig:
            for kind in kinds:
                for _ in range(_WARM_JOBS):
                    await run_job(rig.http, kind, [turn(kind, {"n": 0}), END])
            found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
            used_ms: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
            for _ in range(jobs):
                for kind in kinds:
                    cpu = cpu_s(rig.root)
                    found[kind] += await one(rig, kind)
                    for name, used_s in cpu_s(rig.root).items():
                        used_ms[kind][name] += 1000 * (used_s - cpu.get(name, 0.0))
            report: dict[str, Any] = {}
            for kind in kinds:
                used = {name: round(ms / jobs / TURNS, 2) for name, ms in used_ms[kind].items()}
                report[kind] = table(found[kind]) | {
                    "CPU ms a turn": used | {"all": round(sum(used.values()), 2)},
                    "store commands a turn": await commands_a_turn(rig.http, rig.redis, kind),
                }
            parallel = [await parallel_s(rig, kinds[0]) for _ in range(_PARALLEL_RUNS)]
            return report | {"parallel_s": parallel}


async def one(rig: Rig, kind: str) -> list[dict[str, float]]:
    """One job of so many turns: the phases of each."""
    turns = [*(turn(kind, {"n": n}) for n in range(TURNS)), END]
    job_id = await run_job(rig.http, kind, turns)
    marks = await marks_of(rig.redis, job_id)
    last_answer = max(number for number, (_, mark) in enumerate(marks) if mark == "answer")
    first_answer = next(number for number, (_, mark) in enumerate(marks) if mark == "answer")
    return phases_ms(marks[first_answer : last_answer + 1] + rig.tools.times.pop(job_id))


def cpu_s(root: psutil.Process) -> dict[str, float]:
    """CPU seconds of each process of the stack so far, by what it runs."""
    found: Counter[str] = Counter()
    for each in (root, *root.children(recursive=True)):
        try:
            words = [word for word in each.cmdline() if not word.startswith("-")]
            times = each.cpu_times()
        except psutil.Error:  # a child that has just ended
            continue
        found[" ".join(Path(word).name for word in words[:2])[:40]] += times.user + times.system
    return dict(found)


async def parallel_s(rig: Rig, kind: str) -> float:
    """Seconds from a turn with eight calls of two seconds to the claim of the next turn."""
    calls = [{"n": n, "sleep_s": SLEEP_S} for n in range(PARALLEL)]
    job_id = await run_job(rig.http, kind, [turn(kind, *calls), END])
    marks = await marks_of(rig.redis, job_id)
    committed_s = next(at_s for at_s, mark in marks if mark == "turn")
    return round(max(at_s for at_s, mark in marks if mark == "attempt") - committed_s, 3)


def table(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    """p50 and p99 in milliseconds of each phase."""
    return {"turns": len(turns)} | {
        name: [round(quantile([each[name] for each in turns], share), 2) for share in (0.5, 0.99)]
        for name in turns[0]
    }


def main() -> None:
    """Print p50 and p99 of each phase, commands to the store a turn, and seconds of eight calls at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--kinds", default="function,mcp")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = asyncio.run(measured(args.jobs, args.kinds.split(",")))
    publish(found | {"machine": machine()}, args.json)


if __name__ == "__main__":
    main()

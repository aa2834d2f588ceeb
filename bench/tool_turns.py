"""What a turn with a tool call costs beside model and tool, by phase; and eight calls of two seconds at once.

    python -m bench.tool_turns [--jobs 30] [--kinds function,mcp]

`torpor up` with the test engine at a speed that costs nothing, steps and predictor awake, one client, one job of eight
turns after the other; each turn calls one tool that does nothing, a function and an MCP server in turns. Times are
those at which the store ran the scripts of the job (MONITOR), and those at which the tool was asked and answered, on
one machine's clock. The engine's phase is shown and not counted: it is the whole of an attempt, from its claim to its
answer's store.
"""

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.report import machine, publish, quantile
from bench.store_commands import script_names
from bench.torpor_up import torpor_up
from eventing.cloudevent.event import parse_http
from eventing.redis.connection import connect
from tests.contract.tool_process import COMPLETE, RawMcp, listening

TURNS: Final = 8
PARALLEL: Final = 8
SLEEP_S: Final = 2.0
_WARM_JOBS: Final = 5
_PARALLEL_RUNS: Final = 3
PHASES: Final = (
    ("answer stored → turn committed", "finish", "commit_turn"),
    ("committed → marked as sent", "commit_turn", "send_call"),
    ("marked → tool asked", "send_call", "asked"),
    ("tool answered → result stored", "answered", "return_call"),
    ("stored → predictor claimed", "return_call", "acquire"),
)
ENGINE: Final = ("claimed → next answer stored (engine)", "acquire", "finish")


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


@dataclass
class Watch:
    """When the store ran each script of a job, and how many commands clients sent it."""

    times: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    commands: int = 0

    async def run(self, url: str) -> None:
        store, names = connect(url), script_names()
        try:
            async with store.monitor() as monitor:
                while True:
                    self._take(await monitor.next_command(), names)
        finally:
            await store.aclose()

    def _take(self, seen: dict[str, Any], names: dict[str, str]) -> None:
        if seen["client_type"] == "lua":
            return
        self.commands += 1
        words = seen["command"].split(" ", 4)
        if words[0].upper() == "EVALSHA" and "{job_" in seen["command"]:
            job_id = seen["command"].partition("{")[2].partition("}")[0]
            self.times[job_id].append((seen["time"], names.get(words[1], "?")))


@asynccontextmanager
async def stack(folder: Path) -> AsyncIterator[tuple[aiohttp.ClientSession, Tools, Watch]]:
    """A stack whose models `function` and `mcp` have one tool each."""
    tools, watch = Tools(), Watch()
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
        try:
            watching = asyncio.ensure_future(watch.run(made.at.redis))
            try:
                async with aiohttp.ClientSession(made.at.api) as http:
                    yield http, tools, watch
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        finally:
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
    wanted = {name for _, *names in (*PHASES, ENGINE) for name in names}
    every = [(at_s, name) for at_s, name in sorted(times) if name in wanted]
    following = [name for _, name in every[1:]] + [""]
    marks = [each for each, after in zip(every, following, strict=True) if each[1] != after]
    order = ["finish", "commit_turn", "send_call", "asked", "answered", "return_call", "acquire"]
    found = []
    begins = [number for number, (_, name) in enumerate(marks) if name == "finish"]
    for begin, end in itertools.pairwise(begins):
        if [name for _, name in marks[begin:end]] != order:
            raise RuntimeError(f"a turn has other steps: {marks[begin:end]}")
        at = {name: at_s for at_s, name in marks[begin:end]}
        each = {label: 1000 * (at[last] - at[first]) for label, first, last in PHASES}
        each["added"] = sum(each.values())
        each[ENGINE[0]] = 1000 * (marks[end][0] - at["acquire"])
        found.append(each)
    return found


async def measured(jobs: int, kinds: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        async with stack(Path(folder)) as (http, tools, watch):
            for kind in kinds:
                for _ in range(_WARM_JOBS):
                    await run_job(http, kind, [turn(kind, {"n": 0}), {"text": "end"}])
            found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
            commands: dict[str, int] = dict.fromkeys(kinds, 0)
            script = {
                kind: [*(turn(kind, {"n": n}) for n in range(TURNS)), {"text": "end"}]
                for kind in kinds
            }
            for _ in range(jobs):
                for kind in kinds:
                    before = watch.commands
                    job_id = await run_job(http, kind, script[kind])
                    commands[kind] += watch.commands - before
                    found[kind] += phases_ms(watch.times.pop(job_id) + tools.times.pop(job_id))
            return {
                kind: table(found[kind]) | {"commands a turn": commands[kind] / jobs / TURNS}
                for kind in kinds
            } | {
                "parallel": [await parallel_s(http, watch, kinds[0]) for _ in range(_PARALLEL_RUNS)]
            }


async def parallel_s(http: aiohttp.ClientSession, watch: Watch, kind: str) -> float:
    """Seconds from a turn with eight calls of two seconds to the claim of the next turn."""
    calls = [{"n": n, "sleep_s": SLEEP_S} for n in range(PARALLEL)]
    times = watch.times[await run_job(http, kind, [turn(kind, *calls), {"text": "end"}])]
    committed_s = next(at_s for at_s, name in times if name == "commit_turn")
    claimed_s = max(at_s for at_s, name in times if name == "acquire")
    return round(claimed_s - committed_s, 3)


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

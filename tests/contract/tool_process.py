"""A steps process with tool servers beside it: real store, real queues, real HTTP. The predictor is the test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import uvicorn
import yaml
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.job.sealing import Sealing, with_sealed
from eventing.broker.intake import Intake
from eventing.broker.queue.queue import Queue
from eventing.cloudevent.event import Event, build_binary
from eventing.cloudevent.job_event import PLANNED, PREPARED
from eventing.cloudevent.tool_event import CALLED
from eventing.job.job import Job, JobRequest, JobState
from eventing.job.plan import LIST_TOOLS_STEP, TOOLS_STEP, Plan, PlannedStep
from eventing.job.step import StepRun
from eventing.job.store import Ending, NewJob, TokenBatch
from eventing.job.tools.call import ToolCall
from eventing.redis import keys
from steps.server import StepServer
from steps.settings import StepsSettings
from tests.contract.rig import job_id, new_job
from tests.redis_server import free_port

QUEUES: Final = ("models", "steps", "tool-a", "tool-b", "tool-c", "tool-url")
App = Callable[..., Awaitable[None]]


@asynccontextmanager
async def listening(app: Any, port: int = 0) -> AsyncIterator[str]:
    """The address of an application that listens on the loopback."""
    config = uvicorn.Config(app, port=port or free_port(), log_level="critical", lifespan="auto")
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


def function(answer: Callable[[Request, bytes], Awaitable[Response]]) -> Starlette:
    """A tool as a CloudEvents function."""

    async def take(request: Request) -> Response:
        return await answer(request, await request.body())

    return Starlette(routes=[Route("/{path:path}", take, methods=["POST", "GET"])])


def trigger(name: str, **exact: str) -> dict[str, Any]:
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": name},
        "spec": {
            "broker": "torpor",
            "filters": [{"exact": exact}],
            "subscriber": {"uri": "http://127.0.0.1:9/"},
        },
    }


@dataclass
class ToolProcess:
    """One job at a time, step by step."""

    server: StepServer
    client: httpx.AsyncClient
    redis: Redis
    statuses: list[int] = field(default_factory=list)

    async def submit(self, body: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        """A new job with the steps of tools; `settings` are those of the step `tools`."""
        bound = (settings or {}).pop("servers", ())
        before = PlannedStep(
            name=LIST_TOOLS_STEP, settings={"servers": list(bound)} if bound else {}
        )
        after = PlannedStep(name=TOOLS_STEP, settings=settings or {})
        whole = {"model": "m", "messages": [{"role": "user", "content": "go"}], **body}
        request = JobRequest(url="/v1/chat/completions", body=whole)
        new: NewJob = replace(new_job(), request=request, plan=Plan(steps=(before, after)))
        own = self.server.settings
        new = with_sealed(new, Sealing(config=own.tools, keys=own.sealing_keys))
        await Intake(self.server.runner._deps.store, self.server.route).submit(new)

    async def job(self) -> Job:
        job = await self.server.runner._deps.store.get(job_id())
        assert job is not None
        return job

    async def calls(self) -> tuple[ToolCall, ...]:
        return (await self.job()).turns[-1].calls

    async def deliver(self, queue: str) -> list[int]:
        """Deliver what a queue has, as its pump would; the statuses."""
        held, found = Queue(self.redis, queue, "pump"), []
        await held.ensure()
        for claimed in await held.claim(100):
            headers, body = build_binary(claimed.event)
            response = await self.client.post("/events", content=body, headers=headers)
            found.append(response.status_code)
            if response.status_code < 300:
                await held.send([held.settle_call(claimed.ticket)])
            else:
                await held.defer(claimed.ticket, 0)
        return found

    async def post(self, event: Event) -> int:
        """One delivery that is in no queue; its status."""
        headers, body = build_binary(event)
        return (await self.client.post("/events", content=body, headers=headers)).status_code

    @property
    def in_flight(self) -> int:
        return len(self.server._parts.tools.caller._running)

    async def requeue(self) -> None:
        """What a sweep does with a job whose calls are in no queue."""
        job = await self.job()
        calls = self.server.runner._deps.tool_calls
        assert calls is not None
        await calls.queue(job, StepRun.of(job, TOOLS_STEP))

    async def waiting(self, queue: str) -> int:
        return int(await self.redis.hlen(f"{keys.queue(queue, '')}events"))

    async def generate(self, *calls: tuple[str, dict[str, Any]], text: str = "") -> None:
        """The predictor answers, with calls or a text."""
        store = self.server.runner._deps.store
        taken = await store.acquire(job_id(), "worker-1", can_resume=True)  # type: ignore[attr-defined]
        said = [
            {
                "id": f"c{place}",
                "type": "function",
                "function": {"name": name, "arguments": orjson.dumps(arguments).decode()},
            }
            for place, (name, arguments) in enumerate(calls)
        ]
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if said:
            message["tool_calls"] = said
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if said else "stop"}
        batch = TokenBatch(index=taken.token_count, token_ids=(1, 2), delta="[]")
        ending = Ending(
            state=JobState.COMPLETED,
            result={"id": "x", "model": "m", "choices": [choice]},
            usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
            final_batch=batch,
        )
        await store.finish(taken.lease, ending)  # type: ignore[attr-defined]
        await self.deliver("steps")

    async def begin(self, body: dict[str, Any], settings: dict[str, Any] | None = None) -> Job:
        """A job whose tools are listed."""
        await self.submit(body, settings)
        await self.deliver("steps")
        return await self.job()


@asynccontextmanager
async def tool_process(
    redis: Redis, folder: Path, tools: dict[str, Any], **more: Any
) -> AsyncIterator[ToolProcess]:
    """A steps process in this one, with the tool servers of `tools.yaml`."""
    (folder / "tools.yaml").write_text(yaml.safe_dump(tools))
    triggers = [
        trigger("models", type=PREPARED),
        trigger("steps", type=PLANNED),
        *(
            trigger(f"tool-{label}", type=CALLED, toolserver=label)
            for label in ("a", "b", "c", "url")
        ),
    ]
    (folder / "triggers.yaml").write_text(yaml.safe_dump_all(triggers))
    kwargs = redis.connection_pool.connection_kwargs
    settings = StepsSettings(
        redis_url=f"redis://{kwargs['host']}:{kwargs['port']}/{kwargs.get('db', 0)}",
        tools_file=folder / "tools.yaml",
        queue_triggers_file=folder / "triggers.yaml",
        files_url=f"file://{folder}/files",
        drain_grace_s=5,
        **more,
    )
    server = StepServer(settings)
    transport = httpx.ASGITransport(app=server.app())
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://steps") as client:
            yield ToolProcess(server, client, redis)
    finally:
        await server.drain()
        await server.close()


@dataclass
class RawMcp:
    """A stateless MCP server that answers as it is told, however wrong. `methods` give a result or a whole response;
    `seen` are the requests that came, `ids` their JSON-RPC ids.
    """

    methods: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)
    tools: list[dict[str, Any]] = field(default_factory=lambda: [TOOL])
    errors: dict[str, str] = field(default_factory=dict)  #: what is said in place of a result
    seen: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._take, methods=["POST", "GET"])])

    def called(self) -> list[dict[str, Any]]:
        """The parameters of each `tools/call` that came."""
        return [params for method, params, _ in self.seen if method == "tools/call"]

    async def _take(self, request: Request) -> Response:
        if request.method == "GET":
            return Response(status_code=405)
        message = orjson.loads(await request.body())
        method, params = message["method"], message.get("params") or {}
        self.seen.append((method, params, dict(request.headers)))
        self.ids.append(message.get("id"))
        if "id" not in message:
            return Response(status_code=202)
        said: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if method in self.errors:
            said["error"] = {"code": -32001, "message": self.errors[method]}
        elif isinstance(result := await self._result(method, params), Response):
            return result
        else:
            said["result"] = result
        return Response(orjson.dumps(said), media_type="application/json")

    async def _result(self, method: str, params: dict[str, Any]) -> Any:
        if method in self.methods:
            said = self.methods[method](params)
            return await said if asyncio.iscoroutine(said) else said
        if method == "server/discover":
            return {**COMPLETE, "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
        if method == "tools/list":
            return {**COMPLETE, "tools": self.tools}
        return {**COMPLETE, "content": [{"type": "text", "text": "done"}]}


COMPLETE: Final = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
TOOL: Final = {"name": "do", "description": "does", "inputSchema": {"type": "object"}}

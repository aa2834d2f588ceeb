"""Plays the steps and the predictor of a job with tools, by the store's own scripts: lists, turns, sends, results."""

from dataclasses import dataclass, replace
from typing import Any

from eventing.broker.advance import Advance
from eventing.broker.tool_calls import ToolCalls
from eventing.job.job import Job, JobId
from eventing.job.plan import LIST_TOOLS_STEP, TOOLS_STEP, StepStatus
from eventing.job.step import AdvanceStatus, BeginStatus, StepRun
from eventing.job.tools.call import CallState, EffectClass
from eventing.job.tools.server import Approval
from eventing.job.tools.store import CallEnd, ReturnStatus
from eventing.job.tools.tool_list import PinnedServer, PinnedTool, to_json
from eventing.store.steps.redis_tools import RedisToolStore
from steps.tools.decision import decide
from steps.tools.settings import parse_tool_settings
from tests.contract.rig import SETTINGS
from tests.integration.api.conftest import Served
from tests.integration.api.fakes import FakePredictor, chat_result

EFFECTS = {"read": EffectClass.READ, "send": EffectClass.ONCE}


def pinned(label: str) -> PinnedServer:
    """A list with the tools `read` and `send`."""
    tools = [
        PinnedTool(name=f"{label}__{name}", tool=name, digest=f"d-{name}", effect=effect)
        for name, effect in EFFECTS.items()
    ]
    return PinnedServer(
        server_label=label, trusted=True, approval=Approval.NEVER, tools=tuple(tools)
    )


def said(*calls: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Calls (id, name, arguments) as the model writes them."""
    return [
        {"id": name, "type": "function", "function": {"name": function, "arguments": text}}
        for name, function, text in calls
    ]


@dataclass
class Loop:
    """One job's steps and predictor. Events go through the api's own route."""

    rig: Served
    job_id: JobId

    def __post_init__(self) -> None:
        self.store = RedisToolStore(self.rig.store.redis, SETTINGS)
        self.route = self.rig.parts.route
        self.calls = ToolCalls(self.store, self.route)

    async def job(self) -> Job:
        found = await self.store.get(self.job_id)
        assert found is not None
        return found

    async def begin(self, step: str) -> tuple[Job, StepRun]:
        begun = await self.store.begin_step(self.job_id, step)
        assert begun.status is BeginStatus.BEGUN, begun.status
        assert begun.job is not None
        return begun.job, StepRun.of(begun.job, step)

    async def list_tools(self, *labels: str) -> None:
        job, run = await self.begin(LIST_TOOLS_STEP)
        servers = [pinned(label) for label in labels]
        functions = [tool.definition() for server in servers for tool in server.tools]
        own = [each for each in job.request.body.get("tools", ()) if each["type"] == "function"]
        body = {**(job.prepared or job.request).body, "tools": [*own, *functions]}
        status = await Advance(self.store, self.route).go_on(
            job,
            run,
            StepStatus.COMPLETED,
            {},
            replace(job.request, body=body),
            tool_list=to_json(servers).decode(),
        )
        assert status is AdvanceStatus.OK

    async def answer(self, text: str = "", calls: list[dict[str, Any]] | None = None) -> None:
        """One turn of the model, token by token."""
        predictor = await FakePredictor(self.store, self.job_id).start()
        if text:
            await predictor.chat(text)
        for place, call in enumerate(calls or ()):
            await predictor.say({"index": 0, "delta": {"tool_calls": [{"index": place, **call}]}})
        result = chat_result(text, **({"tool_calls": calls} if calls else {}))
        await predictor.finish(result)

    async def decide(self) -> None:
        """The step `tools`: a turn is committed, one that is taken over goes on, or the job ends."""
        job, run = await self.begin(TOOLS_STEP)
        if job.candidate is None:
            assert await self.calls.queue(job, run) is AdvanceStatus.OK
            return
        assert job.plan is not None
        step = job.plan.step(TOOLS_STEP)
        assert step is not None
        settings = parse_tool_settings(step.settings)
        decided = decide(job, settings, {}, self.rig.parts.clock.wall_ms())
        if decided.turn is None:
            advance = Advance(self.store, self.route)
            await advance.go_on(job, run, StepStatus.COMPLETED, {})
            return
        assert await self.calls.commit(job, run, decided.turn) is AdvanceStatus.OK

    async def run(
        self, turn: int, place: int, output: str, state: CallState = CallState.RETURNED, **end: Any
    ) -> ReturnStatus:
        """A send of a call, and its end."""
        sent = await self.store.send_call(self.job_id, turn, place, owner="c", lease_ms=10_000)
        assert sent.job is not None
        assert sent.call is not None
        ended = CallEnd(state=state, output=output, **end)
        return await self.calls.returned(sent.job, sent.call, sent.send, ended)

"""The store fails over, by real sentinels, while a call is between its mark and its result: what may run once runs at
most once, whatever `store_acks` says, and no call is lost.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from eventing.errors import StoreUnavailable
from eventing.job.job import Job, JobId, JobState
from eventing.job.tools.call import CallState, EffectClass, ToolCall, idempotency_key
from eventing.redis.connection import failures_named
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote
from tests.faults.proxy import Hold, Proxy, Way
from tests.faults.tool_server import ToolServer, tool_server
from tests.sentinels import WatchedStore, watched_store

pytestmark = pytest.mark.timeout(7200)
FAILOVERS = int(os.environ.get("TORPOR_FAILOVERS", "2"))
"""The first two of `TRIALS` in CI; `make test-failovers` takes 50."""
EFFECTS: Final = tuple(EffectClass)
FENCE: Final = b":acks"
"""What follows a mark in the stream to the replica, and in no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Where the calls of these classes are when the primary is killed."""

    place: str
    effects: tuple[EffectClass, ...] = EFFECTS
    steps_die: bool = False


TRIALS: Final = (
    Trial(place="unconfirmed", effects=(EffectClass.ONCE,)),
    Trial(place="marked", steps_die=True),
    Trial(place="marked"),
    Trial(place="answered", steps_die=True),
    Trial(place="answered"),
    *(Trial(place="unconfirmed", effects=(each,), steps_die=True) for each in EFFECTS),
    *(Trial(place="unconfirmed", effects=(each,)) for each in EFFECTS),
)
"""A mark is on its way to the replica; a replica has it and nothing is dialled; the call is done and its caller has not
heard.
"""


@dataclass
class Shop:
    """A tool of each effect class, and the link to it."""

    system: System
    store: WatchedStore
    tools: dict[EffectClass, ToolServer] = field(default_factory=dict)
    links: dict[EffectClass, Proxy] = field(default_factory=dict)

    async def submit(self, effect: EffectClass, number: int) -> JobId:
        called = {"name": f"{effect}__{effect}", "arguments": {"item": number}}
        turns = [{"text": "I look.", "calls": [called]}, {"text": "So it is."}]
        body = {
            "model": "seeded",
            "messages": [{"role": "user", "content": "How is it?"}],
            "seeded": {"turns": turns},
        }
        line = {"url": "/v1/chat/completions", "body": body}
        return await self.system.client.submit(line, f"{effect}-{number}")

    def sends(self, effect: EffectClass, job_id: JobId) -> int:
        """How often the tool was asked, always under the one key of the call."""
        asked = [key for key in self.tools[effect].sends if key.startswith(job_id)]
        key = idempotency_key(job_id, 1, 0, 0)
        assert set(asked) <= {key}
        return self.tools[effect].sends[key]

    async def settled(self, job_id: JobId) -> tuple[Job, ToolCall]:
        """The job once it has ended, or a person is asked about its call."""
        async with asyncio.timeout(120):
            while True:
                try:
                    async with failures_named():
                        job = await self.system.store.get(job_id)
                except StoreUnavailable:
                    job = None
                calls = [call for turn in job.turns for call in turn.calls] if job else []
                if (
                    job
                    and calls
                    and (job.state.is_terminal or calls[0].state is CallState.IN_DOUBT)
                ):
                    return job, calls[0]
                await asyncio.sleep(0.05)


@asynccontextmanager
async def shop(zygote: Zygote, folder: Path) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(watched_store(folder / "store", servers=2))
        known: dict[str, Any] = {}
        tools, links = {}, {}
        for effect in EFFECTS:
            tools[effect] = await stack.enter_async_context(tool_server())
            links[effect] = await stack.enter_async_context(Proxy(tools[effect].port).serving())
            known[effect] = {
                "kind": "function",
                "url": f"http://127.0.0.1:{links[effect].port}",
                "effect": effect,
                "approval": "never",
                "trusted": True,
                "max_attempts": 10,
                "parameters": {"type": "object"},
            }
        tuning = Tuning(
            steps=({"step": "list-tools", "settings": {"servers": list(known)}}, "tools"),
            tools=tuple(known.items()),
            store_url=store.url,
            lease_s=3.0,
            max_attempts=100,
            tokens_per_s=2000,
            puts_itself=True,
        )
        system = await stack.enter_async_context(running(zygote, folder, tuning))
        await system.redis.aclose()
        system.look_at(store.url)
        yield Shop(system, store, tools, links)


async def failed_over(shop: Shop, trial: Trial, number: int) -> dict[EffectClass, JobId]:
    """Bring a call of each class to its place, kill the primary, and go on behind the next one; the jobs."""
    store, system = shop.store, shop.system
    await store.in_step()
    old = await asyncio.to_thread(store.primary)
    holds: list[Hold] = []
    match trial.place:
        case "unconfirmed":
            holds = [old.proxy.hold(FENCE, Way.DOWN)]
        case "marked":
            holds = [shop.links[each].hold(b"POST ") for each in trial.effects]
        case "answered":
            holds = [shop.links[each].hold(b"HTTP/1.1 200", Way.DOWN) for each in trial.effects]
    jobs = {effect: await shop.submit(effect, number) for effect in trial.effects}
    async with asyncio.timeout(60):
        for hold in holds:
            await hold.reached.wait()
    await asyncio.to_thread(old.server.kill)
    if trial.steps_die:
        assert system.steps is not None
        await system.steps.kill()
    await store.moved(old)
    if trial.place != "answered":
        assert [shop.sends(effect, job_id) for effect, job_id in jobs.items()] == [0] * len(jobs)
    for hold in holds:
        if trial.steps_die or trial.place == "unconfirmed":
            hold.drop()
        else:
            hold.released.set()
    await asyncio.to_thread(old.server.start)
    if trial.steps_die:
        assert system.steps is not None
        system.steps.start()
        await system.steps.ready()
    return jobs


async def test_a_store_that_fails_over_between_mark_and_result_doubles_no_effect(
    zygote: Zygote, tmp_path: Path, note: Any
) -> None:
    asked = 0
    async with shop(zygote, tmp_path) as made:
        for number in range(FAILOVERS):
            trial = TRIALS[number % len(TRIALS)]
            jobs = await failed_over(made, trial, number)
            for effect, job_id in jobs.items():
                job, call = await made.settled(job_id)
                where = (trial, effect, call.state, sends := made.sends(effect, job_id))
                if effect is EffectClass.ONCE:
                    assert sends <= 1, where
                    assert call.state is CallState.IN_DOUBT or sends == 1, where
                    asked += call.state is CallState.IN_DOUBT
                else:
                    assert call.state is CallState.RETURNED, where
                    assert 1 <= sends <= 3, where
                if call.state is CallState.RETURNED:
                    assert job.state is JobState.COMPLETED, where
                    assert call.output == f'of {{"item":{number}}}', where
    note(f"{FAILOVERS} failovers, {asked} calls of `once` were put before a person")

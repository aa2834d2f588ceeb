"""Whatever has a part in a tool call is killed at every point of it. What an effect class promises holds: an effect of
a keyed tool exactly once, a call that may run once at most once, and no call lost.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import pytest

from eventing.cloudevent.tool_event import CALLED
from eventing.job.job import Job, JobId, JobState
from eventing.job.tools.call import CallState, ToolCall, idempotency_key
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote
from tests.faults.proxy import Hold, Proxy, Way
from tests.faults.test_kill import called
from tests.faults.tool_server import ToolServer, tool_server

pytestmark = pytest.mark.timeout(7200)
KILLS = int(os.environ.get("TORPOR_CALL_KILLS", "5"))
"""Of each effect class. In CI the classes share the points; `make test-calls` takes 200."""
TAKEN_S: Final = 60.0
Link = Literal["steps_redis", "predictor_redis", "api_redis", "steps_delivery", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where the bytes of a step are held, before they are sent on or right after it, and what dies then."""

    dies: Literal["steps", "predictor", "broker", "api", "tool"]
    link: Link
    needle: bytes
    way: Way = Way.UP
    is_forwarded: bool = False
    is_doubt: bool = False
    """The call is marked as sent, and no end of it is stored."""
    goes_on: bool = False
    """The bytes are those of others than what died."""


COMMIT, SEND, RETURN = (called(each) for each in ("commit_turn", "send_call", "return_call"))
CALLER: Final = (
    Point(dies="steps", link="steps_redis", needle=SEND),
    Point(dies="steps", link="steps_redis", needle=SEND, is_forwarded=True, is_doubt=True),
    Point(dies="steps", link="tool", needle=b"POST ", is_doubt=True),
    Point(dies="steps", link="tool", needle=b"POST ", is_forwarded=True, is_doubt=True),
    Point(dies="steps", link="tool", needle=b"HTTP/1.1 200", way=Way.DOWN, is_doubt=True),
    Point(dies="steps", link="steps_redis", needle=RETURN, is_doubt=True),
    Point(dies="steps", link="steps_redis", needle=RETURN, is_forwarded=True),
)
"""Points of the process that runs calls."""
OTHERS: Final = (
    Point(dies="predictor", link="predictor_redis", needle=called("finish")),
    Point(dies="predictor", link="predictor_redis", needle=called("finish"), is_forwarded=True),
    Point(dies="steps", link="steps_redis", needle=COMMIT),
    Point(dies="steps", link="steps_redis", needle=COMMIT, is_forwarded=True),
    Point(dies="broker", link="steps_delivery", needle=CALLED.encode()),
    Point(dies="broker", link="steps_delivery", needle=CALLED.encode(), is_forwarded=True),
    Point(dies="api", link="api_redis", needle=called("submit"), is_forwarded=True),
    Point(dies="api", link="tool", needle=b"POST ", goes_on=True),
    Point(dies="predictor", link="tool", needle=b"POST ", goes_on=True),
    Point(dies="tool", link="tool", needle=b"POST ", is_doubt=True),
    Point(dies="tool", link="tool", needle=b"POST ", is_forwarded=True, is_doubt=True),
    Point(dies="tool", link="tool", needle=b"HTTP/1.1 200", way=Way.DOWN, is_doubt=True),
)
"""Points of everything else; the connection of a tool that dies is reset."""
POINTS: Final = CALLER + OTHERS
EFFECTS: Final = ("once", "keyed", "read", "repeatable")


def line(number: int) -> dict[str, Any]:
    calls = [{"name": "shop__shop", "arguments": {"item": number}}]
    turns = [{"text": "I look.", "calls": calls}, {"text": "So it is."}]
    return {
        "url": "/v1/chat/completions",
        "body": {
            "model": "seeded",
            "messages": [{"role": "user", "content": "How is it?"}],
            "seed": number,
            "seeded": {"turns": turns},
        },
    }


@asynccontextmanager
async def shop(
    zygote: Zygote, folder: Path, effect: str
) -> AsyncIterator[tuple[System, ToolServer, Proxy]]:
    """A system whose model has one tool, and the link to that."""
    async with tool_server() as tool, Proxy(tool.port).serving() as link:
        known = {
            "kind": "function",
            "url": f"http://127.0.0.1:{link.port}",
            "effect": effect,
            "approval": "never",
            "trusted": True,
            "max_attempts": 10,
            "parameters": {"type": "object"},
        }
        tuning = Tuning(
            steps=({"step": "list-tools", "settings": {"servers": ["shop"]}}, "tools"),
            tools=(("shop", known),),
            lease_s=0.6,
            max_attempts=100,
            tokens_per_s=2000,
            puts_itself=True,
        )
        async with running(zygote, folder, tuning) as system:
            yield system, tool, link


async def settled(system: System, job_id: str) -> tuple[Job, ToolCall]:
    """The job once it has ended, or a person is asked about its call."""
    async with asyncio.timeout(120):
        while True:
            job = await system.store.get(JobId(job_id))
            assert job is not None
            calls = [call for turn in job.turns for call in turn.calls]
            if calls and (job.state.is_terminal or calls[0].state is CallState.IN_DOUBT):
                return job, calls[0]
            assert not job.state.is_terminal, job.error
            await asyncio.sleep(0.02)


async def strike(system: System, link: Proxy, point: Point, hold: Hold) -> None:
    """Kill what dies at the point, once that is reached, and start it again."""
    try:
        await asyncio.wait_for(hold.reached.wait(), TAKEN_S)
    except TimeoutError:
        pytest.fail(f"{point} was never reached")
    if point.dies == "tool":
        link.cut()
        hold.drop()
        return
    program = getattr(system, point.dies)
    await program.kill()
    if point.goes_on:
        hold.released.set()
    else:
        hold.drop()
    program.start()
    await program.ready()


async def decide(system: System, job_id: str, call: ToolCall, decision: str) -> None:
    url = f"{system.client.bases[0]}/v1/jobs/{job_id}/approvals/{call.approval_id}"
    async with (
        aiohttp.ClientSession() as http,
        http.post(url, json={"decision": decision}) as answer,
    ):
        assert answer.status == 200, await answer.text()


async def ended(system: System, job_id: str) -> tuple[Job, ToolCall]:
    """The job once it has ended, whatever it was asked."""
    await system.ended([job_id], within_s=60)
    job = await system.store.get(JobId(job_id))
    assert job is not None
    return job, job.turns[0].calls[0]


@pytest.mark.parametrize("effect", EFFECTS)
async def test_everything_dies_at_every_point_of_a_call(
    zygote: Zygote, tmp_path: Path, effect: str, note: Any
) -> None:
    sums: Counter[str] = Counter()
    first = 5 * EFFECTS.index(effect)
    async with shop(zygote, tmp_path, effect) as (system, tool, link):
        warm = await system.client.submit(line(0), "warm")
        await settled(system, warm)
        for trial in range(1, KILLS + 1):
            point = POINTS[(first + trial - 1) % len(POINTS)]
            at = link if point.link == "tool" else getattr(system, point.link)
            hold = at.hold(point.needle, point.way, is_forwarded=point.is_forwarded)
            submit = asyncio.ensure_future(system.client.submit(line(trial), f"k{trial}"))
            await strike(system, link, point, hold)
            job_id = await submit
            job, call = await settled(system, job_id)
            key = idempotency_key(job_id, 1, 0, 0)
            where = (effect, point, call.state, tool.sends[key])
            is_asked = call.state is CallState.IN_DOUBT
            assert is_asked is (effect == "once" and point.is_doubt), where
            if is_asked:
                assert tool.sends[key] <= 1, where
                again = trial % 2 == 0
                before = tool.sends[key]
                await decide(system, job_id, call, "run_again" if again else "give_up")
                job, call = await ended(system, job_id)
                assert tool.sends[key] == before + again, where
                assert again or (call.state, "may have happened" in call.output) == (
                    "unknown",
                    True,
                )
            if call.state is not CallState.UNKNOWN:
                assert call.output == f'of {{"item":{trial}}}', where
                assert call.state is CallState.RETURNED, where
                most = 2 if point.is_doubt and (is_asked or effect != "once") else 1
                assert 1 <= tool.sends[key] <= most, where
            assert job.state is JobState.COMPLETED, where
            sums += Counter(
                kills=1, sends=tool.sends[key], effects=tool.sends[key] > 0, asked=is_asked
            )
        keys = {key for key in tool.sends if ":1.0:0" not in key}
        assert keys == set()
    note(f"{effect}: {dict(sums)}")

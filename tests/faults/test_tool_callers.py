"""The process that runs tool calls is killed at every point of a call. What an effect class promises holds: an effect
of a keyed tool exactly once, a call that may run once at most once, and no call lost.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eventing.job.job import Job, JobId, JobState
from eventing.job.tools.call import CallState, ToolCall, idempotency_key
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote
from tests.faults.proxy import Proxy, Way
from tests.faults.test_kill import called, kill_at
from tests.faults.tool_server import ToolServer, tool_server

pytestmark = pytest.mark.timeout(3600)
KILLS = int(os.environ.get("TORPOR_CALL_KILLS", "7"))
"""Of each effect class: each point once in CI; `make test-calls` takes 200."""
BETWEEN = range(1, 6)
"""The points between the mark of a call and its result, where it is in doubt."""


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


@pytest.mark.parametrize("effect", ["keyed", "read", "once"])
async def test_the_caller_dies_at_every_point_of_a_call(
    zygote: Zygote, tmp_path: Path, effect: str
) -> None:
    async with shop(zygote, tmp_path, effect) as (system, tool, link):
        steps, store = system.steps, system.steps_redis
        assert steps is not None
        warm = await system.client.submit(line(0), "warm")
        await settled(system, warm)
        points: list[tuple[Proxy, bytes, Way, bool]] = [
            (store, called("send_call"), Way.UP, False),
            (store, called("send_call"), Way.UP, True),
            (link, b"POST ", Way.UP, False),
            (link, b"POST ", Way.UP, True),
            (link, b"HTTP/1.1 200", Way.DOWN, False),
            (store, called("return_call"), Way.UP, False),
            (store, called("return_call"), Way.UP, True),
        ]
        for trial in range(1, KILLS + 1):
            place = (trial - 1) % len(points)
            at, needle, way, is_forwarded = points[place]
            hold = at.hold(needle, way, is_forwarded=is_forwarded)
            job_id = await system.client.submit(line(trial), f"k{trial}")
            assert await kill_at(hold, steps), f"point {place} was never reached"
            steps.start()
            await steps.ready()
            job, call = await settled(system, job_id)
            sends = tool.sends[idempotency_key(job_id, 1, 0, 0)]
            where = (effect, place, call.state, sends)
            if effect == "once":
                assert sends <= 1, where
                is_doubt = call.state is CallState.IN_DOUBT
                assert is_doubt is (place in BETWEEN), where
                assert is_doubt or sends == 1, where
            else:
                assert (job.state, call.state) == (JobState.COMPLETED, CallState.RETURNED), where
                assert 1 <= sends <= 2, where
                assert call.output == f'of {{"item":{trial}}}', where
        others = {key for key in tool.sends if ":1.0:0" not in key}
        assert others == set()

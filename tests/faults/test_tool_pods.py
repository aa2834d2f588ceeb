"""A tool that runs for long, with a caller and a pump beside it, as in its pod: real processes, real store. Calls wait
in the tool's own queue while nothing listens; a pod that is killed costs a send under the same key and no second
effect; one that is told to end lets its calls end first.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import pytest

from eventing.broker.queue.view import QueueView
from eventing.job.job import JobId, JobState
from eventing.job.tools.call import CallState, idempotency_key
from eventing.redis import keys
from tests.faults import programs
from tests.faults.processes import System, running
from tests.faults.programs import Program, Tuning, Zygote
from tests.faults.test_tool_callers import line, settled
from tests.faults.tool_server import ToolServer, tool_server
from tests.redis_server import free_port

pytestmark = pytest.mark.timeout(900)
QUEUE: Final = "tool-shop"
LEASE_S: Final = 0.6


@dataclass(eq=False)
class Pod:
    """The processes beside one tool."""

    system: System
    caller: Program
    pump: Program

    async def begin(self) -> None:
        """Start both; the caller is ready once the tool listens."""
        for program in (self.caller, self.pump):
            program.start()
        await self.pump.ready()

    async def die(self, *programs: Program) -> None:
        """SIGKILL for all at once. The claims of its pump are those of one that was silent for long."""
        killed = programs or (self.caller, self.pump)
        for program in killed:
            program.signal(signal.SIGKILL)
        await asyncio.gather(*(program.gone() for program in killed))
        redis, stream = self.system.redis, keys.queue(QUEUE, "tickets")
        for entry in await redis.xpending_range(stream, keys.GROUP, "-", "+", 100):
            await redis.xclaim(
                stream, keys.GROUP, entry["consumer"], 0, [entry["message_id"]], idle=60_000
            )


class World:
    """A system with one tool, `shop`, whose pods the test starts and ends."""

    def __init__(self, system: System, tool_port: int, caller_port: int) -> None:
        self.system = system
        self.tool_port = tool_port
        self._caller_port = caller_port
        self._made: list[Program] = []

    def pod(self, name: str, grace_s: float = 60.0) -> Pod:
        system, tuning = self.system, self.system.tuning
        redis_port = system.server.port
        made = programs.new_steps(
            system.zygote, system.folder, tuning, redis_port, f"caller-{name}"
        )
        made.env |= {
            "TORPOR_TOOL_SERVER": "shop",
            "TORPOR_STEPS_PORT": str(self._caller_port),
            "TORPOR_DRAIN_GRACE_S": str(grace_s),
        }
        made.health = f"http://127.0.0.1:{self._caller_port}/readyz"
        pump = programs.new_pump(
            system.zygote, system.folder, tuning, redis_port, QUEUE, f"pump-{name}"
        )
        self._made += [made, pump]
        return Pod(system, made, pump)

    async def waiting(self) -> tuple[int, int]:
        """What KEDA reads: entries that wait, and those under way."""
        depth = await QueueView(self.system.redis).depth(QUEUE)
        return depth.total_waiting, depth.pending

    async def call(self, job_id: str) -> dict[str, Any]:
        raw = await self.system.redis.hget(keys.job(JobId(job_id)), "call:1.0")
        return orjson.loads(raw) if raw else {}

    def close(self) -> None:
        for program in self._made:
            program.signal(signal.SIGKILL)


@asynccontextmanager
async def world(zygote: Zygote, folder: Path, effect: str = "keyed") -> AsyncIterator[World]:
    tool_port, caller_port = free_port(), free_port()
    known = {
        "kind": "function",
        "url": f"http://127.0.0.1:{tool_port}/",
        "effect": effect,
        "approval": "never",
        "trusted": True,
        "timeout_ms": 600_000,
        "parameters": {"type": "object"},
    }
    tuning = Tuning(
        steps=({"step": "list-tools", "settings": {"servers": ["shop"]}}, "tools"),
        tools=(("shop", known),),
        beside=(("shop", caller_port),),
        lease_s=LEASE_S,
        max_attempts=100,
        tokens_per_s=2000,
        delivery_timeout="PT600S",
        puts_itself=True,
    )
    async with running(zygote, folder, tuning) as system:
        made = World(system, tool_port, caller_port)
        try:
            yield made
        finally:
            made.close()


async def until(what: Any) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(120):
        while not await what():
            await asyncio.sleep(0.02)


def sends(tool: ToolServer, job_id: str) -> int:
    return tool.sends[idempotency_key(job_id, 1, 0, 0)]


async def test_a_call_waits_for_its_tool_outlives_its_lease_and_is_made_again_after_a_kill(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with world(zygote, tmp_path) as here:
        job_id = await here.system.client.submit(line(1), "k1")

        async def queued() -> bool:
            return await here.waiting() == (1, 0)

        await until(queued)
        first = here.pod("first")
        await first.begin()

        async def refused_twice() -> bool:
            """The pump has asked the caller, and asks it again: nothing listens yet."""
            log = first.pump.log.read_text()
            return "subscriber is not ready" in log and await _status(first.caller.health) == 503

        await until(refused_twice)
        assert await here.waiting() == (1, 0)

        async with tool_server(here.tool_port) as tool:
            tool.gate = asyncio.Event()
            leases: set[int] = set()

            async def renewed() -> bool:
                leases.add((await here.call(job_id)).get("lease_until_ms", 0))
                return len(leases - {0}) > 4  # each a third of a lease later

            await until(renewed)
            assert (sends(tool, job_id), await here.waiting()) == (1, (0, 1))

            await first.die(first.pump)
            first.pump.start()

            async def delivered_again() -> bool:
                """The caller has said that it runs the call."""
                return (await QueueView(here.system.redis).depth(QUEUE)).retrying == 1

            await until(delivered_again)
            assert (sends(tool, job_id), await here.waiting()) == (1, (0, 1))

            await first.die()
            assert await here.waiting() == (0, 1)  # it still counts: KEDA keeps a pod for it
            second = here.pod("second")
            await second.begin()

            async def sent_again() -> bool:
                return sends(tool, job_id) == 2

            await until(sent_again)
            tool.gate.set()
            job, call = await settled(here.system, job_id)
            assert (job.state, call.state) == (JobState.COMPLETED, CallState.RETURNED)
            assert call.output == 'of {"item":1}'
            assert set(tool.sends) == {idempotency_key(job_id, 1, 0, 0)}


async def _status(url: str) -> int:
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status
    except aiohttp.ClientError:
        return 0


async def test_a_pod_that_is_told_to_end_ends_its_calls_and_claims_no_more(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with world(zygote, tmp_path) as here, tool_server(here.tool_port) as tool:
        tool.gate = asyncio.Event()
        pod = here.pod("ending")
        await pod.begin()
        job_id = await here.system.client.submit(line(1), "k1")

        async def began() -> bool:
            return sends(tool, job_id) == 1

        await until(began)
        drained = asyncio.ensure_future(_status(pod.caller.health.replace("readyz", "drained")))
        for program in (pod.caller, pod.pump):
            program.signal(signal.SIGTERM)

        async def closed() -> bool:
            return await _status(pod.caller.health) == 503

        await until(closed)
        later = await here.system.client.submit(line(2), "k2")

        async def both() -> bool:
            return await here.waiting() == (1, 1)

        await until(both)
        assert not drained.done()  # the tool's container is kept until this is answered
        tool.gate.set()
        job, call = await settled(here.system, job_id)
        assert (job.state, call.output) == (JobState.COMPLETED, 'of {"item":1}')
        assert await drained == 200
        await asyncio.gather(pod.caller.gone(), pod.pump.gone())
        assert (sends(tool, job_id), sends(tool, later)) == (1, 0)
        assert await here.waiting() == (1, 0)

        await here.pod("next").begin()
        assert (await settled(here.system, later))[0].state is JobState.COMPLETED
        assert tool.sends.total() == 2


async def test_a_call_that_may_happen_once_and_outlives_the_grace_is_in_doubt(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with world(zygote, tmp_path, "once") as here, tool_server(here.tool_port) as tool:
        tool.gate = asyncio.Event()
        pod = here.pod("ending", grace_s=0.1)
        await pod.begin()
        job_id = await here.system.client.submit(line(1), "k1")

        async def began() -> bool:
            return sends(tool, job_id) == 1

        await until(began)
        for program in (pod.caller, pod.pump):
            program.signal(signal.SIGTERM)
        job, call = await settled(here.system, job_id)

        assert (job.state, call.state) == (JobState.IN_PROGRESS, CallState.IN_DOUBT)
        assert sends(tool, job_id) == 1
        await asyncio.gather(pod.caller.gone(), pod.pump.gone())
        tool.gate.set()

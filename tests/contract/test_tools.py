"""Turns and tool calls of a job in the store: what commits, sends, returns and decides, and what a late or a double
write changes.
"""

import orjson
import pytest
from redis.asyncio import Redis

from eventing.job.job import JobState
from eventing.job.plan import StepStatus
from eventing.job.step import StepEnd, Verdict
from eventing.job.store import AcquireStatus
from eventing.job.tools.call import ToolPhase
from eventing.job.tools.store import ReturnStatus, SendStatus
from tests.contract.rig import job_id
from tests.contract.tool_rig import (
    MODEL_QUEUE,
    ToolRig,
    answer,
    call,
    key,
    usage,
)


@pytest.fixture
def rig(redis: Redis) -> ToolRig:
    return ToolRig(redis)


class TestTurn:
    async def test_a_committed_turn_has_its_calls_in_a_queue_and_no_lease(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call(0), call(1))

        job = await rig.job()
        assert (job.state, job.step, job.lease_until_ms) == (JobState.IN_PROGRESS, "tools", 0)
        assert (job.candidate, job.tool_phase) == (None, ToolPhase.TOOL)
        assert [each.outcome for each in job.history] == ["turn"]
        (turn,) = job.turns
        assert (turn.number, turn.begin, turn.end, turn.usage) == (1, 0, 2, usage())
        assert turn.calls[0].arguments == call().arguments
        assert await rig.queued() == [key(0), key(1)]
        (entry,) = await rig.entries("turn")
        assert (entry["turn"], entry["index"]) == ("1", "2")
        shown = orjson.loads(entry["calls"])
        assert [(each["place"], each["state"]) for each in shown] == [
            (0, "pending"),
            (1, "pending"),
        ]

    async def test_the_last_result_queues_the_next_turn_and_the_job_ends_with_the_sum(
        self, rig: ToolRig
    ) -> None:
        await rig.turn(call(0), call(1))
        first, second = await rig.send(0), await rig.send(1)
        assert (first.status, second.status) == (SendStatus.SENT, SendStatus.SENT)

        assert await rig.give(first, 0) is ReturnStatus.OK
        assert await rig.queued(MODEL_QUEUE) == []
        assert await rig.give(second, 1) is ReturnStatus.NEXT

        job = await rig.job()
        assert (job.state, job.step, job.turn_begin, job.tool_phase) == ("queued", "", 2, None)
        assert await rig.queued(MODEL_QUEUE) == ["1"]
        assert [m["role"] for m in job.to_run.body["messages"]] == [
            *("user", "assistant", "tool", "tool")
        ]
        taken = await rig.tools.acquire(job_id(), "worker-2", can_resume=False)
        assert (taken.status, taken.token_count, taken.void_count) == (AcquireStatus.ACQUIRED, 2, 0)
        await rig.tools.finish(taken.lease, answer("done", usage(20, 6), 3, begin=2))
        run = await rig.run()
        end = StepEnd(status=StepStatus.COMPLETED, verdict=Verdict.ACCEPT)
        await rig.tools.advance(run, end)
        job = await rig.job()
        assert (job.state, job.gpu_ms, job.token_count) == (JobState.COMPLETED, 14, 5)
        assert job.usage is not None
        assert (job.usage["prompt_tokens"], job.usage["completion_tokens"]) == (30, 10)
        assert job.usage["total_tokens"] == 40
        assert job.usage["prompt_tokens_details"] == {"cached_tokens": 6}
        assert job.usage["completion_tokens_details"] == {"reasoning_tokens": 4}
        assert [each.outcome for each in job.history] == ["turn", "completed"]

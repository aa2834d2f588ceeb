"""A job whose tools run is expected back at its replica for a while, and scalers keep that replica."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from eventing.broker.queue.view import QueueView
from eventing.job.tools.call import CallState
from eventing.job.tools.store import ReturnStatus
from eventing.redis import keys
from knative.autoscaling.kpa.annotations import read_knative
from knative.autoscaling.kpa.autoscaler_config import read_autoscaler_config
from tests.contract.rig import job_id
from tests.contract.tool_rig import ToolRig, call
from tests.time_limits import HANG_S
from torpor.local import manifest
from torpor.local.predictors.autoscaler import KpaLoop, PolicyClock
from torpor.local.settings import StackSettings

QUEUE = "requests-m"
EXPECTED = keys.queue(QUEUE, "expected")
MINUTE_MS = 60_000


@pytest.fixture
def rig(redis: Redis) -> ToolRig:
    return ToolRig(redis)


async def left_ms(rig: ToolRig) -> int:
    """How long the job is expected back; 0 for not."""
    score = await rig.redis.zscore(EXPECTED, f"worker-1 {job_id()}")
    return max(0, int(score - await rig.now_ms())) if score else 0


async def took(rig: ToolRig, tool: str, *milliseconds: int) -> None:
    """Calls of the tool have taken so long."""
    times = f"[{','.join(map(str, milliseconds))}]"
    await rig.redis.hset("torpor:tools:times", f"wiki {tool}", times)


async def test_a_turn_whose_calls_run_is_expected_back_until_its_next_one(rig: ToolRig) -> None:
    view = QueueView(rig.redis)
    await rig.turn(call(0), read_again_ms=MINUTE_MS)
    while_running = await view.expected(QUEUE)

    assert while_running == {"worker-1"}
    assert await rig.give(await rig.send()) is ReturnStatus.NEXT
    assert await left_ms(rig) <= 1000  # until its event is delivered


async def test_a_tool_that_was_measured_is_waited_for_twice_its_median(rig: ToolRig) -> None:
    await took(rig, "find", 9000, 500, 400, 100, 600)
    await rig.turn(call(0), read_again_ms=MINUTE_MS)

    assert 0 < await left_ms(rig) <= 1000


async def test_the_slowest_tool_of_a_turn_counts_and_an_unknown_one_as_much_as_may_be(
    rig: ToolRig,
) -> None:
    await took(rig, "find", 100)
    await rig.turn(call(0), call(1, tool="report"), read_again_ms=20_000)

    assert 15_000 < await left_ms(rig) <= 20_000


async def test_no_tool_is_waited_for_longer_than_reading_again_takes(rig: ToolRig) -> None:
    await took(rig, "find", 600_000)
    await rig.turn(call(0), read_again_ms=20_000)

    assert 15_000 < await left_ms(rig) <= 20_000


async def test_a_call_that_returned_is_measured_and_the_newest_are_kept(rig: ToolRig) -> None:
    await took(rig, "find", *range(1000, 1015))
    await rig.turn(call(0))
    sent = await rig.send()
    await rig.pass_time(5000)
    await rig.give(sent)

    raw = await rig.redis.hget("torpor:tools:times", "wiki find")
    newest, *others = [int(each) for each in raw.decode().strip("[]").split(",")]
    assert 5000 <= newest < 60_000
    assert others == list(range(1000, 1014))


async def test_times_of_servers_that_a_request_names_are_not_kept(rig: ToolRig) -> None:
    await rig.turn(call(0, by_url=1), read_again_ms=20_000)
    await rig.give(await rig.send())

    assert not await rig.redis.exists("torpor:tools:times")


async def test_a_person_is_not_waited_for(rig: ToolRig) -> None:
    waits = call(1, CallState.AWAITING_APPROVAL)
    await rig.turn(call(0), waits, read_again_ms=MINUTE_MS)
    beside_a_call = await left_ms(rig)
    await rig.give(await rig.send())
    alone = await left_ms(rig)
    await rig.decide(CallState.PENDING, place=1)

    assert (beside_a_call > 0, alone) == (True, 0)
    assert 0 < await left_ms(rig) <= beside_a_call  # no longer than at first


async def test_a_job_that_ends_is_not_expected_any_more(rig: ToolRig) -> None:
    await rig.turn(call(0), read_again_ms=MINUTE_MS)
    await rig.tools.cancel(job_id())

    assert not await rig.redis.exists(EXPECTED)


async def test_without_times_of_the_predictor_nothing_is_expected(rig: ToolRig) -> None:
    await rig.turn(call(0))

    assert not await rig.redis.exists(EXPECTED)


class OneReplica:
    """A scale with one replica, ready while it is wanted."""

    def __init__(self) -> None:
        self.alive = 1
        self.asked = 0  #: how often the policy would have let it go

    @property
    def ready(self) -> int:
        return self.alive

    def scale_to(self, wanted: int) -> None:
        self.alive = min(self.alive, wanted)


@asynccontextmanager
async def scaled(view: QueueView) -> AsyncIterator[OneReplica]:
    """Knative's autoscaler a hundred times as fast, beside the store's queue, without a request."""
    stack = StackSettings(window=6, grace=6)
    config = read_autoscaler_config(manifest.config_autoscaler(stack))
    scaling = read_knative(manifest.service(stack, "m"), config)
    scale = OneReplica()

    async def held() -> int:
        scale.asked += 1
        return len(await view.expected(QUEUE))

    loop = KpaLoop(
        scaling.spec,
        scaling.policy,
        scale=scale,
        concurrency=lambda: 0,
        clock=PolicyClock(100.0),
        held=held,
    )
    task = asyncio.create_task(loop.run())
    try:
        yield scale
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_the_last_replica_stays_while_it_is_held_and_goes_after_it(rig: ToolRig) -> None:
    await rig.turn(call(0), read_again_ms=MINUTE_MS)
    view = QueueView(rig.redis)
    async with scaled(view) as scale:
        async with asyncio.timeout(HANG_S):
            while scale.asked < 3:
                await asyncio.sleep(0.01)
            assert scale.alive == 1
            await rig.redis.zadd(EXPECTED, {f"worker-1 {job_id()}": await rig.now_ms() + 1})
            while scale.alive:
                await asyncio.sleep(0.01)

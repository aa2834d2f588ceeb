"""The loop around the policies, with a recording scale."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from knative.autoscaling.kpa.annotations import read_knative
from knative.autoscaling.kpa.autoscaler_config import read_autoscaler_config
from tests.time_limits import HANG_S
from torpor.local import manifest
from torpor.local.predictors.autoscaler import KpaLoop, PolicyClock
from torpor.local.settings import StackSettings

FAST = 100.0


class RememberedScale:
    """Replicas that are ready the moment they are asked for."""

    def __init__(self) -> None:
        self.alive = 0
        self.history: list[int] = []

    @property
    def ready(self) -> int:
        return self.alive

    def scale_to(self, wanted: int) -> None:
        if not self.history or self.history[-1] != wanted:
            self.history.append(wanted)
        self.alive = wanted


class Load:
    """Concurrency that the test sets."""

    def __init__(self) -> None:
        self.now = 0


@asynccontextmanager
async def running(scale: RememberedScale, load: Load, **settings: int) -> AsyncIterator[KpaLoop]:
    stack = StackSettings(max_replicas=3, container_concurrency=2, **settings)  # type: ignore[arg-type]
    config = read_autoscaler_config(manifest.config_autoscaler(stack))
    scaling = read_knative(manifest.service(stack, "m"), config)
    loop = KpaLoop(
        scaling.spec,
        scaling.policy,
        scale=scale,
        concurrency=lambda: load.now,
        clock=PolicyClock(FAST),
    )
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        task.cancel()


async def until(condition: object, timeout_s: float = HANG_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_with_nothing_to_do_nothing_is_started() -> None:
    scale = RememberedScale()

    async with running(scale, Load()):
        await asyncio.sleep(0.3)

    assert scale.history == [0]


async def test_a_waiting_request_wakes_a_replica_within_50_ms() -> None:
    scale, load = RememberedScale(), Load()
    async with running(scale, load) as loop:
        await until(lambda: scale.history)
        began = asyncio.get_running_loop().time()

        load.now = 1
        loop.poke()
        await until(lambda: scale.alive == 1)

        assert asyncio.get_running_loop().time() - began < 0.05


async def test_more_work_than_the_replicas_can_take_is_never_more_than_the_maximum() -> None:
    scale, load = RememberedScale(), Load()
    async with running(scale, load) as loop:
        load.now = 50
        loop.poke()

        await until(lambda: scale.alive == 3)
        await asyncio.sleep(0.2)

    assert max(scale.history) == 3


async def test_after_window_and_grace_without_work_the_last_replica_goes() -> None:
    scale, load = RememberedScale(), Load()
    async with running(scale, load, window=6, grace=6) as loop:
        load.now = 1
        loop.poke()
        await until(lambda: scale.alive == 1)

        load.now = 0
        await until(lambda: scale.alive == 0)

    assert scale.history[-1] == 0

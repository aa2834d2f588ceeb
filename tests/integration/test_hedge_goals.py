"""What second calls beside late ones promise, over an hour of simulated time: how late the latest answers are, and how
many calls more that takes. The budget and what is late are decided by the real scripts.
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from eventing.redis.connection import connect
from predictor.engine.upstream.call import CUT_AS_LATE
from predictor.engine.upstream.provider import CallResult, Report, Reservation, SharedProvider
from tests.integration.simulated_clock import SimulatedClock, simulated_scripts

__all__ = ["simulated_scripts"]
pytestmark = [pytest.mark.timeout(90), pytest.mark.usefixtures("simulated_scripts")]
CALLS, WARM_UP = 2000, 300
STALL_S = 120.0


@dataclass
class Calls:
    """First tokens of calls to one provider that is hedged with another."""

    first: SharedProvider
    second: SharedProvider
    clock: SimulatedClock
    draw: random.Random = field(default_factory=lambda: random.Random(18))
    waits_s: list[float] = field(default_factory=list)
    more: int = 0

    async def one(self, first_s: float, second_s: float) -> None:
        """A call whose first token comes after `first_s`, and at the other provider after `second_s`; each call by
        itself, half a second after the one before.
        """
        began_s = self.clock.now_s
        right = await self.first.reserve(10, 10, "")
        if not isinstance(right, Reservation):  # the breaker is open: the job waits
            await self.clock.set(began_s + 1.0)
            return
        wait_s = first_s
        if 0 < right.late_after_s < first_s:
            await self.clock.set(began_s + right.late_after_s)
            other = await self._hedge()
            if other is not None:
                wait_s = min(first_s, right.late_after_s + second_s)
                is_won = wait_s < first_s
                report = Report(result=CallResult.OK if is_won else CallResult.CUT)
                await self.second.settle(other, report)
        await self.clock.set(began_s + wait_s)
        if wait_s < first_s:
            late_s = CUT_AS_LATE * right.late_after_s
            report = Report(result=CallResult.CUT, first_token_s=max(wait_s, late_s))
        elif first_s < STALL_S:
            report = Report(result=CallResult.OK, first_token_s=first_s)
        else:
            report = Report(result=CallResult.FAILED)
        await self.first.settle(right, report)
        self.waits_s.append(wait_s)
        await self.clock.set(began_s + wait_s + 0.5)

    async def _hedge(self) -> Reservation | None:
        if not await self.first.take_hedge():
            return None
        right = await self.second.reserve(10, 10, "")
        if not isinstance(right, Reservation):
            return None
        self.more += 1
        return right


@pytest.fixture
async def providers(redis: Redis, redis_url: str) -> AsyncIterator[Calls]:
    async with AsyncExitStack() as exits:
        client = connect(redis_url, timeout_s=5, max_connections=2)
        exits.push_async_callback(client.aclose)
        clock = SimulatedClock(redis)
        await clock.set(0)
        first, second = (SharedProvider(client, url=url, model="m") for url in ("a", "b"))
        yield Calls(first, second, clock)


def usual(draw: random.Random) -> float:
    return draw.uniform(1.6, 2.4)


def a_twentieth_late(draw: random.Random) -> list[float]:
    """Times to a first token: of each hundred five take 20 s."""
    times: list[float] = []
    while len(times) < CALLS:
        hundred = [20.0] * 5 + [usual(draw) for _ in range(95)]
        draw.shuffle(hundred)
        times += hundred
    return times


def all_usual(draw: random.Random) -> list[float]:
    return [usual(draw) for _ in range(CALLS)]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "second", [all_usual, a_twentieth_late], ids=["well", "with stragglers too"]
)
async def test_of_a_twentieth_of_stragglers_few_are_waited_for_and_few_calls_are_sent_twice(
    providers: Calls, second: Callable[[random.Random], list[float]], seed: int
) -> None:
    """Without second calls the latest hundredth takes 20 s."""
    draw = random.Random(seed)
    for first_s, second_s in zip(a_twentieth_late(draw), second(draw), strict=True):
        await providers.one(first_s, second_s)

    assert percentile(providers.waits_s[WARM_UP:], 0.99) <= 5.5
    assert providers.more <= 0.06 * CALLS


async def test_where_everything_stalls_few_calls_are_sent_twice(providers: Calls) -> None:
    """What was saved for second calls is spent, and nothing is added to it."""
    for _ in range(2 * WARM_UP):
        await providers.one(usual(providers.draw), usual(providers.draw))
    before = providers.more
    stalled = 400
    for _ in range(stalled):
        await providers.one(STALL_S, STALL_S)

    assert providers.more - before <= 0.05 * stalled

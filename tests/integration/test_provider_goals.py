"""What a provider's breaker, limits and hedges promise, over minutes of simulated time and eight workers.

Each benefit stands beside its harm. The scripts and the store are real; time, the provider and the order of events are
simulated, so that every run is the same.
"""

import heapq
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count, pairwise
from statistics import median

import pytest
from redis.asyncio import Redis

from eventing.redis.connection import connect
from predictor.engine.upstream import provider
from predictor.engine.upstream.provider import (
    CallResult,
    Denied,
    Report,
    Reservation,
    SharedProvider,
)
from predictor.engine.upstream.rate_headers import RateLimits
from tests.integration.limited_provider import LimitedProvider
from tests.integration.simulated_clock import SimulatedClock, simulated_scripts

__all__ = ["simulated_scripts"]
pytestmark = [pytest.mark.timeout(90), pytest.mark.usefixtures("simulated_scripts")]
WORKERS = 8


@dataclass
class Fleet:
    """Eight workers that share a provider, in simulated time. Events are in one order: by time, then as they came."""

    workers: list[SharedProvider]
    clock: SimulatedClock
    draw: random.Random = field(default_factory=lambda: random.Random(18))
    _events: list[tuple[float, int, object]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    def worker(self) -> SharedProvider:
        return self.draw.choice(self.workers)

    def at(self, when_s: float, event: object) -> None:
        heapq.heappush(self._events, (when_s, next(self._numbers), event))

    async def next(self) -> object | None:
        """The next event, at its time; None after the last."""
        if not self._events:
            return None
        when_s, _, event = heapq.heappop(self._events)
        await self.clock.set(when_s)
        return event


@pytest.fixture
async def fleet(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Fleet]:
    monkeypatch.setattr(
        provider.random, "uniform", random.Random(7).uniform
    )  # the breaker's jitter
    async with AsyncExitStack() as exits:
        workers = []
        for _ in range(WORKERS):
            client = connect(redis_url, timeout_s=5, max_connections=2)
            exits.push_async_callback(client.aclose)
            workers.append(SharedProvider(client, url="u", model="m"))
        clock = SimulatedClock(redis)
        await clock.set(0)
        yield Fleet(workers, clock)


@dataclass
class Seen:
    """What a run of calls at a provider came to."""

    failed: int = 0
    changes_s: list[float] = field(default_factory=list)  #: between closed and open
    most_probes: int = 0
    answers_s: list[float] = field(default_factory=list)  #: when a call succeeded
    failures_s: list[float] = field(default_factory=list)


async def calls(
    fleet: Fleet, chance_of: Callable[[float], float], *, until_s: float, a_second: float = 5.0
) -> Seen:
    """Calls in a steady stream, each of 0.2 to 1 s; `chance_of(now_s)` is the chance that one fails."""
    seen, probes, was_closed = Seen(), 0, True
    fleet.at(fleet.clock.now_s, "ask")
    while (event := await fleet.next()) is not None:
        now_s = fleet.clock.now_s
        if event == "ask":
            if now_s < until_s:
                fleet.at(now_s + 1 / a_second, "ask")
            answer = await fleet.worker().reserve(10, 10, "")
            if isinstance(answer, Reservation):
                probes += answer.is_probe
                seen.most_probes = max(seen.most_probes, probes)
                fleet.at(now_s + fleet.draw.uniform(0.2, 1.0), answer)
            is_open = isinstance(answer, Denied) and answer.is_open
            is_closed = isinstance(answer, Reservation) and not answer.is_probe
            if (is_open and was_closed) or (is_closed and not was_closed):
                seen.changes_s.append(now_s)
                was_closed = is_closed
            continue
        assert isinstance(event, Reservation)
        is_failed = fleet.draw.random() < chance_of(now_s)
        (seen.failures_s if is_failed else seen.answers_s).append(now_s)
        probes -= event.is_probe
        result = CallResult.FAILED if is_failed else CallResult.OK
        await fleet.worker().settle(event, Report(result=result))
    return seen


@pytest.mark.parametrize("a_second", [1.0, 10.0])
async def test_a_provider_that_dies_is_sent_ten_calls_more_and_those_on_their_way(
    fleet: Fleet, a_second: float
) -> None:
    """It answered well for minutes before; and it is used again at most 65 s after it came back."""
    dead_s, back_s = 80.0, 170.0

    def chance(now_s: float) -> float:
        return 1.0 if dead_s <= now_s < back_s else 0.0

    seen = await calls(fleet, chance, until_s=260.0, a_second=a_second)

    opened_s = next(at for at in seen.changes_s if at > dead_s)
    tenth_s = seen.failures_s[9]
    probes = [at for at in seen.failures_s if at > opened_s + 1.0]
    recovered_s = min(at for at in seen.answers_s if at > back_s)
    assert opened_s <= tenth_s + 1 / a_second  # the first that is asked for after the tenth failed
    assert len(probes) <= 3
    assert recovered_s - back_s <= 65 + 1 / a_second + 1.0  # the call's own time
    assert len(seen.changes_s) == 2


@pytest.mark.parametrize("chance", [0.45, 0.5, 0.55])
@pytest.mark.parametrize("a_second", [1.0, 5.0])
async def test_at_about_half_of_errors_it_changes_at_most_once_a_minute_and_probes_one_at_a_time(
    fleet: Fleet, chance: float, a_second: float
) -> None:
    seen = await calls(fleet, lambda _: chance, until_s=600.0, a_second=a_second)

    gaps = [later - sooner for sooner, later in pairwise(seen.changes_s)]
    assert all(gap >= 60 for gap in gaps), gaps
    assert seen.most_probes <= 1


async def test_a_token_limit_that_halves_and_doubles_is_used_and_hardly_ever_refused(
    fleet: Fleet,
) -> None:
    """Ten minutes of a backlog at eight workers; the limit is told by headers only. `bench.provider_limits` shows
    beside it what a static limit and a cooldown would have got.
    """
    limit, until_s = 120_000, 600.0
    provider = LimitedProvider(tokens_per_window=limit, clock=lambda: fleet.clock.now_s)
    waits_s: dict[str, list[float]] = {"interactive": [], "batch": []}
    for change_s in range(60, 600, 60):
        fleet.at(change_s, limit // 2 if change_s % 120 else limit)
    for number in range(WORKERS * 4):
        fleet.at(number / 100, Waiting("interactive" if number % 4 == 0 else "batch", 0.0))
    while (event := await fleet.next()) is not None:
        now_s = fleet.clock.now_s
        if isinstance(event, int):
            provider.change(event)
        elif isinstance(event, Waiting):
            since_s = event.since_s or now_s
            tokens = fleet.draw.randrange(200, 2000)
            right = await fleet.worker().reserve(tokens, 0, event.lane)
            if isinstance(right, Denied):
                fleet.at(now_s + max(right.wait_s, 0.01), Waiting(event.lane, since_s))
                continue
            waits_s[event.lane].append(now_s - since_s)
            is_taken = provider.call(tokens)
            said = provider.limits()
            fleet.at(
                now_s + fleet.draw.uniform(0.2, 2.0),
                Sent(right, tokens, is_taken, said, event.lane),
            )
        elif isinstance(event, Sent):
            result = CallResult.OK if event.is_taken else CallResult.LIMITED
            taken = event.tokens if event.is_taken else 0
            report = Report(result=result, limits=event.limits, taken_tokens=taken)
            await fleet.worker().settle(event.right, report)
            if now_s < until_s:
                fleet.at(now_s, Waiting(event.lane, 0.0))

    assert provider.refused <= 0.005 * provider.calls
    assert provider.taken >= 0.95 * (limit + provider.allowed)  # it begins with a full bucket
    assert median(waits_s["interactive"]) < median(waits_s["batch"])


@dataclass(frozen=True)
class Waiting:
    """A call that waits for its turn."""

    lane: str
    since_s: float


@dataclass(frozen=True)
class Sent:
    """A call at the provider, and what its answer will say."""

    right: Reservation
    tokens: int
    is_taken: bool
    limits: RateLimits
    lane: str

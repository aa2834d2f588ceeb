"""Rate limits and circuit breaker of a provider, shared by eight workers on a real store."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
from redis.asyncio import Redis

from eventing.redis.connection import connect
from predictor.engine.upstream.provider import (
    CallResult,
    Denied,
    ProviderRules,
    Report,
    Reservation,
    SharedProvider,
)
from predictor.engine.upstream.rate_headers import RateLimits
from tests.integration.limited_provider import LimitedProvider

WORKERS = 8
FAST = ProviderRules(
    window_s=1.0, first_requests=600, open_s=0.4, jitter_s=0.02, look_back_s=1.2, longest_probe_s=1
)


@pytest.fixture
async def workers(
    redis_url: str, request: pytest.FixtureRequest
) -> AsyncIterator[list[SharedProvider]]:
    """The same provider as eight processes see it, each over a connection of its own."""
    async with AsyncExitStack() as stack:
        clients: list[Redis] = []
        for _ in range(WORKERS):
            client = connect(redis_url, timeout_s=5, max_connections=4)
            stack.push_async_callback(client.aclose)
            clients.append(client)
        yield [SharedProvider(c, url="u", model=request.node.name, rules=FAST) for c in clients]


async def granted(state: SharedProvider, tokens: int = 10, lane: str = "") -> Reservation:
    """A reservation, waited for as the queue does."""
    while isinstance(answer := await state.reserve(tokens, 0, lane), Denied):
        await asyncio.sleep(answer.wait_s)
    return answer


async def one(state: SharedProvider, result: CallResult, **report: object) -> Reservation | Denied:
    """One call that ends so, if it may be sent."""
    answer = await state.reserve(10, 0, "")
    if isinstance(answer, Reservation):
        await state.settle(answer, Report(result=result, **report))  # type: ignore[arg-type]
    return answer


async def side_by_side(
    workers: list[SharedProvider], work: Callable[[SharedProvider], Awaitable[None]], seconds: float
) -> None:
    """All workers at it for so long."""

    async def repeat(state: SharedProvider) -> None:
        while True:
            await work(state)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(repeat(state)) for state in workers]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()


async def test_a_limit_that_halves_and_doubles_by_header_is_followed(
    workers: list[SharedProvider],
) -> None:
    provider = LimitedProvider(tokens_per_window=20_000, window_s=FAST.window_s)
    draw = random.Random(1)

    async def call(state: SharedProvider) -> None:
        tokens = draw.randrange(20, 200)
        reservation = await granted(state, tokens)
        is_taken = provider.call(tokens)
        await asyncio.sleep(draw.uniform(0.002, 0.02))
        result = CallResult.OK if is_taken else CallResult.LIMITED
        report = Report(result=result, limits=provider.limits(), taken_tokens=tokens * is_taken)
        await state.settle(reservation, report)

    async def change() -> None:
        for limit in (20_000, 10_000, 20_000, 10_000, 20_000):
            provider.change(limit)
            await asyncio.sleep(0.8)

    changing = asyncio.ensure_future(change())
    await side_by_side(workers, call, 4.0)
    await changing

    assert provider.calls > 100
    assert provider.refused <= 0.02 * provider.calls  # `bench.provider_limits` has the figure


async def test_a_429_stops_everybody_for_as_long_as_it_says(workers: list[SharedProvider]) -> None:
    first, other = workers[:2]
    await one(first, CallResult.LIMITED, retry_after_s=30.0)

    denied = await other.reserve(10, 0, "")

    assert isinstance(denied, Denied)
    assert not denied.is_open
    assert 25 < denied.wait_s <= 30


async def test_what_a_call_did_not_take_is_given_back(workers: list[SharedProvider]) -> None:
    said = RateLimits(token_limit=1000, tokens_left=1000)
    await one(workers[0], CallResult.OK, limits=said, taken_tokens=0)
    large = await granted(workers[0], 900)
    assert isinstance(await workers[1].reserve(900, 0, ""), Denied)

    await workers[0].settle(large, Report(result=CallResult.OK, taken_tokens=10))

    assert isinstance(await workers[1].reserve(900, 0, ""), Reservation)


async def test_batch_leaves_a_part_of_the_limit_to_those_who_wait(
    workers: list[SharedProvider],
) -> None:
    said = RateLimits(token_limit=10_000, tokens_left=10_000)
    await one(workers[0], CallResult.OK, limits=said, taken_tokens=0)
    await granted(workers[0], 9_200)

    assert isinstance(await workers[1].reserve(100, 0, "batch"), Denied)
    assert isinstance(await workers[1].reserve(100, 0, "interactive"), Reservation)


async def test_without_headers_the_pace_falls_after_a_429(workers: list[SharedProvider]) -> None:
    provider = LimitedProvider(tokens_per_window=1000, window_s=1.0, sends_headers=False)

    async def call(state: SharedProvider) -> None:
        reservation = await granted(state)
        is_taken = provider.call(10)
        result = CallResult.OK if is_taken else CallResult.LIMITED
        await state.settle(reservation, Report(result=result, retry_after_s=0.05))
        await asyncio.sleep(0.001)

    await side_by_side(workers, call, 2.0)

    assert provider.calls > 100
    assert provider.refused < 0.2 * provider.calls


async def test_the_breaker_opens_at_half_of_ten_and_sends_nothing_then(
    workers: list[SharedProvider],
) -> None:
    sent = 0
    for number in range(40):
        result = CallResult.FAILED if number % 2 else CallResult.OK
        sent += isinstance(await one(workers[number % WORKERS], result), Reservation)

    denied = await workers[0].reserve(10, 0, "")

    assert sent == 10
    assert isinstance(denied, Denied)
    assert denied.is_open


async def test_five_lost_connections_in_a_row_open_it(workers: list[SharedProvider]) -> None:
    for number in range(5):
        assert isinstance(await one(workers[number], CallResult.UNREACHABLE), Reservation)

    assert isinstance(await workers[0].reserve(10, 0, ""), Denied)


async def test_limits_and_refused_calls_do_not_open_it(workers: list[SharedProvider]) -> None:
    for _ in range(20):
        await one(workers[0], CallResult.REFUSED)
        await one(workers[0], CallResult.LIMITED, retry_after_s=0.0)
        await asyncio.sleep(0.002)

    denied = await workers[0].reserve(10, 0, "")

    assert not (isinstance(denied, Denied) and denied.is_open)


async def break_it(state: SharedProvider) -> None:
    for _ in range(5):
        await one(state, CallResult.UNREACHABLE)


async def test_one_probe_at_a_time_goes_through_and_three_close_it(
    workers: list[SharedProvider],
) -> None:
    await break_it(workers[0])
    await asyncio.sleep(0.5)
    for _ in range(3):
        answers = [await state.reserve(10, 0, "") for state in workers]
        probes = [a for a in answers if isinstance(a, Reservation)]
        assert [p.is_probe for p in probes] == [True]
        await workers[0].settle(probes[0], Report(result=CallResult.OK))

    assert all([isinstance(await state.reserve(10, 0, ""), Reservation) for state in workers[:4]])


async def test_a_failed_probe_opens_it_again(workers: list[SharedProvider]) -> None:
    await break_it(workers[0])
    await asyncio.sleep(0.5)
    await one(workers[1], CallResult.FAILED)

    denied = await workers[2].reserve(10, 0, "")

    assert isinstance(denied, Denied)
    assert denied.is_open


async def test_a_probe_whose_process_died_lapses(workers: list[SharedProvider]) -> None:
    await break_it(workers[0])
    await asyncio.sleep(0.5)
    assert isinstance(await workers[0].reserve(10, 0, ""), Reservation)
    assert isinstance(await workers[1].reserve(10, 0, ""), Denied)

    await asyncio.sleep(1.05)

    assert isinstance(await workers[1].reserve(10, 0, ""), Reservation)


async def test_it_does_not_flap_where_half_of_the_calls_fail(
    workers: list[SharedProvider],
) -> None:
    """One call after another, every second one fails: no two changes between closed and open within `open_s`."""
    loop = asyncio.get_running_loop()
    changes: list[float] = []
    was_closed, until_s, number = True, loop.time() + 4.0, 0
    while loop.time() < until_s:
        answer = await workers[number % WORKERS].reserve(1, 0, "")
        is_open = isinstance(answer, Denied) and answer.is_open
        is_closed = isinstance(answer, Reservation) and not answer.is_probe
        if (is_open and was_closed) or (is_closed and not was_closed):
            changes.append(loop.time())
            was_closed = is_closed
        if isinstance(answer, Denied):
            await asyncio.sleep(min(answer.wait_s, 0.02))
            continue
        number += 1
        result = CallResult.FAILED if number % 2 else CallResult.OK
        await workers[number % WORKERS].settle(answer, Report(result=result))

    gaps = [later - sooner for sooner, later in pairwise(changes)]
    assert changes
    assert all(gap >= 0.35 for gap in gaps), gaps

"""A burst of submits: some run, some wait a moment, the rest is refused at once."""

import asyncio

import pytest

from api.limit.concurrency_limiter import ConcurrencyLimiter
from eventing.errors import Overloaded


async def go(turnstile: ConcurrencyLimiter, done: asyncio.Event, timeout_s: float = 1.0) -> str:
    try:
        async with turnstile.acquire(timeout_s):
            await done.wait()
        return "went"
    except Overloaded:
        return "sent away"


async def test_submits_over_the_waiting_limit_are_refused_at_once() -> None:
    turnstile, done = ConcurrencyLimiter(max_concurrent=2, waiting=3), asyncio.Event()
    tasks = [asyncio.create_task(go(turnstile, done)) for _ in range(8)]
    await asyncio.sleep(0.01)

    assert sum(task.done() for task in tasks) == 3
    done.set()
    assert sorted(await asyncio.gather(*tasks)) == ["sent away"] * 3 + ["went"] * 5


async def test_a_wait_that_is_too_long_ends() -> None:
    turnstile, done = ConcurrencyLimiter(max_concurrent=1, waiting=3), asyncio.Event()
    first = asyncio.create_task(go(turnstile, done))
    await asyncio.sleep(0)

    assert await go(turnstile, done, timeout_s=0.01) == "sent away"

    done.set()
    assert await first == "went"


async def test_a_slot_comes_free_however_its_holder_ends() -> None:
    turnstile = ConcurrencyLimiter(max_concurrent=1, waiting=1)
    with pytest.raises(ValueError, match="broke"):
        async with turnstile.acquire(1.0):
            raise ValueError("broke")

    done = asyncio.Event()
    done.set()
    assert await go(turnstile, done) == "went"

"""A provider that halves and doubles its token limit: how many calls it refuses, and how much of what it allows is
used, by three ways to pace calls.

    python -m bench.provider_limits [--seconds 60]

Eight workers with four calls each have a backlog; a quarter of the calls are interactive, the others batch. The
provider is `tests.integration.limited_provider` with a «minute» of six seconds; the store is real.

ours      the shared bucket of `predictor.engine.upstream.provider`
static    each worker paced at an eighth of the limit that was configured, as a client-side limiter does
cooldown  LiteLLM's rule: send at once; after a 429 the worker sends nothing for a cooldown (5 s of a minute)
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Final

from eventing.redis.connection import connect
from predictor.engine.upstream.provider import (
    CallResult,
    Denied,
    ProviderRules,
    Report,
    SharedProvider,
)
from tests.integration.limited_provider import LimitedProvider
from tests.redis_server import RedisServer

WORKERS: Final = 8
CALLS_AT_ONCE: Final = 4
WINDOW_S: Final = 6.0
LIMIT: Final = 120_000
PHASES: Final = (LIMIT, LIMIT // 2, LIMIT, LIMIT // 2, LIMIT)
RULES: Final = ProviderRules(window_s=WINDOW_S, open_s=WINDOW_S)

Send = Callable[[int, int, str], Awaitable[bool]]
"""Sends a call of so many tokens from a worker in a lane; False when it was refused."""


class Run:
    """One way to pace calls, against a provider of its own."""

    def __init__(self) -> None:
        self.provider = LimitedProvider(tokens_per_window=LIMIT, window_s=WINDOW_S)
        self.waits_s: dict[str, list[float]] = defaultdict(list)
        self._draw = random.Random(1)

    async def answer(self, tokens: int) -> bool:
        """One call at the provider."""
        is_taken = self.provider.call(tokens)
        await asyncio.sleep(self._draw.uniform(0.02, 0.2) if is_taken else 0.005)
        return is_taken

    async def serve(self, send: Send, seconds: float) -> None:
        """Send for so long."""

        async def caller(worker: int) -> None:
            while True:
                lane = "interactive" if self._draw.random() < 0.25 else "batch"
                tokens = self._draw.randrange(50, 800)
                asked_s = time.monotonic()
                while not await send(worker, tokens, lane):
                    await asyncio.sleep(0.01)
                self.waits_s[lane].append(time.monotonic() - asked_s)

        async with asyncio.TaskGroup() as group:
            callers = [
                group.create_task(caller(w)) for w in range(WORKERS) for _ in range(CALLS_AT_ONCE)
            ]
            for limit in PHASES:
                self.provider.change(limit)
                await asyncio.sleep(seconds / len(PHASES))
            for task in callers:
                task.cancel()

    def row(self, name: str) -> str:
        """Its line in the table. The first bucket is full: it counts as allowed."""
        provider = self.provider
        used = provider.taken / (provider.allowed + LIMIT)
        waits = {lane: 1000 * median(seconds) for lane, seconds in self.waits_s.items()}
        return (
            f"{name:<9} {provider.calls:>7} {provider.refused / provider.calls:>8.2%} {used:>8.1%}"
            f" {waits['interactive']:>12.0f} {waits['batch']:>9.0f}"
        )


async def ours(run: Run, url: str, seconds: float) -> None:
    """The shared bucket."""
    async with AsyncExitStack() as stack:
        states = []
        for _ in range(WORKERS):
            client = connect(url, timeout_s=5, max_connections=2 * CALLS_AT_ONCE)
            stack.push_async_callback(client.aclose)
            states.append(SharedProvider(client, url="bench", model="m", rules=RULES))

        async def send(worker: int, tokens: int, lane: str) -> bool:
            # The size of an answer is not known before: reserved as half of what it may be.
            state = states[worker]
            while isinstance(right := await state.reserve(tokens // 2, None, lane), Denied):
                await asyncio.sleep(right.wait_s)
            is_taken = await run.answer(tokens)
            report = Report(
                result=CallResult.OK if is_taken else CallResult.LIMITED,
                limits=run.provider.limits(),
                taken_tokens=tokens if is_taken else 0,
                answer_tokens=tokens - tokens // 2 if is_taken else None,
            )
            await state.settle(right, report)
            return is_taken

        await run.serve(send, seconds)


async def static(run: Run, url: str, seconds: float) -> None:
    """A limiter a worker, at what was configured."""
    due = [0.0] * WORKERS
    share = LIMIT / WORKERS / WINDOW_S

    async def send(worker: int, tokens: int, lane: str) -> bool:
        now = time.monotonic()
        due[worker] = max(due[worker], now) + tokens / share
        await asyncio.sleep(max(0.0, due[worker] - tokens / share - now))
        return await run.answer(tokens)

    await run.serve(send, seconds)


async def cooldown(run: Run, url: str, seconds: float) -> None:
    """No limiter, and a pause after a refusal."""
    until = [0.0] * WORKERS

    async def send(worker: int, tokens: int, lane: str) -> bool:
        await asyncio.sleep(max(0.0, until[worker] - time.monotonic()))
        if await run.answer(tokens):
            return True
        until[worker] = time.monotonic() + 5 * WINDOW_S / 60
        return False

    await run.serve(send, seconds)


async def measure(url: str, seconds: float) -> None:
    """All three, one after another."""
    print("way         calls     429s     used  interactive     batch   (median ms to an answer)")
    for way in (ours, static, cooldown):
        run = Run()
        await way(run, url, seconds)
        print(run.row(way.__name__))


def main() -> None:
    """Start a store and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            asyncio.run(measure(server.url, seconds))
        finally:
            server.kill()


if __name__ == "__main__":
    main()

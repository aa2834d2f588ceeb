"""A second call beside one that is late: the first of the two that shows something is the answer.

Called by `predictor.engine.upstream.engine`. Knows generators of steps, and no providers. What the loser has shown is
dropped with it, so no answer is made of two.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from predictor.engine.engine import DecodeStep

Steps = AsyncGenerator[DecodeStep, None]


async def race(
    first: Steps, *, after_s: float, second: Callable[[], Awaitable[Steps | None]]
) -> AsyncGenerator[DecodeStep, None]:
    """The steps of `first`, or of `second` when that shows something before it. `second` is called when `first` has
    shown nothing for `after_s`; None is no second call. The loser is closed before the winner's first step is given.

    Raises what the winner raises. A call that fails before it shows anything loses, unless it is the last one.
    """
    runs = [_Run(first)]
    try:
        await asyncio.wait({runs[0].head}, timeout=after_s)
        if not runs[0].head.done() and (other := await second()) is not None:
            runs.append(_Run(other))
        winner = await _winner(runs)
        for loser in (run for run in runs if run is not winner):
            await loser.close()
        for step in winner.head.result():
            yield step
        async with aclosing(winner.steps) as rest:
            async for step in rest:
                yield step
    finally:
        for run in runs:
            await run.close()


class _Run:
    """One call; `head` is its steps up to the first that shows something, or to its end."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.head = asyncio.ensure_future(_until_shown(steps))

    async def close(self) -> None:
        """End the call. Safe to call twice."""
        if not self.head.done():
            self.head.cancel()
            await asyncio.wait({self.head})
        if not self.head.cancelled():
            self.head.exception()  # of a loser: nothing else asks for it
        await self.steps.aclose()


async def _until_shown(steps: Steps) -> list[DecodeStep]:
    found: list[DecodeStep] = []
    async for step in steps:
        found.append(step)
        if step.token_ids:
            break
    return found


async def _winner(runs: list[_Run]) -> _Run:
    """The first whose head is there without an error; else the last one."""
    waiting = {run.head: run for run in runs}
    while True:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for head in done:
            run = waiting.pop(head)
            if not waiting or head.exception() is None:
                return run

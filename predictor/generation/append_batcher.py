"""Batches the checkpoints of all running jobs into one round trip to the store.

Called by `predictor.generation.checkpoint`, whose writers flush at the same moments. Sixteen jobs that each wrote
for themselves cost the process 200 µs a token; a script call in a pipeline costs a fraction of that. The flush
interval is as short as the store is fast (docs/adr/0017), so that a reader of a single stream sees each token at
once and the tokens of many jobs are still batched.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from eventing.errors import StoreUnavailable
from eventing.job.store import JobWorker, Lease, LeaseStatus, TokenBatch

_GATHER_TURNS: Final = 2
"""Appends that are due at the same moment arrive within a turn or two of the event loop. Not a sleep of a
millisecond, which would delay a single job's first token and its end.
"""
_REST: Final = 4
"""The pause after a write, as a multiple of its duration: writing takes a fifth of the time."""
_SHORTEST: Final = 16
"""The shortest flush interval, as a share of the longest."""

_Waiting = tuple[Lease, TokenBatch, asyncio.Future[LeaseStatus]]


class AppendBatcher:
    """Batches appends: the first caller in an event-loop tick flushes the whole batch."""

    def __init__(self, store: JobWorker) -> None:
        self._store = store
        self._waiting: list[_Waiting] = []
        self._took_s: float | None = None

    def flush_interval_s(self, longest_s: float) -> float:
        """The flush interval at the store's present speed."""
        return longest_s if self._took_s is None else flush_interval_s(longest_s, self._took_s)

    async def append(self, lease: Lease, batch: TokenBatch) -> LeaseStatus:
        """As `JobWorker.append`. Raises `StoreUnavailable` also when the flushing task was cancelled half-way: the
        write may have been done.
        """
        answer: asyncio.Future[LeaseStatus] = asyncio.get_running_loop().create_future()
        self._waiting.append((lease, batch, answer))
        if len(self._waiting) == 1:
            await self._flush()
        return await answer

    async def _flush(self) -> None:
        group = self._waiting
        try:
            for _ in range(_GATHER_TURNS):
                await asyncio.sleep(0)
            self._waiting = []
            began_s = asyncio.get_running_loop().time()
            holds = await self._store.append_all([(lease, batch) for lease, batch, _ in group])
            self._note(asyncio.get_running_loop().time() - began_s)
        except StoreUnavailable as error:
            _fail(group, error)
        except BaseException:
            # This caller was cancelled; the others must not wait for ever.
            if self._waiting is group:
                self._waiting = []
            group[0][2].cancel()  # raised by this caller itself
            _fail(group, StoreUnavailable("the write was stopped"))
            raise
        else:
            _resolve(group, holds)

    def _note(self, took_s: float) -> None:
        """A moving average: half the old value, half the new one."""
        self._took_s = took_s if self._took_s is None else (self._took_s + took_s) / 2


def flush_interval_s(longest_s: float, took_s: float) -> float:
    """`longest_s`, halved as long as writes of `took_s` leave enough time between them. Halves, so that writers
    with different intervals flush at common moments.
    """
    shortest_s = max(_REST * took_s, longest_s / _SHORTEST)
    interval_s = longest_s
    while interval_s / 2 >= shortest_s:
        interval_s /= 2
    return interval_s


def _fail(group: Sequence[_Waiting], error: StoreUnavailable) -> None:
    for *_, answer in group:
        if not answer.done():
            answer.set_exception(error)


def _resolve(group: Sequence[_Waiting], holds: Sequence[LeaseStatus]) -> None:
    for (*_, answer), hold in zip(group, holds, strict=True):
        if not answer.done():
            answer.set_result(hold)

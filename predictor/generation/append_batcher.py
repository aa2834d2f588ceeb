"""Checkpoints of all running jobs that fall due together, written in one round trip.

Called by `predictor.generation.checkpoint`, whose writers flush at the same moments. Sixteen jobs that each
wrote for themselves cost the process 200 us a token; a script call in a pipeline costs a fraction
of that. The flush interval is as short as the store is quick (docs/adr/0017), so that a reader of a lone
stream sees each token at once and a crowd's tokens still go together.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from eventing.errors import StoreUnavailable
from eventing.job.store import JobWorker, Lease, LeaseStatus, TokenBatch

_GATHER_TURNS: Final = 2
"""What is due at the same moment comes within a turn or two of the event loop. Not a sleep of a
millisecond: a lone job's first token and its end would each wait for it.
"""
_REST: Final = 4
"""Times the length of a write that passes before the next: writing takes a fifth of the time."""
_SHORTEST: Final = 16
"""The flush interval is never shorter than this part of the longest."""

_Waiting = tuple[Lease, TokenBatch, asyncio.Future[LeaseStatus]]


class AppendBatcher:
    """Joins appends: the first caller in an event-loop tick flushes the whole batch."""

    def __init__(self, store: JobWorker) -> None:
        self._store = store
        self._waiting: list[_Waiting] = []
        self._took_s: float | None = None

    def flush_interval_s(self, longest_s: float) -> float:
        """How far apart writes should be, now."""
        return longest_s if self._took_s is None else flush_interval_s(longest_s, self._took_s)

    async def append(self, lease: Lease, batch: TokenBatch) -> LeaseStatus:
        """As `JobWorker.append`. Raises `StoreUnavailable` too when the carrier was stopped half-way:
        the write may have been done.
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
            # Our own job was stopped; the other callers' were not, and must not wait for ever.
            if self._waiting is group:
                self._waiting = []
            group[0][2].cancel()  # ours; nobody will ask
            _fail(group, StoreUnavailable("the write was stopped"))
            raise
        else:
            _tell(group, holds)

    def _note(self, took_s: float) -> None:
        """Half of what was known, half of what was seen."""
        self._took_s = took_s if self._took_s is None else (self._took_s + took_s) / 2


def flush_interval_s(longest_s: float, took_s: float) -> float:
    """`longest_s`, halved as long as a write that takes `took_s` leaves the store and us in peace.
    Halves, since writers on one of them meet on every longer one too.
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


def _tell(group: Sequence[_Waiting], holds: Sequence[LeaseStatus]) -> None:
    for (*_, answer), hold in zip(group, holds, strict=True):
        if not answer.done():
            answer.set_result(hold)

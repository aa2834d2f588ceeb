"""Checkpoints of all running jobs that fall due together, written in one round trip.

Called by `predictor.checkpoint`, whose writers flush on one common beat. Sixteen jobs that each
wrote for themselves cost the process 200 us a token; a script call in a pipeline costs a fraction
of that.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from eventing.errors import StoreUnavailable
from eventing.job import JobId
from eventing.store import Hold, Store, TokenBatch

_GATHER_S: Final = 0.001
"""What is due on the same beat comes within a turn or two of the event loop."""

_Waiting = tuple[JobId, int, TokenBatch, asyncio.Future[Hold]]


class AppendGroup:
    """Joins appends. Who comes first carries those that come within a millisecond along."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[_Waiting] = []

    async def append(self, job_id: JobId, attempt: int, batch: TokenBatch) -> Hold:
        """As `Store.append`. Raises `StoreUnavailable` too when the carrier was stopped half-way:
        the write may have been done.
        """
        answer: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
        self._waiting.append((job_id, attempt, batch, answer))
        if len(self._waiting) == 1:
            await self._carry()
        return await answer

    async def _carry(self) -> None:
        group = self._waiting
        try:
            await asyncio.sleep(_GATHER_S)
            self._waiting = []
            holds = await self._store.append_all([(job, n, batch) for job, n, batch, _ in group])
        except StoreUnavailable as error:
            _fail(group, error)
        except BaseException:
            # Our own job was stopped; the passengers' were not, and must not wait for ever.
            if self._waiting is group:
                self._waiting = []
            group[0][3].cancel()  # ours; nobody will ask
            _fail(group, StoreUnavailable("the write was stopped"))
            raise
        else:
            _tell(group, holds)


def _fail(group: Sequence[_Waiting], error: StoreUnavailable) -> None:
    for *_, answer in group:
        if not answer.done():
            answer.set_exception(error)


def _tell(group: Sequence[_Waiting], holds: Sequence[Hold]) -> None:
    for (*_, answer), hold in zip(group, holds, strict=True):
        if not answer.done():
            answer.set_result(hold)

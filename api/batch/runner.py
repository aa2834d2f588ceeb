"""Claims batches without a runner and runs several at a time.

Called by `api.__main__` in a loop. A claim is renewed for as long as its batch runs; when the process dies the
claim lapses, and another runner continues.
"""

import asyncio
from collections import Counter
from typing import Final

import structlog

from api.batch.round import RunnerDeps
from api.batch.run import BatchRun, Overtaken
from api.batch.store import CLAIM_MS, BatchStore
from eventing.errors import NotFound, Unavailable, first_of
from eventing.store.file_store import FileStore

_TURN_S: Final = 0.5
_BATCHES_AT_ONCE: Final = 16
_OF_ONE_TENANT: Final = 4
"""Batches of one tenant that run at once, so that a tenant waiting for its limit does not block the others."""
_PUT_BACK_MS: Final = 2_000
_SWEEP_EVERY_S: Final = 3600.0

_log = structlog.get_logger()


async def run(deps: RunnerDeps, *, turn_s: float = _TURN_S) -> None:
    """Claim batches and run them until cancelled."""
    room = asyncio.Semaphore(_BATCHES_AT_ONCE)
    tenants: Counter[str] = Counter()
    async with asyncio.TaskGroup() as group:
        while True:
            await room.acquire()
            claimed = await _claim(deps.batches)
            if claimed is None:
                room.release()
                await asyncio.sleep(turn_s)
                continue
            task = group.create_task(_run_claimed(deps, *claimed, turn_s, tenants))
            task.add_done_callback(lambda _: room.release())


async def sweep_files(files: FileStore) -> None:
    """Delete expired files at intervals, until cancelled."""
    while True:
        try:
            removed = await files.sweep()
            if removed:
                _log.info("files removed", action="sweep", count=removed)
        except Unavailable as error:
            _log.debug("files not swept", action="sweep", reason=error.code)
        await asyncio.sleep(_SWEEP_EVERY_S)


async def _claim(batches: BatchStore) -> tuple[str, int] | None:
    try:
        return next(iter(await batches.claim(1)), None)
    except Unavailable:
        return None


async def _run_claimed(
    deps: RunnerDeps, batch_id: str, epoch: int, turn_s: float, tenants: Counter[str]
) -> None:
    try:
        batch = await deps.batches.get(batch_id)
        if tenants[batch.tenant] >= _OF_ONE_TENANT:
            await deps.batches.renew(batch_id, epoch, _PUT_BACK_MS)
            return
    except (NotFound, Unavailable):
        return  # claimed again when this claim lapses
    tenants[batch.tenant] += 1
    try:
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(_renew(deps.batches, batch_id, epoch))
            await BatchRun(deps, batch, epoch, turn_s=turn_s).run()
            renewing.cancel()
    except ExceptionGroup as failures:
        _log_failure(batch_id, first_of(failures))
    finally:
        tenants[batch.tenant] -= 1


async def _renew(batches: BatchStore, batch_id: str, epoch: int) -> None:
    """Renew the claim until cancelled. Raises `Overtaken`."""
    while True:
        await asyncio.sleep(CLAIM_MS / 3000)
        try:
            is_ours = await batches.renew(batch_id, epoch)
        except Unavailable:
            continue  # the next renewal may be in time; otherwise our writes are fenced
        if not is_ours:
            raise Overtaken


def _log_failure(batch_id: str, failure: BaseException) -> None:
    """A batch that raises must not end the others; it is tried again when its claim lapses."""
    match failure:
        case Unavailable():
            _log.warning("a batch waits", action="batch", batch_id=batch_id, reason=failure.code)
        case Overtaken():
            _log.warning("another runner has it", action="batch", batch_id=batch_id)
        case _:
            _log.error("a batch broke", action="batch", batch_id=batch_id, exc_info=failure)

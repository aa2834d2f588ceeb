"""Batches that wait for a runner: who claims which, and what is kept of them."""

import asyncio
from dataclasses import replace

import pytest

from api.batch import run as batch_run
from api.batch import runner as batch_runner
from api.batch.batch import Batch
from eventing.redis import keys
from eventing.store.file_store import new_file_id
from tests.integration.api.batch_rig import (
    ended,
    lines,
    new_batch,
    put_back,
    running,
    start,
    time_passes,
)
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakeEngine


async def test_two_claims_after_a_failover_have_two_epochs(rig: Rig) -> None:
    batches, batch_id = rig.parts.batches.batches, await start(rig, lines(1))
    name = keys.batch(batch_id)
    before = await rig.store.redis.hgetall(name)
    ((_, first),) = await batches.claim(1)
    await put_back(rig.store.redis, name, before)
    await time_passes(rig)
    ((_, second),) = await batches.claim(1)

    record = await batches.get(batch_id)
    assert not await batches.save(record, first)
    assert await batches.save(record, second)


async def test_one_broken_batch_does_not_stop_the_others(
    rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, good = await start(rig, lines(1)), await start(rig, lines(2))
    run = batch_run.BatchRun.run

    async def breaks(self: batch_run.BatchRun) -> None:
        if self._batch.id == broken:
            raise RuntimeError("a bug")
        await run(self)

    monkeypatch.setattr(batch_run.BatchRun, "run", breaks)
    async with running(rig):
        batch = await ended(rig, good)

    assert batch["status"] == "completed"


async def test_batches_of_a_tenant_that_wait_leave_room_for_anothers(
    rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines never end; those of another tenant do."""
    engine_takes = rig.broker.on_event
    rig.broker.on_event = lambda event: None
    monkeypatch.setattr(batch_runner, "_BATCHES_AT_ONCE", 8)
    busy = [await stored(rig, new_batch("busy", await file_of(rig, "busy"))) for _ in range(10)]
    async with running(rig):
        while len(rig.broker.events) < 4:
            await asyncio.sleep(0.01)
        rig.broker.on_event = engine_takes
        other = await stored(rig, new_batch("other", await file_of(rig, "other")))
        async with asyncio.timeout(60):
            while not (await rig.parts.batches.batches.get(other)).status.is_final:
                await asyncio.sleep(0.05)
        waiting = [await rig.parts.batches.batches.get(each) for each in busy]

    assert not any(batch.status.is_final for batch in waiting)


async def file_of(rig: Rig, tenant: str) -> str:
    files = rig.parts.batches.files
    card = files.new_card(tenant, "in", "batch", new_file_id())
    await files.write_part(tenant, card.id, "part", lines(1))
    await files.publish(replace(card, bytes=len(lines(1)), parts=("part",)))
    return card.id


async def stored(rig: Rig, batch: Batch) -> str:
    return (await rig.parts.batches.batches.create(batch)).id


async def test_a_runner_never_meets_a_batch_that_is_half_recorded(rig: Rig) -> None:
    """Created and claimed at once, many times: each is claimed, none is dropped."""
    batches, claimed = rig.parts.batches.batches, set[str]()

    async def claim() -> None:
        while len(claimed) < 100:
            claimed.update(batch_id for batch_id, _ in await batches.claim(10))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(claim())
        made = [await stored(rig, new_batch("t", "file")) for _ in range(100)]

    assert claimed == set(made)
    assert len(await batches.list("t")) == 100


async def test_a_list_is_pruned_with_its_records(rig: Rig) -> None:
    batches, index = rig.parts.batches.batches, keys.batches_of("t")
    gone, kept = [await stored(rig, new_batch("t", "file")) for _ in range(2)]
    old = replace(new_batch("t", "file"), created_at=1_600_000_000)
    await stored(rig, old)
    await rig.store.redis.delete(keys.batch(gone))

    await stored(rig, newest := new_batch("t", "file"))
    listed = {batch.id for batch in await batches.list("t")}

    assert listed == {kept, newest.id}
    assert await rig.store.redis.zcard(index) == 2
    assert await rig.store.redis.ttl(index) > 0
    assert await rig.store.redis.ttl(keys.batch(kept)) > 0


async def test_a_cancel_of_a_deleted_batch_leaves_no_record(rig: Rig) -> None:
    batch_id = await stored(rig, new_batch("t", "file"))
    await rig.store.redis.delete(keys.batch(batch_id))

    await rig.parts.batches.batches.ask_to_cancel(batch_id)

    assert not await rig.store.redis.exists(keys.batch(batch_id))

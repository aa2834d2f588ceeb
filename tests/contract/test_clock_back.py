"""The store's clock goes back (it is set, or a host whose clock is behind takes over): everything that waited for a
time recovers within two leases, on a real server with a controlled clock (libfaketime).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from api.limit.limit import MINUTE_S
from api.limit.window import LimitMeter, Windows
from eventing.broker.intake import Intake
from eventing.broker.queue.queue import Queue
from eventing.broker.router import DirectPublisher
from eventing.job.job import JobState
from eventing.job.store import AcquireStatus, Ending, LeaseStatus
from eventing.outbox.outbox import sweep_once
from eventing.outbox.start_watch import StartWatch
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.redis.script import run
from eventing.store.redis_store import RedisStore
from tests.contract.broker.queue_rig import IDLE_MS, NAME, event, ids, put
from tests.contract.broker.stack import trigger
from tests.contract.broker.start_watch_program import FALLBACKS, LEASE, TRIGGERS
from tests.contract.rig import (
    FAULT,
    LEASE_MS,
    RedisRig,
    Rig,
    job_id,
    new_job,
    started,
)
from tests.redis_server import RedisServer
from tests.time_limits import STORE_S

LIBRARY: Final = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
BACK = pytest.mark.parametrize("back_s", [20, 3600, 10 * 24 * 3600])
DEAD = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)


class ShiftedServer:
    """A store whose clock stands where it is put, in seconds from the real one."""

    def __init__(self, server: RedisServer, offset: Path) -> None:
        self._server = server
        self._offset = offset
        self._shift_s = 0.0
        self.redis = connect(server.url, timeout_s=STORE_S)

    async def move(self, seconds: float) -> None:
        """Set the clock forward, or back; return once the server tells the new time."""
        self._shift_s += seconds
        beside = self._offset.with_suffix(".new")
        beside.write_text(f"{self._shift_s:+f}\n")
        beside.rename(self._offset)
        async with asyncio.timeout(60):
            while abs((await self.redis.time())[0] - time.time() - self._shift_s) > 1.5:
                await asyncio.sleep(0.01)


@pytest.fixture
async def shifted(
    tmp_path: Path, redis_server: Callable[..., RedisServer]
) -> AsyncIterator[ShiftedServer]:
    if LIBRARY is None:
        pytest.skip("libfaketime is not installed")
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    names = {"TIMESTAMP_FILE": str(offset), "NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1"}
    env = {f"FAKETIME_{name}": value for name, value in names.items()}
    server = redis_server(env=env | {"LD_PRELOAD": str(LIBRARY)})
    server.start()
    made = ShiftedServer(server, offset)
    yield made
    await made.redis.aclose()


@pytest.fixture
async def pump(shifted: ShiftedServer) -> Queue:
    made = Queue(shifted.redis, NAME, "one")
    await made.ensure()
    return made


@BACK
async def test_the_lease_of_a_dead_predictor_lasts_no_longer_than_a_lease(
    shifted: ShiftedServer, back_s: int
) -> None:
    rig = RedisRig(shifted.redis)
    await started(rig)

    await shifted.move(-back_s)

    held = await rig.store.acquire(job_id(), "two", can_resume=True)
    assert held.status is AcquireStatus.HELD
    assert held.lease_left_ms <= LEASE_MS
    await shifted.move(LEASE_MS / 1000 + 1)
    again = await rig.store.acquire(job_id(), "two", can_resume=True)
    assert (again.status, again.lease.attempt) == (AcquireStatus.ACQUIRED, 2)


@BACK
async def test_a_predictor_that_lives_keeps_its_lease(shifted: ShiftedServer, back_s: int) -> None:
    rig = RedisRig(shifted.redis)
    lease = await started(rig)

    await shifted.move(-back_s)
    assert await rig.store.renew([lease], extend=True) == [LeaseStatus.OK]
    await shifted.move(LEASE_MS / 2000)

    held = await rig.store.acquire(job_id(), "two", can_resume=True)
    assert held.status is AcquireStatus.HELD


@BACK
async def test_an_undeliverable_job_ends_although_its_lease_seems_to_last(
    shifted: ShiftedServer, back_s: int
) -> None:
    rig = RedisRig(shifted.redis)
    await started(rig)

    await shifted.move(-back_s)

    assert await rig.store.conclude(job_id(), DEAD) is LeaseStatus.HELD
    await shifted.move(LEASE_MS / 1000 + 1)
    assert await rig.store.conclude(job_id(), DEAD) is LeaseStatus.OK


@BACK
async def test_a_late_job_of_a_dead_predictor_ends(shifted: ShiftedServer, back_s: int) -> None:
    rig = RedisRig(shifted.redis)
    await shifted.move(2 * back_s)
    await started(rig, deadline_ms=await rig.now_ms() + 1000)
    await shifted.move(-back_s)
    # A deadline is a time that a person named: it comes when the clock says so.
    await shifted.move(back_s - LEASE_MS / 1000)
    await rig.redis.zadd(keys.DEADLINES, {job_id(): 1})

    assert await rig.store.expire(9) == []
    await shifted.move(LEASE_MS / 1000 + 2)

    assert await rig.store.expire(9) == [job_id()]


@BACK
async def test_an_event_that_waits_for_its_retry_is_delivered(
    shifted: ShiftedServer, pump: Queue, back_s: int
) -> None:
    await put(pump, event(1))
    (claimed,) = await pump.claim(1, claim_idle_ms=IDLE_MS)
    await pump.defer(claimed.ticket, 10_000)

    await shifted.move(-back_s)

    assert await pump.claim(1, claim_idle_ms=IDLE_MS) == []
    await shifted.move(11)
    assert ids(await pump.claim(1, claim_idle_ms=IDLE_MS)) == ["1"]


@BACK
async def test_events_of_a_dead_pump_are_claimed(
    shifted: ShiftedServer, pump: Queue, back_s: int
) -> None:
    await put(pump, event(1))
    await pump.claim(1)
    other = Queue(shifted.redis, NAME, "two")

    await shifted.move(-back_s)

    assert await other.claim(1, claim_idle_ms=IDLE_MS) == []
    await shifted.move(IDLE_MS / 1000 + 1)
    assert ids(await other.claim(1, claim_idle_ms=IDLE_MS)) == ["1"]


@BACK
@pytest.mark.parametrize("index", [keys.DUE_WEBHOOKS, keys.ACTIVE_BATCHES, keys.UNPUBLISHED])
async def test_index_entries_reserved_by_a_dead_process_are_due_again(
    shifted: ShiftedServer, back_s: int, index: str
) -> None:
    await shifted.redis.zadd(index, {"one": 1})
    assert await run(shifted.redis, "take_due", [index], [9, 15_000]) == [b"one"]

    await shifted.move(-back_s)

    assert await run(shifted.redis, "take_due", [index], [9, 15_000]) == []
    await shifted.move(16)
    assert await run(shifted.redis, "take_due", [index], [9, 15_000]) == [b"one"]


@BACK
async def test_a_started_job_without_an_entry_is_published_again(
    shifted: ShiftedServer, pump: Queue, back_s: int
) -> None:
    # Its entry is gone (a restored store) and its predictor is dead.
    rig = RedisRig(shifted.redis)
    await started(rig)
    await rig.store.claim_unstarted(9)

    await shifted.move(-back_s)
    publisher = DirectPublisher(shifted.redis, [trigger("http://127.0.0.1:9/")])
    await sweep_once(rig.store, publisher)
    await shifted.move(2 * LEASE_MS / 1000 + 1)
    await sweep_once(rig.store, publisher)

    assert len(await pump.claim(9)) == 1


async def test_the_twin_in_memory_gives_a_lease_no_longer(rig: Rig) -> None:
    # The same rule against both stores; in Redis the record's times are moved instead of its clock.
    await started(rig)

    await rig.pass_time(-3_600_000)

    held = await rig.store.acquire(job_id(), "two", can_resume=True)
    assert (held.status, held.lease_left_ms <= LEASE_MS) == (AcquireStatus.HELD, True)
    await rig.pass_time(LEASE_MS + 1)
    assert (await rig.store.acquire(job_id(), "two", can_resume=True)).lease.attempt == 2


@BACK
async def test_a_tenant_at_its_limit_waits_no_longer_than_two_windows(
    shifted: ShiftedServer, back_s: int
) -> None:
    windows = Windows(shifted.redis)
    meter = LimitMeter(name="requests", tenant="acme", limit=10)
    assert (await windows.take(meter, 10))[0]

    await shifted.move(-back_s)

    is_taken, window = await windows.take(meter, 1)
    assert not is_taken
    assert window.current_left_s <= MINUTE_S
    await shifted.move(2 * MINUTE_S + 1)
    assert (await windows.take(meter, 10))[0]


@BACK
async def test_a_model_that_does_not_start_trips_by_the_time_that_passes(
    shifted: ShiftedServer, back_s: int
) -> None:
    redis = shifted.redis
    store, route = RedisStore(redis, LEASE), DirectPublisher(redis, TRIGGERS)
    watch = StartWatch(redis, store, route, FALLBACKS, lease=LEASE, cold_start_s=10)
    new = new_job()
    own = replace(new, request=replace(new.request, body={**new.request.body, "model": "own"}))
    await Intake(store, route, fallbacks=FALLBACKS).submit(own)
    passed_s = 0
    for seconds in (4, 4, -back_s, 4, 4):
        await shifted.move(seconds)
        await watch.check("own")
        passed_s += max(seconds, 0)
        assert await redis.hget(keys.starting("own"), "tripped_ms") in (None, b"0"), passed_s
    moved = []
    for _ in range(3):
        await shifted.move(4)
        moved.append(await watch.check("own"))

    assert any(moved)

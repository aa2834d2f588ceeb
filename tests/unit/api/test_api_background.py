"""Background loops: one that fails is started again and takes no other with it."""

import asyncio

import pytest
from structlog.testing import capture_logs

from api.http import background
from eventing.cloudevent.event import Event
from eventing.errors import BrokerUnavailable
from eventing.job.job import JobId, parse_request
from eventing.job.store import NewJob
from eventing.outbox import outbox
from eventing.store.memory_store import MemoryStore


class Clock:
    """Stands until it is told."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def monotonic_s(self) -> float:
        return self.now_ms / 1000

    def wall_ms(self) -> int:
        return self.now_ms


class FlakyBroker:
    """Refuses the first event it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.calls = 0

    async def publish(self, event: Event) -> None:
        self.calls += 1
        if self.calls == 1:
            raise BrokerUnavailable("down")
        self.events.append(event)


async def test_a_loop_that_fails_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_PAUSE_S", 0)
    runs = 0

    async def fail() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError("a bug")
        await asyncio.sleep(3600)

    with capture_logs() as lines:
        task = asyncio.create_task(background.forever("x", fail))
        while runs < 3:
            await asyncio.sleep(0)
        task.cancel()

    assert [line["error"] for line in lines] == ["ValueError", "ValueError"]


async def test_the_sweep_goes_on_after_a_broker_that_was_away() -> None:
    clock, broker = Clock(), FlakyBroker()
    store = MemoryStore(clock=clock)
    job_id = JobId("job_" + "a" * 24)
    line = {"url": "/v1/completions", "body": {"model": "m", "prompt": "x"}}
    request = parse_request(line)
    await store.submit(NewJob(id=job_id, request=request, source="/torpor/api", event_id=job_id))

    task = asyncio.create_task(outbox.run(store, broker, 0.001))
    async with asyncio.timeout(60):
        while not broker.events:
            clock.now_ms += 16_000  # until it is due, and until a sweeper's hold has lapsed
            await asyncio.sleep(0.002)
    task.cancel()

    assert broker.events[0].subject == job_id

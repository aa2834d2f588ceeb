"""Pumps that look up often, so that a test does not wait a second for one to stop, and queues."""

import random

import pytest
from redis.asyncio import Redis

from eventing.broker.delivery import pump
from eventing.broker.queue.queue import Queue
from tests.contract.broker.queue_rig import NAME


@pytest.fixture(autouse=True)
def quick_pumps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "_WAIT_MS", 20)


@pytest.fixture
async def queue(redis: Redis) -> Queue:
    made = Queue(redis, NAME, "one", draw=random.Random(7))
    await made.ensure()
    return made


@pytest.fixture
def other(redis: Redis) -> Queue:
    return Queue(redis, NAME, "two", draw=random.Random(8))

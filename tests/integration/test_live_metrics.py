"""Wakes of predictors are counted once each, whatever else is read."""

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from eventing.replica import ReplicaDirectory
from eventing.telemetry.cost import Price
from eventing.telemetry.metric import live
from eventing.telemetry.metric.live import LiveMetrics


def wakes(model: str) -> float:
    labels = {"model": model, "phase": "total"}
    return REGISTRY.get_sample_value("torpor_wake_seconds_count", labels) or 0.0


async def test_a_wake_is_counted_once_for_each_predictor_of_each_model(redis: Redis) -> None:
    directory = ReplicaDirectory(redis)
    metrics = LiveMetrics(redis, ["woken-a", "woken-b"], Price())
    await directory.report("woken-a", "one", "weights", {"import": 1.0})
    await metrics.refresh()
    before = wakes("woken-a"), wakes("woken-b")

    for model in ("woken-a", "woken-b"):
        await directory.report(model, "one", "ready", {"import": 1.0, "weights": 2.0})
    for _ in range(3):
        await metrics.refresh()
    await directory.report("woken-a", "two", "ready", {"import": 1.0})
    await metrics.refresh()

    assert before == (0.0, 0.0)
    assert (wakes("woken-a"), wakes("woken-b")) == (2.0, 1.0)


async def test_predictors_that_serve_are_not_counted_again_when_the_ended_are_forgotten(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_REMEMBERED", 4)
    directory = ReplicaDirectory(redis)
    metrics = LiveMetrics(redis, ["woken-c", "woken-d"], Price())
    await directory.report("woken-d", "stays", "ready", {})
    for number in range(20):
        await directory.report("woken-c", f"r{number}", "ready", {})
        await metrics.refresh()
        await directory.remove("woken-c", f"r{number}")

    assert (wakes("woken-c"), wakes("woken-d")) == (20, 1)
    assert len(metrics._seen) <= 4

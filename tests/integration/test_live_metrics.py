"""Wakes of predictors are counted once each, whatever else is read."""

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from eventing.replica import ReplicaDirectory
from eventing.telemetry.cost import Price
from eventing.telemetry.metric import live
from eventing.telemetry.metric.live import LiveMetrics
from predictor.engine.upstream.provider import CallResult, Report, Reservation, SharedProvider
from predictor.engine.upstream.rate_headers import RateLimits


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


async def test_limits_and_breaker_of_a_provider_are_shown_while_no_predictor_runs(
    redis: Redis,
) -> None:
    metrics = LiveMetrics(redis, ["big"], Price())
    state = SharedProvider(redis, url="https://api.example.com/v1", model="large-4")
    labels = {"model": "big", "endpoint": "large-4 at api.example.com"}

    def shown(name: str, **more: str) -> float | None:
        return REGISTRY.get_sample_value(f"torpor_provider_{name}", {**labels, **more})

    await state.announce("big")
    await metrics.refresh()
    assert shown("breaker_open") is None  # it was never called
    right = await state.reserve(10, 20, "")
    assert isinstance(right, Reservation)
    limits = RateLimits(request_limit=500, requests_left=100, token_limit=9000, tokens_left=4000)
    await state.settle(right, Report(result=CallResult.OK, limits=limits, taken_tokens=30))
    await metrics.refresh()

    assert shown("breaker_open") == 0
    assert shown("throttled_seconds") == 0
    assert shown("limit_per_minute", of="requests") == 500
    assert shown("limit_per_minute", of="tokens") == 9000
    assert 100 <= (shown("left", of="requests") or 0) < 500

    for _ in range(5):
        right = await state.reserve(10, 20, "")
        assert isinstance(right, Reservation)
        await state.settle(right, Report(result=CallResult.UNREACHABLE))
    await metrics.refresh()
    assert shown("breaker_open") == 1


async def test_a_provider_that_asks_for_a_pause_is_shown_as_throttled(redis: Redis) -> None:
    metrics = LiveMetrics(redis, ["big"], Price())
    state = SharedProvider(redis, url="https://slow.example.com/v1", model="m")
    await state.announce("big")
    right = await state.reserve(1, 1, "")
    assert isinstance(right, Reservation)
    await state.settle(right, Report(result=CallResult.LIMITED, retry_after_s=3600))

    await metrics.refresh()

    labels = {"model": "big", "endpoint": "m at slow.example.com"}
    left_s = REGISTRY.get_sample_value("torpor_provider_throttled_seconds", labels)
    assert left_s is not None
    assert 3000 < left_s <= 3600


async def test_a_provider_of_a_model_that_is_not_served_becomes_no_label(redis: Redis) -> None:
    metrics = LiveMetrics(redis, ["big"], Price())
    state = SharedProvider(redis, url="https://old.example.com/v1", model="gone-4")
    await state.announce("gone")
    right = await state.reserve(1, 1, "")
    assert isinstance(right, Reservation)
    await state.settle(right, Report(result=CallResult.OK))

    await metrics.refresh()

    assert "gone" not in {s.labels.get("model") for f in REGISTRY.collect() for s in f.samples}

"""What api and store take beside GPUs is in the ledger, once, whichever process reads it."""

import asyncio

import pytest
from redis.asyncio import Redis

from api.routes.usage import usage_view
from eventing.redis import keys
from eventing.telemetry.cost import Price
from eventing.telemetry.metric.ledger import Ledger, Measures, by_name
from eventing.telemetry.metric.service import SERVICE, ServiceMeter


class Cpu:
    """The CPU time of a process."""

    def __init__(self) -> None:
        self.used_s = 5.0

    def __call__(self) -> float:
        return self.used_s


async def services(redis: Redis) -> dict[str, Measures]:
    return by_name(await Ledger(redis).since(3600), SERVICE)


async def next_turn(redis: Redis) -> None:
    await redis.delete(keys.STORE_METER_TURN)


async def test_each_process_posts_its_own_cpu_time(redis: Redis) -> None:
    one, other = Cpu(), Cpu()
    meters = [ServiceMeter(redis, one), ServiceMeter(redis, other)]
    one.used_s += 2
    other.used_s += 0.5
    for _ in range(2):
        await asyncio.gather(*(meter.post() for meter in meters))
    assert (await services(redis))["api"] == {"cpu_ms": 2500}


async def test_the_stores_commands_are_posted_once_by_whichever_process_has_the_turn(
    redis: Redis,
) -> None:
    meters = [ServiceMeter(redis, Cpu()) for _ in range(3)]
    await meters[0].post()
    assert "store" not in await services(redis)  # where to begin
    for _ in range(500):
        await redis.ping()
    before = int((await redis.info("stats"))["total_commands_processed"])
    first = int(await redis.hget(keys.STORE_METER, "commands") or 0)
    await next_turn(redis)
    await asyncio.gather(*(meter.post() for meter in meters))
    last = int(await redis.hget(keys.STORE_METER, "commands") or 0)
    assert last >= before
    assert (await services(redis))["store"]["commands"] == last - first >= 500


async def test_a_store_that_was_restarted_is_counted_from_its_start(redis: Redis) -> None:
    meter = ServiceMeter(redis, Cpu())
    await redis.hset(
        keys.STORE_METER, mapping={"run": "another", "cpu_ms": 10**9, "commands": 10**9}
    )
    await meter.post()
    commands = int(await redis.hget(keys.STORE_METER, "commands") or 0)
    assert (await services(redis))["store"]["commands"] == commands > 0


@pytest.mark.parametrize("tokens", [0, 4000])
def test_a_thousand_tokens_cost_gpus_providers_and_services(tokens: int) -> None:
    rows = {
        ("model", "own"): {"busy_ms": 6000, "idle_ms": 2000, "delivered_tokens": tokens},
        ("model", "far"): {"provider_cost": 4_000_000},
        (SERVICE, "api"): {"cpu_ms": 3000},
        (SERVICE, "store"): {"cpu_ms": 1000, "commands": 70},
    }

    view = usage_view([(0, rows)], Price(per_gpu_hour=3600), 60, cpu_price_per_hour=7200)

    assert view["services"] == {
        "api_cpu_seconds": 3.0,
        "store_cpu_seconds": 1.0,
        "store_commands": 70,
        "cost": 8.0,
    }
    assert view["providers_cost"] == 4.0
    each = view["cost_per_1k_output_tokens"]
    found = (each["gpu"], each["providers"], each["services"], each["total"])
    assert found == ((2.0, 1.0, 2.0, 5.0) if tokens else (None,) * 4)

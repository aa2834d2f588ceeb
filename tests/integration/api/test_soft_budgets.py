"""A soft budget: its owner is told once a month, and sees what is left."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from redis.asyncio import Redis

from api.limit.budget import Account, Budgets
from api.settings import ApiSettings, TenantLimits
from eventing.cloudevent.budget_event import SOFT_BUDGET_PASSED
from eventing.cloudevent.event import Event, build_structured
from eventing.job.job import JobId
from eventing.live import ended
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, rig_over
from tests.integration.api.fakes import FakeBroker
from tests.integration.api.receiver import receiving
from tests.integration.api.test_budgets import CARD, COST, answered, key_of, line

SCHEMA = Path(__file__).parents[3] / "docs" / "schemas" / f"{SOFT_BUDGET_PASSED}.json"


@pytest.fixture
async def priced(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> AsyncIterator[Rig]:
    """`acme` has both budgets, `soft` has only a soft one."""
    limits = {
        "acme": TenantLimits(budget_per_month=100, soft_budget_per_month=20),
        "soft": TenantLimits(soft_budget_per_month=20),
    }
    settings = api_settings.model_copy(
        update={
            "models": (CARD,),
            "keys_source": "redis",
            "tenant_limits": limits,
            "webhook_allow": ("127.0.0.0/8",),
        }
    )
    async with rig_over(settings, store, broker) as made:
        yield made


def events_of(broker: FakeBroker) -> list[Event]:
    return [event for event in broker.events if event.type == SOFT_BUDGET_PASSED]


@pytest.mark.parametrize("tenant", ["acme", "soft"])
async def test_a_soft_budget_that_is_passed_is_told_once_by_event_and_webhook(
    priced: Rig, broker: FakeBroker, redis: Redis, tenant: str
) -> None:
    headers = await key_of(redis, tenant)
    async with receiving() as receiver:
        made = {"url": receiver.url, "name": "money", "event_types": ["budget.soft.passed"]}
        answer = await priced.client.post("/v1/webhook_endpoints", json=made, headers=headers)
        assert answer.status_code == 200, answer.text
        await answered(priced, headers)
        assert events_of(broker) == []
        for _ in range(3):
            await answered(priced, headers)
        (sent,) = await receiver.wait_for(1)
        assert len(receiver.sent) == 1
    (event,) = events_of(broker)
    jsonschema.validate(orjson.loads(build_structured(event)[1]), orjson.loads(SCHEMA.read_bytes()))
    told = orjson.loads(event.data)
    assert (told["of"], told["id"], told["soft_budget"]) == ("tenant", tenant, 20)
    assert told["spent"] == 2 * COST
    assert told["budget"] == (100 if tenant == "acme" else None)
    assert orjson.loads(sent.body)["type"] == "budget.soft.passed"


async def test_a_soft_budget_alone_refuses_nothing_and_says_so_in_a_header(
    priced: Rig, redis: Redis
) -> None:
    headers = await key_of(redis, "soft")
    for _ in range(3):
        await answered(priced, headers)
    answer = await priced.client.post("/v1/jobs", json=line(3), headers=headers)
    assert answer.status_code == 202
    assert answer.headers["torpor-budget"].startswith("tenant; spent=39.0000; held=")
    assert answer.headers["torpor-budget"].endswith("; soft=20")


async def test_a_new_month_is_told_again(priced: Rig, broker: FakeBroker, redis: Redis) -> None:
    headers = await key_of(redis, "acme")
    for _ in range(2):
        await answered(priced, headers)
    account = keys.budget("tenant", "acme")
    month = (await redis.hget(account, "told")).decode()
    await redis.hset(account, mapping={"told": "2001-01", "month": "2001-01"})  # long ago
    for _ in range(2):
        await answered(priced, headers)
    assert len(events_of(broker)) == 2
    assert await redis.hget(account, "told") == month.encode()


async def test_what_a_broker_did_not_take_is_told_again(
    priced: Rig, broker: FakeBroker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended, "_TAKE_OVER_EVERY_S", 0.1)
    headers = await key_of(redis, "acme")
    await answered(priced, headers)
    answer = await priced.client.post("/v1/jobs", json=line(3), headers=headers)
    predictor = await priced.predictor(str(answer.json()["id"]))
    broker.is_down = True
    await predictor.finish({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
    account = keys.budget("tenant", "acme")
    async with asyncio.timeout(60):
        while not await redis.hget(account, "told"):
            await asyncio.sleep(0.01)
    broker.is_down = False
    assert events_of(broker) == []
    # As if the process had died: its word has lapsed, and the end is delivered again.
    month = (await redis.hget(account, "told")).decode().split()[0]
    await redis.hset(account, "told", f"{month} 1")
    for entry in await redis.xpending_range(keys.ENDED, "api", "-", "+", 10):
        mine = (keys.ENDED, "api", entry["consumer"], 0, [entry["message_id"]])
        await redis.xclaim(*mine, idle=15_001, justid=True)
    async with asyncio.timeout(60):
        while not events_of(broker):
            await asyncio.sleep(0.01)
    await priced.until_told()
    assert await redis.hget(account, "told") == month.encode()


async def test_one_process_at_a_time_tells(redis: Redis) -> None:
    budgets, account = Budgets(redis), Account(of="tenant", name="acme", soft=1)
    for number in range(4):
        await budgets.take([account], JobId(f"job-{number}"), 1)
    ends = (budgets.settle([account], JobId(f"job-{number}"), 1) for number in range(4))
    told = [each for passed in await asyncio.gather(*ends) for each in passed]
    assert len(told) == 1
    await budgets.mark_notified(told[0])
    assert await budgets.settle([account], JobId("job-0"), 1) == []


async def test_a_tenant_sees_its_budgets_and_what_is_left(priced: Rig, redis: Redis) -> None:
    headers = await key_of(redis, "acme", budget=50)
    await answered(priced, headers)
    await priced.client.post("/v1/jobs", json=line(3), headers=headers)

    budgets: list[dict[str, Any]] = (await priced.client.get("/v1/tenant", headers=headers)).json()[
        "budgets"
    ]

    most = 1 + 2 * 3
    assert [(each["of"], each["budget"], each["soft_budget"]) for each in budgets] == [
        ("tenant", 100, 20),
        ("key", 50, 40),
    ]
    for each in budgets:
        assert (each["spent"], each["held"]) == (COST, most)
        assert each["left"] == each["budget"] - COST - most
        assert each["currency"] == "usd"
        assert 0 < each["resets_s"] <= 31 * 24 * 3600
    nothing = await priced.client.get("/v1/tenant", headers=await key_of(redis, "other"))
    assert nothing.json()["budgets"] == []

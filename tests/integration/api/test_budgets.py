"""Budgets in money: of tenants and keys, counted in the store."""

import asyncio
import calendar
import datetime
import sys
from collections.abc import AsyncIterator
from importlib.resources import files

import pytest
from redis.asyncio import Redis

from api.settings import ApiSettings, TenantLimits
from eventing.api_key import DEFAULT_SCOPES, RedisKeys, mint
from eventing.job.job import JobId, JobState
from eventing.redis import keys
from eventing.settings import ModelCard
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import NOW_S, Rig, chat_line, rig_over
from tests.integration.api.fakes import FakeBroker, chat_result

CARD = ModelCard(
    name="m", context_tokens=64, input_price_per_1m=1_000_000, output_price_per_1m=2_000_000
)
"""One for a token of the prompt, two for one of the answer; a chat of the fakes costs 7 + 2 * 3."""
COST = 13.0


@pytest.fixture
async def priced(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> AsyncIterator[Rig]:
    settings = api_settings.model_copy(
        update={
            "models": (CARD,),
            "keys_source": "redis",
            "tenant_limits": {"acme": TenantLimits(budget_per_month=40)},
        }
    )
    async with rig_over(settings, store, broker) as made:
        yield made


async def key_of(redis: Redis, tenant: str, budget: float = 0.0) -> dict[str, str]:
    key, text = mint(
        tenant, now_s=NOW_S, budget_per_month=budget, scopes=(*DEFAULT_SCOPES, "admin")
    )
    await RedisKeys(redis).put(key)
    return {"authorization": f"Bearer {text}"}


def line(most: int) -> dict[str, object]:
    made = chat_line("hi")
    made["body"]["max_tokens"] = most
    return made


async def answered(rig: Rig, headers: dict[str, str], most: int = 3) -> str:
    """A job that was let in and has ended."""
    answer = await rig.client.post("/v1/jobs", json=line(most), headers=headers)
    assert answer.status_code == 202, answer.text
    job_id = str(answer.json()["id"])
    await (await rig.predictor(job_id)).finish(chat_result("hello"))
    await rig.until_told()
    return job_id


async def spent(redis: Redis, of: str, name: str) -> float:
    return int(await redis.hget(keys.budget(of, name), "spent") or 0) / 1_000_000


async def test_a_provider_job_costs_its_tokens(priced: Rig, redis: Redis) -> None:
    headers = await key_of(redis, "acme")
    job_id = await answered(priced, headers)
    view = (await priced.client.get(f"/v1/jobs/{job_id}", headers=headers)).json()
    assert view["cost"]["cost"] == COST
    assert await spent(redis, "tenant", "acme") == COST


async def test_a_spent_budget_refuses_with_what_and_when(priced: Rig, redis: Redis) -> None:
    headers = await key_of(redis, "acme")
    for _ in range(2):
        await answered(priced, headers)
    # 26 are spent: 14 are left, and this call may take 1 + 2 * 20.
    refused = await priced.client.post("/v1/jobs", json=line(20), headers=headers)
    assert refused.status_code == 429
    assert refused.json()["code"] == "insufficient_quota"
    assert "budget is 40 a month: 26.0000 is spent" in refused.json()["detail"]
    assert 0 < int(refused.headers["retry-after"]) <= 31 * 24 * 3600
    await answered(priced, headers)  # a smaller one fits
    gone = await priced.client.post("/v1/jobs", json=line(1), headers=headers)
    assert gone.status_code == 429
    other = await priced.client.post("/v1/jobs", json=line(1), headers=await key_of(redis, "beta"))
    assert other.status_code == 202


async def test_an_answer_that_a_rule_stopped_costs_its_prompt_and_what_was_made(
    priced: Rig, redis: Redis
) -> None:
    headers = await key_of(redis, "acme")
    job_id = (await priced.client.post("/v1/jobs", json=line(3), headers=headers)).json()["id"]
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    predictor = await priced.predictor(job_id)
    await predictor.finish(
        {**chat_result(""), "usage": usage},
        state=JobState.INCOMPLETE,
        incomplete="content_filter",
    )
    await priced.until_told()

    assert await spent(redis, "tenant", "acme") == 9 + 2 * 2


async def test_a_budget_that_is_almost_spent_says_so(priced: Rig, redis: Redis) -> None:
    headers = await key_of(redis, "acme")
    first = await priced.client.post("/v1/jobs", json=line(1), headers=headers)
    assert "torpor-budget" not in first.headers
    close = await priced.client.post("/v1/jobs", json=line(16), headers=headers)
    assert close.headers["torpor-budget"].startswith("tenant; spent=0.0000; held=")


async def test_a_key_has_a_budget_of_its_own(priced: Rig, redis: Redis) -> None:
    own = await key_of(redis, "beta", budget=20)
    await answered(priced, own)
    refused = await priced.client.post("/v1/jobs", json=line(20), headers=own)
    assert refused.status_code == 429
    assert "the key's budget is 20 a month" in refused.json()["detail"]
    await answered(priced, await key_of(redis, "beta"))  # another key of the tenant


async def test_a_keys_budget_holds_for_its_events_too(priced: Rig, redis: Redis) -> None:
    own = await key_of(redis, "beta", budget=10)
    event = {
        "specversion": "1.0",
        "type": "dev.torpor.inference.requested.v1",
        "source": "/shop",
        "id": "1",
        "data": line(20),
    }
    headers = {**own, "content-type": "application/cloudevents+json"}
    refused = await priced.client.post("/v1/events", json=event, headers=headers)
    assert refused.status_code == 429
    assert "the key's budget is 10 a month" in refused.json()["detail"]


async def test_a_redriven_job_is_paid_by_its_key_again(priced: Rig, redis: Redis) -> None:
    own = await key_of(redis, "beta", budget=40)
    answer = await priced.client.post("/v1/jobs", json=line(3), headers=own)
    job_id = str(answer.json()["id"])
    await (await priced.predictor(job_id)).fail("engine_broke")
    await priced.until_told()
    path = f"/v1/dead-letters/{job_id}/redrive"
    assert (await priced.client.post(path, headers=own)).status_code == 202
    await (await priced.predictor(job_id)).finish(chat_result("hello"))
    await priced.until_told()
    key_id = own["authorization"].split("_")[1]
    # The first life broke off after the prompt, which its provider takes money for.
    assert await spent(redis, "key", key_id) == 1 + COST


async def test_a_repeated_submit_holds_once(priced: Rig, redis: Redis) -> None:
    headers = {**await key_of(redis, "acme"), "idempotency-key": "once"}
    for _ in range(3):
        answer = await priced.client.post("/v1/jobs", json=line(5), headers=headers)
        assert answer.status_code == 202
    job_id = answer.json()["id"]
    holds = [name for name in await redis.hkeys(keys.budget("tenant", "acme")) if b"hold" in name]
    assert holds == [f"hold:{job_id}".encode()]


async def at_once(rig: Rig, count: int, headers: dict[str, str], body: object) -> list[int]:
    """The statuses of submits that are sent together."""
    sent = (rig.client.post("/v1/jobs", json=body, headers=headers) for _ in range(count))
    return [answer.status_code for answer in await asyncio.gather(*sent)]


async def test_eight_repeats_at_once_at_the_edge_of_the_budget_are_one_job(
    priced: Rig, redis: Redis
) -> None:
    # 41 of 40 would be held by two of them.
    headers = {**await key_of(redis, "acme"), "idempotency-key": "once"}
    assert await at_once(priced, 8, headers, line(15)) == [202] * 8
    assert len(await holds_of(redis)) == 1
    job_id = (await priced.client.post("/v1/jobs", json=line(15), headers=headers)).json()["id"]
    await (await priced.predictor(job_id)).finish(chat_result("hello"))
    await priced.until_told()
    assert await at_once(priced, 8, headers, line(15)) == [200] * 8
    assert await spent(redis, "tenant", "acme") == COST
    assert await holds_of(redis) == []


async def test_a_repeat_of_another_process_waits_for_the_first_one(
    priced: Rig, redis: Redis, store: RedisStore, broker: FakeBroker
) -> None:
    headers = {**await key_of(redis, "acme"), "idempotency-key": "twice"}
    async with rig_over(priced.parts.settings, store, broker) as other:
        both = await asyncio.gather(
            *(at_once(each, 4, headers, line(15)) for each in (priced, other))
        )
    assert both == [[202] * 4] * 2
    assert len(await holds_of(redis)) == 1


@pytest.mark.parametrize("limits", [{"tokens_per_minute": 30}, {"jobs_in_flight": 1}])
async def test_repeats_at_once_at_the_edge_of_another_limit_are_one_job(
    api_settings: ApiSettings,
    store: RedisStore,
    broker: FakeBroker,
    redis: Redis,
    limits: dict[str, int],
) -> None:
    limited = {"keys_source": "redis", "tenant_limits": {"acme": TenantLimits(**limits)}}
    async with rig_over(api_settings.model_copy(update=limited), store, broker) as rig:
        headers = {**await key_of(redis, "acme"), "idempotency-key": "once"}
        assert await at_once(rig, 8, headers, line(20)) == [202] * 8
        headers["idempotency-key"] = "another"
        assert await at_once(rig, 1, headers, line(20)) == [429]


async def test_repeats_of_an_event_are_paid_by_what_the_first_one_held(
    priced: Rig, redis: Redis
) -> None:
    event = {
        "specversion": "1.0",
        "type": "dev.torpor.inference.requested.v1",
        "source": "/shop",
        "id": "7",
        "data": line(15),
    }
    headers = await key_of(redis, "acme") | {"content-type": "application/cloudevents+json"}
    sent = [priced.client.post("/v1/events", json=event, headers=headers) for _ in range(4)]
    answers = await asyncio.gather(*sent)
    assert [answer.status_code for answer in answers] == [202] * 4
    (hold,) = await holds_of(redis)
    predictor = await priced.predictor(hold.removeprefix("hold:"))
    await predictor.finish(chat_result("hello"))
    await priced.until_told()
    assert await spent(redis, "tenant", "acme") == COST


async def test_a_submit_that_is_no_job_holds_nothing(priced: Rig, redis: Redis) -> None:
    headers = {**await key_of(redis, "acme"), "idempotency-key": "once"}
    assert await at_once(priced, 1, headers, line(5)) == [202]
    (hold,) = await holds_of(redis)
    assert await at_once(priced, 1, headers, line(6)) == [409]  # the key has another body
    assert await holds_of(redis) == [hold]
    broken = {**await key_of(redis, "acme"), "idempotency-key": "other"}
    priced.parts.submission.intake._route._max_unpublished = 0  # type: ignore[union-attr]
    assert await at_once(priced, 1, broken, line(5)) == [503]
    assert await holds_of(redis) == [hold]


async def holds_of(redis: Redis) -> list[str]:
    """What jobs hold of the tenant's budget."""
    names = await redis.hkeys(keys.budget("tenant", "acme"))
    return [name.decode() for name in names if name.startswith(b"hold:")]


async def test_jobs_that_were_never_recorded_hold_nothing_for_long(
    priced: Rig, redis: Redis
) -> None:
    account = keys.budget("tenant", "acme")
    await redis.hset(account, f"hold:{JobId('job_lost')}", "39000000 1000")
    await answered(priced, await key_of(redis, "acme"))
    assert await redis.hget(account, "hold:job_lost") is None


async def test_eight_processes_and_a_paused_store_spend_no_more_than_the_budget(
    redis: Redis, redis_url: str
) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.integration.api.budget_process"),
            *(redis_url, f"p{number}", "20", "1.5", "90"),
            stdout=asyncio.subprocess.PIPE,
        )
        for number in range(8)
    ]
    async with asyncio.timeout(60):
        while not await redis.exists(keys.budget("tenant", "acme")):
            await asyncio.sleep(0.01)
        await redis.client_pause(300)
        said = await asyncio.gather(*(each.communicate() for each in processes))
    assert sum(int(out) for out, _ in said) == 60  # 60 * 1.5 = 90


async def test_months_are_those_of_the_calendar(redis: Redis) -> None:
    text = files("eventing.redis.scripts").joinpath("_budget.lua").read_text(encoding="utf-8")
    script = redis.register_script(
        text
        + "local found = {} for i, day in ipairs(ARGV) do local month, to = month_of(tonumber(day)) "
        "found[i] = month .. ' ' .. string.format('%d', to) end return found"
    )
    epoch = datetime.date(1970, 1, 1)
    days = [*range(19_000, 24_000), (datetime.date(2100, 2, 28) - epoch).days]
    told = await script(args=days)
    for day, said in zip(days, told, strict=True):
        date = epoch + datetime.timedelta(days=day)
        length = calendar.monthrange(date.year, date.month)[1]
        ends = (date.replace(day=length) - epoch).days + 1
        assert said.decode() == f"{date:%Y-%m} {ends}"

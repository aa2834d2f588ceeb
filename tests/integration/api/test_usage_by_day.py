"""What a tenant used, by day and key: counted once an ended job, read as JSON and as CSV."""

import asyncio
import csv
import io
import os
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from api.settings import ApiSettings, TenantLimits
from eventing.api_key import RedisKeys, mint
from eventing.job.job import JobId, JobRequest
from eventing.job.store import NewJob
from eventing.redis import keys
from eventing.settings import ModelCard
from eventing.store.redis_store import RedisStore
from eventing.telemetry.metric.ledger import Ledger, LostTokens
from eventing.telemetry.usage import DAY_S, UsageRecords
from tests.integration.api.conftest import NOW_S, Rig, chat_line, rig_over
from tests.integration.api.fakes import FakeBroker, FakePredictor, chat_result
from tests.integration.stack import TORPOR

COMPLETIONS = "/v1/organization/usage/completions"
COSTS = "/v1/organization/costs"
CARD = ModelCard(
    name="m", context_tokens=64, input_price_per_1m=1_000_000, output_price_per_1m=2_000_000
)
"""One for a token of the prompt, two for one of the answer; a chat of the fakes costs 7 + 2 * 3."""
COST = 13.0
OWN = ModelCard(name="own", context_tokens=64)
Headers = dict[str, str]


def settings_of(base: ApiSettings) -> ApiSettings:
    return base.model_copy(
        update={
            "models": (CARD, OWN),
            "keys_source": "redis",
            "gpu_price_per_hour": 3600.0,
            "tenant_limits": {"acme": TenantLimits(budget_per_month=1000)},
        }
    )


@pytest.fixture
async def priced(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> AsyncIterator[Rig]:
    async with rig_over(settings_of(api_settings), store, broker) as made:
        yield made


async def key_of(redis: Redis, tenant: str, *scopes: str) -> tuple[str, Headers]:
    more = {"scopes": scopes} if scopes else {}
    key, text = mint(tenant, now_s=NOW_S, **more)
    await RedisKeys(redis).put(key)
    return key.id, {"authorization": f"Bearer {text}"}


async def submitted(rig: Rig, headers: Headers, model: str = "m", **more: Any) -> FakePredictor:
    answer = await rig.client.post("/v1/jobs", json=chat_line(model=model, **more), headers=headers)
    assert answer.status_code == 202, answer.text
    return await rig.predictor(answer.json()["id"])


async def answered(rig: Rig, headers: Headers, model: str = "m") -> str:
    predictor = await submitted(rig, headers, model)
    await predictor.finish(chat_result("hello"))
    return predictor.job_id


async def results(rig: Rig, headers: Headers, path: str = COMPLETIONS, **query: Any) -> list[Any]:
    """All results of today, once every end was told."""
    await rig.until_told()
    answer = await rig.client.get(path, headers=headers, params=query)
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert page["object"] == "page"
    return [each for bucket in page["data"] for each in bucket["results"]]


async def test_a_tenant_reads_its_usage_by_key_and_model(priced: Rig, redis: Redis) -> None:
    (first, one), (second, two) = [await key_of(redis, "acme") for _ in range(2)]
    await answered(priced, one)
    await answered(priced, one, "own")
    await answered(priced, two)
    _, stranger = await key_of(redis, "beta")
    await answered(priced, stranger)

    (all_of_it,) = await results(priced, one)
    by_key = await results(priced, one, group_by="api_key_id")
    by_both = await results(priced, one, **{"group_by[]": ["api_key_id", "model"]})
    only = await results(priced, one, models="own", api_key_ids=f"{first},{second}")

    assert all_of_it["object"] == "organization.usage.completions.result"
    assert all_of_it["num_model_requests"] == 3
    assert (all_of_it["input_tokens"], all_of_it["output_tokens"]) == (21, 9)
    assert all_of_it["ended"] == {"completed": 3, "incomplete": 0, "failed": 0, "cancelled": 0}
    assert (all_of_it["api_key_id"], all_of_it["model"]) == (None, None)
    assert {each["api_key_id"]: each["num_model_requests"] for each in by_key} == {
        first: 2,
        second: 1,
    }
    assert {(each["api_key_id"], each["model"]): each["cost"] for each in by_both} == {
        (first, "m"): COST,
        (first, "own"): 0.0,
        (second, "m"): COST,
    }
    assert [each["num_model_requests"] for each in only] == [1]


async def test_costs_are_what_is_counted_against_the_budget(priced: Rig, redis: Redis) -> None:
    _, headers = await key_of(redis, "acme")
    for _ in range(2):
        await answered(priced, headers)
    dead = await submitted(priced, headers)
    await dead.say({"delta": {"content": "a"}}, tokens=2)
    await dead.fail("engine_broke")

    (cost,) = await results(priced, headers, COSTS)

    spent = int(await redis.hget(keys.budget("tenant", "acme"), "spent") or 0) / 1_000_000
    assert cost["amount"] == {"value": spent, "currency": "usd"}
    assert spent > 2 * COST


async def test_a_day_is_read_as_a_table(priced: Rig, redis: Redis) -> None:
    key_id, headers = await key_of(redis, "acme")
    await answered(priced, headers)
    await priced.until_told()
    query = {"group_by": "api_key_id"}

    asked = await priced.client.get(COMPLETIONS, headers=headers, params={**query, "format": "csv"})
    named = {**headers, "accept": "text/csv, application/json"}
    accepted = await priced.client.get(COMPLETIONS, headers=named, params=query)

    assert asked.headers["content-type"] == "text/csv; charset=utf-8"
    assert accepted.text == asked.text
    (row,) = csv.DictReader(io.StringIO(asked.text))
    assert (row["api_key_id"], row["input_tokens"], row["output_tokens"]) == (key_id, "7", "3")
    assert (row["ended_completed"], row["cost"], row["model"]) == ("1", "13.0", "")


async def test_no_cell_of_a_table_is_a_formula(priced: Rig, redis: Redis) -> None:
    day = await UsageRecords(redis).today()
    await redis.hset(
        keys.usage_of("acme", day), "/v1/completions|m|=HYPERLINK(1)", '{"completed":1}'
    )
    _, headers = await key_of(redis, "acme")
    query = {"group_by": "api_key_id", "format": "csv"}
    table = (await priced.client.get(COMPLETIONS, headers=headers, params=query)).text
    (row,) = csv.DictReader(io.StringIO(table))
    assert row["api_key_id"] == "'=HYPERLINK(1)"


async def test_pages_go_on_until_today(priced: Rig, redis: Redis) -> None:
    today = await UsageRecords(redis).today()
    for ago in range(10):
        row = "/v1/completions|m|k"
        await redis.hset(keys.usage_of("acme", today - ago), row, f'{{"completed":{ago + 1}}}')
    _, headers = await key_of(redis, "acme", "jobs:read")
    query = {"start_time": (today - 9) * DAY_S + 5, "limit": 4}
    seen: list[int] = []
    for _ in range(3):
        page = (await priced.client.get(COMPLETIONS, headers=headers, params=query)).json()
        assert all(each["end_time"] - each["start_time"] == DAY_S for each in page["data"])
        seen += [r["num_model_requests"] for each in page["data"] for r in each["results"]]
        if not page["has_more"]:
            break
        query["page"] = page["next_page"]
    assert seen == list(range(10, 0, -1))
    assert page["next_page"] is None
    table = await priced.client.get(
        COMPLETIONS, headers=headers, params={"start_time": 0, "format": "csv"}
    )
    assert table.headers["link"].endswith('rel="next"')


@pytest.mark.parametrize(
    "query",
    [
        {"bucket_width": "1h"},
        {"group_by": "project_id"},
        {"page": "x"},
        {"limit": "32"},
        {"start_time": "-1"},
        {"start_time": "1" * 40},
    ],
)
async def test_what_is_not_kept_is_refused_by_name(priced: Rig, redis: Redis, query: Any) -> None:
    _, headers = await key_of(redis, "acme")
    refused = await priced.client.get(COMPLETIONS, headers=headers, params=query)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == next(iter(query))


async def test_a_redriven_job_counts_what_each_life_used(priced: Rig, redis: Redis) -> None:
    _, headers = await key_of(redis, "acme", "jobs:read", "jobs:write", "admin")
    dead = await submitted(priced, headers, "own")
    await Ledger(redis).charge(dead.job_id, 2000)
    await dead.fail("engine_broke")
    await priced.until_told()
    path = f"/v1/dead-letters/{dead.job_id}/redrive"
    assert (await priced.client.post(path, headers=headers)).status_code in (200, 202)
    again = await priced.predictor(dead.job_id)
    await Ledger(redis).charge(dead.job_id, 3000)
    await again.finish(chat_result("hello"))

    (used,) = await results(priced, headers)

    assert used["ended"] == {"completed": 1, "incomplete": 0, "failed": 1, "cancelled": 0}
    assert used["dead_letters"] == 1
    assert (used["gpu_seconds"], used["cost"]) == (5.0, 5.0)
    assert (used["input_tokens"], used["output_tokens"]) == (7, 3)
    spent = int(await redis.hget(keys.budget("tenant", "acme"), "spent") or 0) / 1_000_000
    assert spent == 5.0


@pytest.mark.parametrize(("model", "saved"), [("m", 2 * COST), ("own", 2 * 5.0)])
async def test_kept_answers_and_those_of_running_jobs_are_saved_tokens_and_money(
    priced: Rig, redis: Redis, model: str, saved: float
) -> None:
    _, headers = await key_of(redis, "acme")
    asked = {**headers, "cache-control": "max-age=600"}
    first = await submitted(priced, asked, model)
    follower = await priced.client.post("/v1/jobs", json=chat_line(model=model), headers=asked)
    assert follower.json()["follows"] == first.job_id
    if model == "own":
        await Ledger(redis).charge(first.job_id, 5000)  # at one a second
    await first.finish(chat_result("hello"))
    await priced.until_told()
    hit = await priced.client.post("/v1/jobs", json=chat_line(model=model), headers=asked)
    assert hit.json()["cache"]["status"] == "hit"

    (used,) = await results(priced, headers)

    assert used["ended"]["completed"] == used["num_model_requests"] == 3
    assert (used["input_tokens"], used["output_tokens"]) == (7, 3)
    assert used["saved"] == {
        "exact": 1,
        "coalesced": 1,
        "semantic": 0,
        "input_tokens": 14,
        "output_tokens": 6,
        "cost": saved,
    }
    assert used["cost"] == saved / 2


async def test_what_was_spent_beside_an_answer_is_in_its_cost_and_in_line_items(
    priced: Rig, redis: Redis
) -> None:
    _, headers = await key_of(redis, "acme")
    first = await submitted(priced, headers)
    lost = LostTokens(model="m", prompt=5, answer=2)
    await Ledger(redis).charge(first.job_id, 0, lost)  # its provider broke off
    await first.finish(chat_result("hello"))

    (used,) = await results(priced, headers)
    items = await results(priced, headers, COSTS, group_by="line_item")
    job = (await priced.client.get(f"/v1/jobs/{first.job_id}", headers=headers)).json()

    retried = 5 + 2 * 2
    assert job["cost"]["by_kind"] == {"answer": COST, "retried": retried}
    assert job["cost"]["cost"] == used["cost"] == COST + retried
    assert used["spent_beside"]["retried"] == {"tokens": 7, "cost": retried}
    assert used["input_tokens"] == 7 + 5
    assert {each["line_item"]: each["amount"]["value"] for each in items} == {
        "answer": COST,
        "retried": retried,
    }
    spent = int(await redis.hget(keys.budget("tenant", "acme"), "spent") or 0) / 1_000_000
    assert spent == COST + retried
    assert job["result"]["usage"] == chat_result("")["usage"]  # what OpenAI's clients read


async def test_a_job_whose_every_attempt_broke_off_costs_them_all(
    priced: Rig, redis: Redis
) -> None:
    _, headers = await key_of(redis, "acme")
    first = await submitted(priced, headers)
    for _ in range(2):
        await Ledger(redis).charge(first.job_id, 0, LostTokens(model="m", prompt=5, answer=2))
    await first.fail("upstream_failed")

    (used,) = await results(priced, headers)

    assert used["cost"] == 2 * (5 + 2 * 2)
    assert used["ended"]["failed"] == 1


async def test_gpu_time_that_is_charged_after_a_cancel_is_counted(
    priced: Rig, redis: Redis
) -> None:
    _, headers = await key_of(redis, "acme")
    running = await submitted(priced, headers, "own")
    await Ledger(redis).charge(running.job_id, 1000)
    path = f"/v1/jobs/{running.job_id}"
    assert (await priced.client.delete(path, headers=headers)).status_code == 200
    await Ledger(redis).charge(running.job_id, 500)

    (used,) = await results(priced, headers)

    assert used["ended"]["cancelled"] == 1
    assert (used["gpu_seconds"], used["cost"]) == (1.5, 1.5)
    (cost,) = await results(priced, headers, COSTS)
    assert cost["amount"]["value"] == 1.5
    budgets = (await priced.client.get("/v1/tenant", headers=headers)).json()["budgets"]
    assert budgets[0]["spent"] == 1.5
    await priced.client.post("/v1/jobs", json=chat_line(), headers=headers)
    assert int(await redis.hget(keys.budget("tenant", "acme"), "spent") or 0) == 1_500_000


async def typed(*words: str, **env: str) -> str:
    """What a command prints."""
    process = await asyncio.create_subprocess_exec(
        TORPOR, *words, stdout=PIPE, stderr=PIPE, env=os.environ | env
    )
    said, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode()
    return said.decode()


async def test_the_command_line_prints_days_and_forgets_a_tenant(
    priced: Rig, redis: Redis, redis_url: str
) -> None:
    key_id, headers = await key_of(redis, "acme")
    await answered(priced, headers)
    await priced.until_told()
    key = headers["authorization"].split()[1]
    words = ("usage", "--days", "2", "--by", "key", "--api", priced.url)

    table = await typed(*words, "--csv", TORPOR_API_KEY=key)
    shown = await typed(*words, TORPOR_API_KEY=key, COLUMNS="200")
    await typed("keys", "forget", "acme", "--yes", "--redis-url", redis_url)

    (row,) = csv.DictReader(io.StringIO(table))
    assert (row["api_key_id"], row["input_tokens"]) == (key_id, "7")
    assert key_id in shown
    assert await RedisKeys(redis).list("acme") == []
    assert not await redis.exists(keys.budget("tenant", "acme"))
    day = await UsageRecords(redis).today()
    assert await UsageRecords(redis).days("acme", [day]) == [[]]


async def test_a_tenant_that_is_forgotten_has_used_nothing(priced: Rig, redis: Redis) -> None:
    _, headers = await key_of(redis, "acme")
    _, other = await key_of(redis, "beta")
    await answered(priced, headers)
    await answered(priced, other)
    await priced.until_told()

    assert await UsageRecords(redis).erase("acme") == 1

    assert await results(priced, headers) == []
    assert len(await results(priced, other)) == 1
    rows = await Ledger(redis).since(3600)
    assert ("tenant", "acme") not in rows
    assert rows["tenant", "beta"]["jobs"] == 1


async def test_a_day_expires(priced: Rig, redis: Redis) -> None:
    _, headers = await key_of(redis, "acme")
    await answered(priced, headers)
    await priced.until_told()
    day = await UsageRecords(redis).today()
    assert 99 * DAY_S < await redis.ttl(keys.usage_of("acme", day)) <= 100 * DAY_S


async def test_moderations_are_no_completions(priced: Rig, store: RedisStore, redis: Redis) -> None:
    _, headers = await key_of(redis, "acme")
    body = {"model": "judge", "input": "hello"}
    asked = NewJob(
        id=JobId("job_000000000000000000000001"),
        request=JobRequest(url="/v1/moderations", body=body),
        source="/x",
        event_id="1",
        tenant="acme",
    )
    await store.submit(asked)
    judge = await FakePredictor(store, asked.id).start()
    await judge.finish({"id": "modr-1", "model": "judge", "results": []})

    (of_moderations,) = await results(priced, headers, "/v1/organization/usage/moderations")
    of_completions = await results(priced, headers)

    assert of_moderations["object"] == "organization.usage.moderations.result"
    assert of_moderations["num_model_requests"] == 1
    assert of_completions == []

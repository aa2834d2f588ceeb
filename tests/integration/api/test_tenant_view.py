"""A tenant's own view: its limits, its usage over time, its keys."""

import asyncio
import json
import os
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from api.settings import TenantLimits
from eventing.cloudevent.event import Event, build_binary
from eventing.cloudevent.job_event import REQUESTED
from eventing.job.job import MODELS, JobId
from eventing.store.redis_store import RedisStore
from eventing.telemetry.metric.ledger import SLICE_S, Ledger
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.conftest import chat_line, headers_of
from tests.integration.stack import TORPOR

Headers = dict[str, str]


@pytest.fixture
async def api(
    redis_url: str, store: RedisStore, redis: Redis, tmp_path: Path
) -> AsyncIterator[ApiWithJobs]:
    settings = settings_for(
        redis_url,
        keys_source="redis",
        files_url=f"file://{tmp_path}",
        gpu_price_per_hour=360,
        limit_jobs_in_flight=10,
        tenant_limits={"acme": TenantLimits(requests_per_minute=50, tokens_per_minute=1000)},
    )
    async with api_with_jobs(settings, store) as made:
        yield made


async def get(api: ApiWithJobs, path: str, headers: Headers, **query: Any) -> Any:
    return (await api.client.get(path, headers=headers, params=query)).json()


async def test_a_tenant_sees_its_scopes_its_limits_and_how_much_is_used(
    api: ApiWithJobs, acme: Headers
) -> None:
    line = chat_line()
    line["body"]["max_tokens"] = 10
    assert (await api.client.post("/v1/jobs", json=line, headers=acme)).status_code == 202

    tenant = await get(api, "/v1/tenant", acme)

    limits = tenant["limits"]
    assert (tenant["id"], len(tenant["key_id"])) == ("acme", 16)
    assert "jobs:read" in tenant["scopes"]
    assert (limits["requests_per_minute"]["limit"], limits["requests_per_minute"]["used"]) == (
        50,
        1,
    )
    assert limits["tokens_per_minute"]["used"] >= 10
    assert (limits["jobs_in_flight"]["limit"], limits["jobs_in_flight"]["used"]) == (10, 1)
    assert limits["file_bytes"]["used"] == 0


async def test_a_tenant_sees_its_own_usage_by_steps_of_time_and_no_other_tenants(
    api: ApiWithJobs, acme: Headers, other: Headers, redis: Redis
) -> None:
    ledger = Ledger(redis)
    await ledger.post({("tenant", "acme"): {"gpu_ms": 4000, "jobs": 2, "delivered_tokens": 7}})
    await ledger.post({("model", "m"): {"busy_ms": 4000, "kept_ms": 4000, "idle_ms": 4000}})
    before = int((await redis.time())[0]) // SLICE_S * SLICE_S - 3 * SLICE_S
    await redis.hset(f"torpor:{{ledger}}:{before}", "tenant|jobs|acme", 5)

    query = {"since_s": 3600, "step_s": SLICE_S}
    used = await get(api, "/v1/tenant/usage", acme, **query)
    nothing = await get(api, "/v1/tenant/usage", other, **query)

    assert (used["total"]["jobs"], used["total"]["output_tokens"]) == (7, 7)
    assert (used["total"]["cost"], used["total"]["cost_all_in"]) == (0.4, 0.8)
    by_time = {each["at_ms"] // 1000: each["jobs"] for each in used["series"]}
    assert by_time[before] == 5
    assert sum(by_time.values()) == 7
    assert nothing["total"]["jobs"] == 0
    assert (await api.client.get("/v1/usage", headers=acme)).status_code == 200


async def test_steps_are_summed_to_what_a_period_used(ledger_of: Ledger, redis: Redis) -> None:
    now_s = int((await redis.time())[0])
    for back in range(20):
        at = now_s // SLICE_S * SLICE_S - back * SLICE_S
        await redis.hset(f"torpor:{{ledger}}:{at}", "model|jobs|m", 1)

    series = await ledger_of.series(4 * 3600, 3600)

    assert sum(rows.get(("model", "m"), {}).get("jobs", 0) for _, rows in series) == 20
    assert {later - sooner for (sooner, _), (later, _) in pairwise(series)} == {3600}


@pytest.fixture
def ledger_of(redis: Redis) -> Ledger:
    return Ledger(redis)


async def test_the_command_line_shows_a_tenant_its_own_where_its_key_may_not_see_every_one(
    api: ApiWithJobs, redis: Redis
) -> None:
    await Ledger(redis).post({("tenant", "acme"): {"gpu_ms": 4000, "jobs": 7}})
    key = (await headers_of(redis, "acme", "jobs:read"))["authorization"].split()[1]

    said = await torpor("usage", "--json", api=api.url, key=key)
    retried = await torpor("jobs", "--state", "incomplete", "--json", api=api.url, key=key)

    assert (said["tenant"], said["total"]["jobs"]) == ("acme", 7)
    assert said["limits"]["requests_per_minute"]["limit"] == 50
    assert retried["data"] == []


async def torpor(*words: str, api: str, key: str) -> Any:
    """What a command prints as JSON."""
    env = os.environ | {"TORPOR_API_KEY": key}
    process = await asyncio.create_subprocess_exec(
        TORPOR, *words, "--api", api, stdout=PIPE, stderr=PIPE, env=env
    )
    said, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode()
    return json.loads(said)


class TestKeys:
    async def test_a_key_uses_its_models_only_and_makes_none_that_use_more(
        self, api: ApiWithJobs, acme: Headers, store: RedisStore
    ) -> None:
        async def make(by: Headers, **body: Any) -> httpx.Response:
            scopes = ["admin", "jobs:write"]
            return await api.client.post("/v1/keys", json={"scopes": scopes, **body}, headers=by)

        made = (await make(acme, models=["m", "n"])).json()
        narrow = {"authorization": f"Bearer {made['key']}"}
        other = {"authorization": f"Bearer {(await make(acme, models=['n'])).json()['key']}"}
        wider = await make(narrow, models=["m", "o"])
        same = await make(narrow)
        taken = await api.client.post("/v1/jobs", json=chat_line(), headers=narrow)
        refused = await api.client.post("/v1/jobs", json=chat_line(), headers=other)
        event = Event(id="1", source="/s", type=REQUESTED, data=orjson.dumps(chat_line()))
        headers, body = build_binary(event)
        by_event = await api.client.post("/v1/events", content=body, headers={**other, **headers})
        job = await store.get(JobId(taken.json()["id"]))

        assert (made["models"], same.json()["models"]) == (["m", "n"], ["m", "n"])
        assert wider.status_code == 403
        assert (taken.status_code, refused.status_code, by_event.status_code) == (202, 403, 403)
        assert refused.json()["code"] == "model_not_allowed"
        assert job is not None
        assert job.metadata[MODELS] == "m n"
        assert (await get(api, f"/v1/jobs/{job.id}", acme))["metadata"] == {}

    async def test_a_tenant_uses_its_models_only(
        self, redis_url: str, store: RedisStore, redis: Redis
    ) -> None:
        limits = {"acme": TenantLimits(models=("n",))}
        settings = settings_for(redis_url, keys_source="redis", tenant_limits=limits)
        async with api_with_jobs(settings, store) as api:
            acme, other = await headers_of(redis, "acme"), await headers_of(redis, "other")
            answers = [
                await api.client.post("/v1/jobs", json=chat_line(), headers=each)
                for each in (acme, other)
            ]

        assert [answer.status_code for answer in answers] == [403, 202]

    async def test_a_key_is_made_used_rotated_and_revoked(
        self, api: ApiWithJobs, acme: Headers
    ) -> None:
        body = {"name": "ci", "scopes": ["jobs:read"], "expires_after_s": 3600}
        made = (await api.client.post("/v1/keys", json=body, headers=acme)).json()
        bearer = {"authorization": f"Bearer {made['key']}"}
        reads = await api.client.get("/v1/jobs", headers=bearer)
        writes = await api.client.post("/v1/jobs", json=chat_line(), headers=bearer)

        rotated = await api.client.post(f"/v1/keys/{made['id']}/rotate", headers=acme)
        listed = await get(api, "/v1/keys", acme)
        gone = await api.client.delete(f"/v1/keys/{rotated.json()['id']}", headers=acme)
        bearer = {"authorization": f"Bearer {rotated.json()['key']}"}
        refused = await api.client.get("/v1/jobs", headers=bearer)

        assert (reads.status_code, writes.status_code) == (200, 403)
        assert made["expires_at"] - made["created_at"] == 3600
        assert len(listed["data"]) == 3
        assert all("key" not in key and "digest" not in key for key in listed["data"])
        assert (gone.status_code, refused.status_code) == (200, 401)

    async def test_a_credential_gives_no_more_than_it_has(
        self, api: ApiWithJobs, redis: Redis
    ) -> None:
        small = await headers_of(redis, "acme", "admin", "jobs:read")
        wide = await headers_of(redis, "acme", "jobs:write", "metrics:read")
        wide_id = wide["authorization"].split("_")[1]

        answers = [
            await api.client.post("/v1/keys", json={"scopes": ["metrics:read"]}, headers=small),
            await api.client.post(f"/v1/keys/{wide_id}/rotate", headers=small),
            await api.client.post("/v1/keys", json={}, headers=wide),
        ]
        usual = await api.client.post("/v1/keys", json={}, headers=small)

        assert [answer.status_code for answer in answers] == [403, 403, 403]
        assert usual.json()["scopes"] == ["jobs:read"]

    async def test_another_tenants_keys_are_not_there(
        self, api: ApiWithJobs, acme: Headers, other: Headers
    ) -> None:
        (mine,) = (await get(api, "/v1/keys", acme))["data"]

        revoked = await api.client.delete(f"/v1/keys/{mine['id']}", headers=other)
        rotated = await api.client.post(f"/v1/keys/{mine['id']}/rotate", headers=other)

        assert (revoked.status_code, rotated.status_code) == (404, 404)
        assert len((await get(api, "/v1/keys", acme))["data"]) == 1

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"scopes": []}, "scopes"),
            ({"scopes": ["all"]}, "scopes"),
            ({"name": 7}, "name"),
            ({"expires_after_s": 0}, "expires_after_s"),
            ({"requests_per_minute": True}, "requests_per_minute"),
        ],
        ids=["no scope", "an unknown scope", "a name", "no time", "a flag"],
    )
    async def test_a_bad_field_is_named(
        self, api: ApiWithJobs, acme: Headers, body: dict[str, Any], field: str
    ) -> None:
        answer = await api.client.post("/v1/keys", json=body, headers=acme)

        assert (answer.status_code, answer.json()["field"]) == (422, field)

    async def test_a_key_has_a_limit_of_its_own_beside_its_tenants(
        self, api: ApiWithJobs, acme: Headers
    ) -> None:
        body = {"requests_per_minute": 2, "scopes": ["jobs:read", "jobs:write"]}
        made = (await api.client.post("/v1/keys", json=body, headers=acme)).json()
        bearer = {"authorization": f"Bearer {made['key']}"}

        answers = [
            await api.client.post("/v1/jobs", json=chat_line(), headers=bearer) for _ in range(3)
        ]
        beside = await api.client.post("/v1/jobs", json=chat_line(), headers=acme)
        limits = (await get(api, "/v1/tenant", bearer))["limits"]

        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert beside.status_code == 202
        assert limits["key_requests_per_minute"]["used"] == 2

    async def test_where_keys_are_not_in_redis_there_are_none_to_make(
        self, redis_url: str, store: RedisStore
    ) -> None:
        async with api_with_jobs(settings_for(redis_url), store) as api:
            answer = await api.client.get("/v1/keys")

        assert (answer.status_code, "TORPOR_KEYS_SOURCE" in answer.json()["detail"]) == (404, True)

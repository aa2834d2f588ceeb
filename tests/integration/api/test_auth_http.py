"""Keys over HTTP: tenants do not see each other, scopes hold, the broker is asked for its token."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from eventing.api_key import FileKeys, RedisKeys, mint
from eventing.errors import BadRequest
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.conftest import NOW_S, chat_line, headers_of
from tests.integration.api.fakes import FakePredictor
from tests.time_limits import STORE_S
from torpor.cli.app import assembled

TOKEN = "broker-token-of-24-bytes"


@pytest.fixture
async def api(redis_url: str, store: RedisStore, redis: Redis) -> AsyncIterator[ApiWithJobs]:
    settings = settings_for(redis_url, keys_source="redis", delivery_token=TOKEN)
    async with api_with_jobs(settings, store) as made:
        yield made


async def test_a_job_belongs_to_the_keys_tenant(api: ApiWithJobs, acme: dict[str, str]) -> None:
    job_id = await api.submit(headers=acme)

    job = await api.client.get(f"/v1/jobs/{job_id}", headers=acme)

    assert job.status_code == 200
    assert api.broker.events[0].extensions["tenant"] == "acme"


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/models", "/v1/webhook_endpoints"])
@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer nonsense"}], ids=["no key", "a wrong key"]
)
async def test_without_a_key_the_answer_is_401(
    api: ApiWithJobs, path: str, headers: dict[str, str]
) -> None:
    answer = await api.client.get(path, headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/health", "/docs", "/openapi.json"])
async def test_routes_without_tenant_data_need_no_key(api: ApiWithJobs, path: str) -> None:
    assert (await api.client.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("scopes", "method", "path", "status"),
    [
        (("jobs:read",), "POST", "/v1/jobs", 403),
        (("jobs:write",), "POST", "/v1/jobs", 202),
        (("jobs:write",), "GET", "/v1/jobs", 403),
        (("jobs:write",), "DELETE", "/v1/jobs/job_000000000000000000000000", 403),
        (("jobs:cancel",), "DELETE", "/v1/jobs/job_000000000000000000000000", 404),
        (("jobs:read",), "POST", "/v1/dead-letters/redrive", 403),
        (("jobs:read", "jobs:write"), "POST", "/v1/webhook_endpoints", 403),
    ],
)
async def test_a_key_may_what_its_scopes_say(
    api: ApiWithJobs, redis: Redis, scopes: tuple[str, ...], method: str, path: str, status: int
) -> None:
    headers = await headers_of(redis, "acme", *scopes)

    answer = await api.client.request(method, path, json=chat_line(), headers=headers)

    assert answer.status_code == status


async def test_an_event_cannot_speak_for_another_tenant(
    api: ApiWithJobs, acme: dict[str, str]
) -> None:
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "/shop",
        "type": "dev.torpor.inference.requested.v1",
        "tenant": "other",
        "data": chat_line(),
    }
    headers = acme | {"content-type": "application/cloudevents+json"}

    await api.client.post("/v1/events", json=event, headers=headers)

    assert api.broker.events[0].extensions["tenant"] == "acme"


@pytest.mark.parametrize(
    ("token", "status"), [(TOKEN, 202), ("", 401), ("wrong", 401), (TOKEN + "x", 401)]
)
async def test_only_the_broker_delivers_results(
    api: ApiWithJobs, acme: dict[str, str], token: str, status: int
) -> None:
    job_id = await api.submit(headers=acme)
    await (await FakePredictor(api.store, job_id).start()).finish({"choices": []})

    assert (await api.deliver(job_id, token)).status_code == status


async def test_a_tenants_key_cannot_deliver_results(api: ApiWithJobs, acme: dict[str, str]) -> None:
    job_id = await api.submit(headers=acme)
    await (await FakePredictor(api.store, job_id).start()).finish({"choices": []})

    assert (await api.deliver(job_id, acme["authorization"].split()[1])).status_code == 403


async def test_the_store_away_is_a_503_and_no_401(
    redis_server: object, store: RedisStore, redis_url: str, redis: Redis
) -> None:
    server = redis_server(options=["--appendonly", "no"])  # type: ignore[operator]
    server.start()
    settings = settings_for(server.url, keys_source="redis", store_timeout_s=STORE_S)
    away = RedisStore(connect(server.url, timeout_s=STORE_S))
    async with api_with_jobs(settings, away) as api:
        server.kill()
        _, text = mint("acme", now_s=NOW_S)
        answer = await api.client.get("/v1/jobs", headers={"authorization": f"Bearer {text}"})
    await away.close()

    assert answer.status_code == 503


def run_torpor(*arguments: str) -> str:
    done = CliRunner().invoke(assembled("keys"), ["keys", *arguments])
    assert done.exit_code == 0, done.output
    *_, last = ["", *done.stdout.split("\n")[:-1]]  # other lines are the log of this process
    return last


async def test_a_key_from_the_command_line_authenticates(
    redis_url: str, store: RedisStore, redis: Redis, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    text = await in_thread("create", "acme", "--file", str(file), "--name", "ci")
    settings = settings_for(redis_url, keys_source=str(file))

    async with api_with_jobs(settings, store) as api:
        headers = {"authorization": f"Bearer {text}"}
        good = await api.client.get("/v1/jobs", headers=headers)
        await in_thread("revoke", text.split("_")[1], "--file", str(file))
        revoked = await api.client.get("/v1/jobs", headers=headers)

    assert (good.status_code, revoked.status_code) == (200, 401)
    assert file.stat().st_mode & 0o777 == 0o600
    assert text.rsplit("_", 1)[-1] not in file.read_text()


async def test_a_rotated_key_stays_good_for_its_overlap(redis_url: str, redis: Redis) -> None:
    where = ("--redis-url", redis_url)
    old = await in_thread("create", "acme", "--scope", "jobs:read", *where)
    new = await in_thread("rotate", old.split("_")[1], "--overlap-hours", "1", *where)

    kept = {key.id: key for key in await RedisKeys(redis).list("acme")}
    first, second = kept[old.split("_")[1]], kept[new.split("_")[1]]

    assert first.opens(old, first.expires_s - 1)
    assert not first.opens(old, first.expires_s)
    assert (second.scopes, second.expires_s) == (("jobs:read",), 0)


async def in_thread(*arguments: str) -> str:
    """The command runs an event loop of its own."""
    return await asyncio.to_thread(run_torpor, *arguments)


@pytest.mark.parametrize(
    "content",
    ["{", "{}", '[{"id": "a"}]', '[{"id":"a","tenant":"","scopes":["admin"],"digest":""}]'],
)
def test_a_key_file_that_is_none_stops_the_start(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)

    with pytest.raises(BadRequest):
        FileKeys(file)


def test_the_process_refuses_to_start_open_to_others() -> None:
    environment = os.environ | {
        "TORPOR_HOST": "0.0.0.0",
        "TORPOR_PORT": "0",
        "TORPOR_ANONYMOUS_ACCESS": "loopback",
    }

    ended = subprocess.run(
        [sys.executable, "-m", "api"], env=environment, capture_output=True, timeout=120
    )

    assert ended.returncode == 2
    assert b"TORPOR_ANONYMOUS_ACCESS=anywhere" in ended.stderr


async def test_behind_a_sidecar_a_loopback_address_gives_no_access_to_metrics(
    redis_url: str, store: RedisStore, redis: Redis
) -> None:
    """A sidecar hands on everybody's calls, and all of them come from loopback."""
    settings = settings_for(redis_url, keys_source="redis", host="0.0.0.0")
    reader = await headers_of(redis, "acme", "metrics:read")
    async with api_with_jobs(settings, store) as api:
        anybody = await api.client.get("/metrics")
        known = await api.client.get("/metrics", headers=reader)

    assert (anybody.status_code, known.status_code) == (401, 200)


async def test_metrics_are_for_this_machine_or_a_scope(
    api: ApiWithJobs, redis: Redis, acme: dict[str, str]
) -> None:
    elsewhere = httpx.ASGITransport(api.app, client=("203.0.113.7", 1))
    reader = await headers_of(redis, "acme", "metrics:read")
    stranger = await headers_of(redis, "acme", "jobs:read")
    async with httpx.AsyncClient(transport=elsewhere, base_url="http://api") as client:
        statuses = [
            (await client.get("/metrics", headers=headers)).status_code
            for headers in ({}, stranger, reader)
        ]

    assert (await api.client.get("/metrics")).status_code == 200
    assert statuses == [401, 403, 200]

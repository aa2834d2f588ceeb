"""Any producer may request a job; ending jobs and naming a tenant need the ingress token."""

from collections.abc import AsyncIterator

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from eventing.broker.access import startup_error
from eventing.broker.queue.view import QueueView
from eventing.broker.server import Broker
from eventing.cloudevent.event import STRUCTURED
from eventing.cloudevent.job_event import REQUESTED
from eventing.cloudevent.result_event import RESULT_TYPES
from tests.contract.broker.stack import NAME, trigger
from tests.contract.broker.test_ingress import settings
from tests.contract.rig import new_job

TOKEN = "b7c1"
WITH_TOKEN = {"authorization": f"Bearer {TOKEN}"}
ASKS = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": REQUESTED}
RESERVED = [
    *({"ce-type": kind} for kind in RESULT_TYPES),
    {"ce-type": "dev.torpor.inference.completed.v2"},
    {"ce-source": "/torpor/api"},
    {"ce-source": "/torpor/jobs"},
    {"ce-tenant": "acme"},
]


@pytest.fixture
async def client(redis_url: str, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    broker = Broker(settings(redis_url, ingress_token=TOKEN), [trigger("http://127.0.0.1:1/")])
    transport = httpx.ASGITransport(app=broker.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http
    await broker.close()


async def queued(redis: Redis) -> int:
    return (await QueueView(redis).depth(NAME)).total_waiting


@pytest.mark.parametrize("changes", RESERVED, ids=str)
async def test_events_that_end_jobs_or_name_a_tenant_need_the_token(
    client: httpx.AsyncClient, redis: Redis, changes: dict[str, str]
) -> None:
    answer = await client.post("/", headers=ASKS | changes)

    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert await queued(redis) == 0


@pytest.mark.parametrize("changes", RESERVED, ids=str)
async def test_the_same_in_structured_mode(
    client: httpx.AsyncClient, redis: Redis, changes: dict[str, str]
) -> None:
    envelope = {name.removeprefix("ce-"): value for name, value in (ASKS | changes).items()}

    answer = await client.post(
        "/", headers={"content-type": STRUCTURED}, content=orjson.dumps(envelope)
    )

    assert answer.status_code == 403
    assert await queued(redis) == 0


@pytest.mark.parametrize("changes", [{}, *RESERVED], ids=str)
async def test_the_token_opens_all(
    client: httpx.AsyncClient, redis: Redis, changes: dict[str, str]
) -> None:
    line = new_job().request.to_json()
    answer = await client.post("/", headers=ASKS | changes | WITH_TOKEN, content=line)

    assert answer.status_code == 202
    assert await queued(redis) == 1


async def test_a_request_for_a_job_needs_no_token(client: httpx.AsyncClient) -> None:
    assert (await client.post("/", headers=ASKS)).status_code == 202
    assert (await client.post("/", headers=ASKS | {"ce-tenant": "default"})).status_code == 202


@pytest.mark.parametrize("token", ["b7c", "b7c1b", "é"])
async def test_another_token_is_401(client: httpx.AsyncClient, token: str) -> None:
    shown = {"authorization": f"Bearer {token}".encode()}
    headers = {name: value.encode() for name, value in ASKS.items()}

    assert (await client.post("/", headers=headers | shown)).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "attacker.example"},
        {"host": "attacker.example:8081", "origin": "http://attacker.example:8081"},
        {"origin": "https://attacker.example"},
        {"origin": "null"},
    ],
    ids=str,
)
async def test_another_sites_web_page_cannot_send_events_through_a_browser(
    client: httpx.AsyncClient, redis: Redis, headers: dict[str, str]
) -> None:
    answer = await client.post("/", headers=ASKS | headers)

    assert answer.status_code == 403
    assert await queued(redis) == 0


@pytest.mark.parametrize("host", ["127.0.0.1:8081", "localhost:8081", "[::1]:8081", "127.0.0.1"])
async def test_a_loopback_address_by_its_own_name_is_called(
    client: httpx.AsyncClient, host: str
) -> None:
    assert (await client.post("/", headers=ASKS | {"host": host})).status_code == 202


def test_an_ingress_that_others_reach_does_not_start_without_the_token() -> None:
    def said(**changes: object) -> str:
        return startup_error(settings("redis://127.0.0.1:6379/0", **changes))

    assert said() == said(host="0.0.0.0", ingress_token=TOKEN) == ""
    assert said(host="0.0.0.0", ingress_open=True) == ""
    assert "TORPOR_INGRESS_TOKEN" in said(host="0.0.0.0")

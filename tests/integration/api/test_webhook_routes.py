"""Webhooks over HTTP: OpenAI's client manages endpoints, jobs bring their own, the log is read."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import orjson
import pytest
from aiohttp import web
from openai import AsyncOpenAI
from redis.asyncio import Redis

from eventing.store.redis_store import RedisStore
from tests import time_limits
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import FakePredictor, chat_result
from tests.integration.api.receiver import Receiver, receiving
from tests.redis_server import die_with_parent, free_port


@pytest.fixture
async def api(redis_url: str, store: RedisStore, redis: Redis) -> AsyncIterator[ApiWithJobs]:
    async with api_with_jobs(settings_for(redis_url, webhook_schedule_s=(0.0, 0.2)), store) as made:
        yield made


@pytest.fixture
async def client(api: ApiWithJobs) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


async def test_openais_client_registers_and_verifies(
    api: ApiWithJobs, client: AsyncOpenAI, receiver: Receiver
) -> None:
    """The whole way with the official client: endpoint, job, delivery, `unwrap`."""
    endpoint = await client.webhooks.create(
        name="mine", url=receiver.url, event_types=["response.completed"]
    )
    job_id = await api.submit()
    await api.answer(job_id)

    (sent,) = await receiver.wait_for(1)
    event = client.webhooks.unwrap(sent.body, sent.headers, secret=endpoint.signing_secret)

    assert event.type == "response.completed"
    assert event.data.id == job_id


async def test_openais_client_lists_changes_tests_and_deletes(
    client: AsyncOpenAI, receiver: Receiver
) -> None:
    made = [
        await client.webhooks.create(name=n, url=receiver.url, event_types=["batch.completed"])
        for n in ("a", "b", "c")
    ]

    listed = [e.id async for e in client.webhooks.list(limit=2)]
    changed = await client.webhooks.update(made[0].id, name="z")
    tried = await client.webhooks.test(made[0].id, event_type="batch.completed")
    deleted = await client.webhooks.delete(made[2].id)

    assert sorted(listed) == sorted(e.id for e in made)
    assert (changed.name, changed.url) == ("z", receiver.url)
    assert tried.status_code == 204
    assert deleted.deleted
    with pytest.raises(openai.NotFoundError):
        await client.webhooks.retrieve(made[2].id)


async def test_a_rotation_keeps_both_secrets_good_for_a_day(
    api: ApiWithJobs, client: AsyncOpenAI, receiver: Receiver
) -> None:
    old = await client.webhooks.create(
        name="mine", url=receiver.url, event_types=["response.completed"]
    )
    new = await client.webhooks.rotate_secret(old.id, keep_old_secret_active_for_24_hours=True)
    await api.answer(await api.submit())

    (sent,) = await receiver.wait_for(1)

    assert len(sent.headers["webhook-signature"].split()) == 2
    for secret in (old.signing_secret, new.signing_secret):
        assert client.webhooks.unwrap(sent.body, sent.headers, secret=secret)


async def test_a_plain_rotation_ends_the_old_secret(
    client: AsyncOpenAI, receiver: Receiver
) -> None:
    old = await client.webhooks.create(
        name="mine", url=receiver.url, event_types=["response.completed"]
    )
    await client.webhooks.rotate_secret(old.id)
    await client.webhooks.test(old.id, event_type="response.completed")

    (sent,) = await receiver.wait_for(1)

    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(sent.body, sent.headers, secret=old.signing_secret)


async def test_a_secret_is_shown_once(api: ApiWithJobs, client: AsyncOpenAI) -> None:
    made = await client.webhooks.create(
        name="x", url="https://hooks.example.com/", event_types=["response.failed"]
    )

    answer = await api.client.get(f"/v1/webhook_endpoints/{made.id}")

    assert made.signing_secret not in answer.text
    assert answer.json()["signing_secret_hint"].endswith(made.signing_secret[-4:])


async def test_a_job_brings_its_own_webhook(api: ApiWithJobs, receiver: Receiver) -> None:
    job_id = await api.submit(webhook={"url": receiver.url})
    await api.answer(job_id)

    (sent,) = await receiver.wait_for(1)
    job = (await api.client.get(f"/v1/jobs/{job_id}")).json()

    assert orjson.loads(sent.body)["data"] == {"id": job_id}
    assert job["metadata"] == {}  # what we keep beside the caller's own is not theirs to see


async def test_a_repeated_result_event_sends_one_webhook(
    api: ApiWithJobs, receiver: Receiver
) -> None:
    job_id = await api.submit(webhook={"url": receiver.url})
    await api.answer(job_id)
    await receiver.wait_for(1)
    await api.deliver(job_id)
    await asyncio.sleep(0.5)

    assert len(receiver.sent) == 1


@pytest.mark.parametrize(
    "url",
    [
        "https://169.254.169.254/latest",
        "http://hooks.example.com/",
        "https://0x7f.1/",
        "ftp://a.b/",
    ],
)
@pytest.mark.parametrize("way", ["body", "header", "endpoint"])
async def test_an_address_inside_is_refused_when_it_is_handed_in(
    redis_url: str, store: RedisStore, redis: Redis, url: str, way: str
) -> None:
    async with api_with_jobs(settings_for(redis_url, webhook_allow=()), store) as api:
        match way:
            case "body":
                answer = await api.client.post("/v1/jobs", json=chat_line(webhook={"url": url}))
            case "header":
                headers = {"torpor-webhook": url}
                answer = await api.client.post("/v1/jobs", json=chat_line(), headers=headers)
            case _:
                answer = await api.client.post("/v1/webhook_endpoints", json={"url": url})

    assert answer.status_code == 422
    assert answer.json()["field"] in ("webhook.url", "url")
    assert api.broker.events == []


async def only_delivery(api: ApiWithJobs) -> dict[str, Any]:
    (listed,) = (await api.client.get("/v1/webhook_deliveries")).json()["data"]
    return dict(listed)


async def test_the_log_has_every_try(api: ApiWithJobs, receiver: Receiver) -> None:
    receiver.answer = lambda n: web.Response(status=500 if n == 1 else 200)
    await api.answer(await api.submit(webhook={"url": receiver.url + "?token=secret"}))
    await receiver.wait_for(2)
    async with asyncio.timeout(time_limits.HANG_S):
        while (listed := await only_delivery(api))["state"] != "delivered":
            await asyncio.sleep(0.02)
    one = (await api.client.get(f"/v1/webhook_deliveries/{listed['id']}")).json()

    assert [entry["status"] for entry in one["tries"]] == [500, 200]
    assert one["tries"][0]["next_ms"] > one["tries"][0]["at_ms"]
    assert "secret" not in one["url"]


async def test_the_log_of_deliveries_is_read_page_by_page(
    api: ApiWithJobs, receiver: Receiver
) -> None:
    for _ in range(2):
        await api.answer(await api.submit(webhook={"url": receiver.url}))
    await receiver.wait_for(2)

    first = (await api.client.get("/v1/webhook_deliveries?limit=1")).json()
    then = {"limit": 1, "before": first["next_before"]}
    second = (await api.client.get("/v1/webhook_deliveries", params=then)).json()

    assert len(second["data"]) == 1
    assert first["data"][0]["id"] != second["data"][0]["id"]


async def test_no_delivery_of_a_job_with_two_receivers_is_between_two_pages(
    api: ApiWithJobs, receiver: Receiver
) -> None:
    for _ in range(2):
        await api.client.post("/v1/webhook_endpoints", json={"url": receiver.url})
    for _ in range(2):
        await api.answer(await api.submit())
    await receiver.wait_for(4)

    listed, query = [], {"limit": 1}
    while "before" not in query or query["before"]:
        page = (await api.client.get("/v1/webhook_deliveries", params=query)).json()
        listed += [each["id"] for each in page["data"]]
        query["before"] = page["next_before"]

    assert len(listed) == len(set(listed)) == 4


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/webhook_endpoints/we_no"),
        ("DELETE", "/v1/webhook_endpoints/we_jobs"),
        ("GET", "/v1/webhook_deliveries/wh_no"),
    ],
)
async def test_an_unknown_endpoint_or_delivery_is_a_404(
    api: ApiWithJobs, method: str, path: str
) -> None:
    assert (await api.client.request(method, path)).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "https://a.example/", "event_types": ["job.done"]}, "event_types"),
        ({"url": "https://a.example/", "event_types": []}, "event_types"),
        ({"url": "https://a.example/", "event_types": [{}]}, "event_types"),
        ({"url": "https://a.example/", "name": 7}, "name"),
        ({"url": None}, "url"),
        ({}, "url"),
    ],
)
async def test_a_wrong_endpoint_names_its_field(
    api: ApiWithJobs, body: dict[str, object], field: str
) -> None:
    answer = await api.client.post("/v1/webhook_endpoints", json=body)

    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_a_delivery_survives_a_kill_of_its_sender(
    redis_url: str, store: RedisStore, redis: Redis, receiver: Receiver
) -> None:
    """The only api is killed (-9) in its first try; another one sends the rest, under one id."""
    receiver.answer = lambda n: web.Response(status=503 if n == 1 else 200)
    async with receiving() as broker:
        environment = (
            os.environ
            | time_limits.ENVIRONMENT
            | {
                "TORPOR_ANONYMOUS_ACCESS": "loopback",
                "TORPOR_REDIS_URL": redis_url,
                "TORPOR_BROKER_URL": broker.url,
                "TORPOR_MODELS": '[{"name":"m","context_tokens":64}]',
                "TORPOR_WEBHOOK_ALLOW": '["127.0.0.0/8"]',
                "TORPOR_WEBHOOK_SCHEDULE_S": "[0,0.5]",
                "TORPOR_WEBHOOK_TIMEOUT_S": "2",  # for a little longer a dead sender's try is its own
            }
        )
        async with process(environment) as url, httpx.AsyncClient(base_url=url) as client:
            tools = ApiWithJobs(url, client, None, store, None)  # type: ignore[arg-type]
            await tools.answer(await tools.submit(webhook={"url": receiver.url}))
            await receiver.wait_for(1)
        async with process(environment):
            sent = await receiver.wait_for(2)

    assert sent[0].headers["webhook-id"] == sent[1].headers["webhook-id"]


@asynccontextmanager
async def process(environment: dict[str, str]) -> AsyncIterator[str]:
    """The address of a `python -m api`, once it answers; it is killed (-9) in the end."""
    port = free_port()
    api = subprocess.Popen(
        [sys.executable, "-m", "api"],
        env=environment | {"TORPOR_PORT": str(port)},
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as probe, asyncio.timeout(30):
            while True:
                try:
                    await probe.get(f"{url}/healthz")
                    break
                except httpx.TransportError:
                    assert api.poll() is None
                    await asyncio.sleep(0.05)
        yield url
    finally:
        api.kill()
        api.wait()


async def test_a_jobs_timeline_has_its_webhooks_with_durations(
    api: ApiWithJobs, receiver: Receiver
) -> None:
    job_id = await api.submit("hi", webhook={"url": receiver.url})
    look = f"/v1/jobs/{job_id}?include=timeline"
    before = (await api.client.get(look)).json()["timeline"]

    await api.answer(job_id)
    await receiver.wait_for(1)
    async with asyncio.timeout(60):
        while not (after := (await api.client.get(look)).json()["timeline"])["is_whole"]:
            await asyncio.sleep(0.02)

    assert [step["step"] for step in before["steps"]] == ["accepted", "queued"]
    (delivery,) = [step for step in after["steps"] if step["step"] == "delivery"]
    assert (delivery["try"], delivery["status"], delivery["state"]) == (1, 204, "delivered")
    assert delivery["duration_ms"] >= 0


async def test_a_responses_webhooks_stand_in_its_jobs_timeline(
    api: ApiWithJobs, client: AsyncOpenAI, receiver: Receiver
) -> None:
    await client.webhooks.create(name="n", url=receiver.url, event_types=["response.completed"])
    response = await client.responses.create(model="m", input="hi", background=True)
    job_id = response.id.replace("resp_", "job_")

    await api.answer(job_id)
    await receiver.wait_for(1)

    told = (await api.client.get(f"/v1/jobs/{job_id}?include=timeline")).json()["timeline"]
    assert [s["type"] for s in told["steps"] if s["step"] == "delivery"] == ["response.completed"]


async def test_an_answer_cut_by_its_limit_is_told_as_incomplete(
    api: ApiWithJobs, client: AsyncOpenAI, receiver: Receiver
) -> None:
    """As `GET /v1/responses/{id}` says it; the job behind it is completed."""
    await client.webhooks.create(
        name="n", url=receiver.url, event_types=["response.completed", "response.incomplete"]
    )
    response = await client.responses.create(model="m", input="hi", background=True)
    cut = chat_result("half")
    cut["choices"][0]["finish_reason"] = "length"
    predictor = await FakePredictor(api.store, response.id.replace("resp_", "job_")).start()
    await predictor.finish(cut)

    (sent,) = await receiver.wait_for(1)

    body = orjson.loads(sent.body)
    assert (body["type"], body["data"]) == ("response.incomplete", {"id": response.id})
    assert (await client.responses.retrieve(response.id)).status == "incomplete"

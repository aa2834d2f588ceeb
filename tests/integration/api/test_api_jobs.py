"""`/v1/jobs`."""

import asyncio
import time
from typing import Any

import pytest

from eventing.cloudevent.job_event import REQUESTED
from eventing.job.job import JobId
from eventing.outbox.outbox import sweep_once
from eventing.redis import keys
from tests.awake import awake_s
from tests.integration.api.conftest import Rig, chat_line
from tests.integration.api.fakes import chat_result


async def test_a_job_is_accepted_with_the_place_to_look(rig: Rig) -> None:
    answer = await rig.client.post("/v1/jobs", json=chat_line(custom_id="mine"))

    assert answer.status_code == 202
    assert answer.json()["state"] == "queued"
    assert answer.json()["custom_id"] == "mine"
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"


async def test_an_accepted_job_is_on_its_way_to_the_broker(rig: Rig) -> None:
    job_id = await rig.submit()

    (event,) = rig.broker.events
    assert (event.type, event.subject, event.id) == (REQUESTED, job_id, job_id)


async def test_a_published_job_owes_the_outbox_nothing(rig: Rig) -> None:
    await rig.submit()

    async with asyncio.timeout(60):
        while await rig.store.redis.zcard("torpor:outbox:requests"):
            await asyncio.sleep(0.01)


async def test_the_result_is_seen_by_polling(rig: Rig) -> None:
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    await predictor.finish(chat_result("four"))

    job = (await rig.client.get(f"/v1/jobs/{job_id}")).json()

    assert job["state"] == "completed"
    assert job["result"]["choices"][0]["message"]["content"] == "four"


async def test_a_long_poll_answers_when_the_job_ends(rig: Rig) -> None:
    job_id = await rig.submit()

    async with asyncio.TaskGroup() as group:
        poll = group.create_task(rig.client.get(f"/v1/jobs/{job_id}?wait=4"))
        await asyncio.sleep(0.1)
        await (await rig.predictor(job_id)).finish(chat_result("four"))

    assert poll.result().json()["state"] == "completed"


async def test_a_long_poll_gives_up_in_its_time(rig: Rig) -> None:
    job_id = await rig.submit()

    started_s, started_awake_s = time.monotonic(), awake_s()
    job = (await rig.client.get(f"/v1/jobs/{job_id}?wait=0.3")).json()

    assert job["state"] == "queued"
    assert time.monotonic() - started_s > 0.25
    assert awake_s() - started_awake_s < 2


async def test_the_same_key_and_body_is_the_same_job(rig: Rig) -> None:
    first = await rig.submit(headers={"idempotency-key": "k"})
    second = await rig.submit(headers={"idempotency-key": "k"})

    assert first == second
    assert len(rig.broker.events) == 1


async def test_the_same_key_with_another_body_is_a_conflict(rig: Rig) -> None:
    await rig.submit("one", headers={"idempotency-key": "k"})

    answer = await rig.client.post(
        "/v1/jobs", json=chat_line("two"), headers={"idempotency-key": "k"}
    )

    assert answer.status_code == 409
    assert answer.json()["code"] == "idempotency_conflict"


CALL = {
    "priority": "batch",
    "expires_after": 60,
    "metadata": {"a": "1"},
    "webhook": {"url": "https://example.com/a"},
}


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        pytest.param({"priority": "default"}, {}, id="priority"),
        pytest.param({"expires_after": 61}, {}, id="deadline"),
        pytest.param({"expires_after": None}, {"torpor-expires-after": "59"}, id="its header"),
        pytest.param({"metadata": {"a": "2"}}, {}, id="metadata"),
        pytest.param({"metadata": None}, {}, id="no metadata"),
        pytest.param({"webhook": {"url": "https://example.com/b"}}, {}, id="webhook"),
        pytest.param({"webhook": None}, {"torpor-webhook": "https://example.com/c"}, id="header"),
    ],
)
async def test_the_same_key_with_another_wish_is_a_conflict(
    rig: Rig, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    key = {"idempotency-key": "k"}
    line = chat_line() | CALL
    first = await rig.client.post("/v1/jobs", json=line, headers=key | {"x-request-id": "one"})
    same = await rig.client.post("/v1/jobs", json=line, headers=key | {"x-request-id": "two"})
    other = await rig.client.post("/v1/jobs", json=line | fields, headers=key | headers)

    assert (first.status_code, same.status_code, other.status_code) == (202, 202, 409)
    assert first.json()["id"] == same.json()["id"]


async def test_without_a_key_each_submit_is_a_job(rig: Rig) -> None:
    assert await rig.submit() != await rig.submit()


async def test_cancel_ends_a_queued_job(rig: Rig) -> None:
    job_id = await rig.submit()

    assert (await rig.client.delete(f"/v1/jobs/{job_id}")).json()["state"] == "cancelled"


async def test_cancel_twice_gives_the_same_answer(rig: Rig) -> None:
    job_id = await rig.submit()

    first = await rig.client.delete(f"/v1/jobs/{job_id}")
    second = await rig.client.delete(f"/v1/jobs/{job_id}")

    assert first.json() == second.json()


async def test_cancel_after_the_end_returns_the_ended_job(rig: Rig) -> None:
    job_id = await rig.submit()
    await (await rig.predictor(job_id)).finish(chat_result("four"))

    assert (await rig.client.delete(f"/v1/jobs/{job_id}")).json()["state"] == "completed"


async def test_cancel_and_finish_at_once_agree_with_the_answer(rig: Rig) -> None:
    for _ in range(20):
        job_id = await rig.submit()
        predictor = await rig.predictor(job_id)

        answer, _ = await asyncio.gather(
            rig.client.delete(f"/v1/jobs/{job_id}"), predictor.finish(chat_result("four"))
        )

        job = await rig.store.get(JobId(job_id))
        assert job is not None
        assert answer.json()["state"] == job.state


async def test_the_list_is_newest_first_and_goes_on_at_its_cursor(rig: Rig) -> None:
    ids = [await rig.submit() for _ in range(5)]

    first = (await rig.client.get("/v1/jobs?limit=3")).json()
    second = (await rig.client.get(f"/v1/jobs?limit=3&cursor={first['next_cursor']}")).json()

    assert [job["id"] for job in first["data"] + second["data"]] == ids[::-1]
    assert second["next_cursor"] is None


async def test_the_list_can_be_of_some_states(rig: Rig) -> None:
    cancelled = await rig.submit()
    await rig.submit()
    await rig.client.delete(f"/v1/jobs/{cancelled}")

    page = (await rig.client.get("/v1/jobs?state=cancelled,failed")).json()

    assert [job["id"] for job in page["data"]] == [cancelled]


@pytest.mark.parametrize(
    "job_id", ["nope", "job_" + "0" * 24, "job_%00", "%2e%2e%2fjobs", "job_😀"]
)
async def test_an_id_that_is_no_job_is_not_found(rig: Rig, job_id: str) -> None:
    answer = await rig.client.get(f"/v1/jobs/{job_id}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_job_of_another_tenant_is_not_found(rig: Rig) -> None:
    job_id = await rig.submit()
    await rig.store.redis.hset(f"torpor:{{{job_id}}}", "tenant", "somebody")

    assert (await rig.client.get(f"/v1/jobs/{job_id}")).status_code == 404
    assert (await rig.client.delete(f"/v1/jobs/{job_id}")).status_code == 404
    assert (await rig.client.get(f"/v1/jobs/{job_id}/events")).status_code == 404


@pytest.mark.parametrize("how", ["is_down", "is_mute"])
async def test_with_the_broker_away_a_job_is_promised_and_published_when_it_is_back(
    rig: Rig, how: str
) -> None:
    setattr(rig.broker, how, True)
    key = {"idempotency-key": "k"}
    first = await rig.client.post("/v1/jobs", json=chat_line(), headers=key)
    again = await rig.client.post("/v1/jobs", json=chat_line(), headers=key)

    assert (first.status_code, again.status_code) == (202, 202)
    job_id = first.json()["id"]
    assert again.json()["id"] == job_id
    assert await rig.store.redis.zscore(keys.UNPUBLISHED, job_id) is not None
    setattr(rig.broker, how, False)
    await rig.store.redis.zadd(keys.UNPUBLISHED, {job_id: 1})
    await sweep_once(rig.store, rig.broker)
    assert [event.subject for event in rig.broker.events] == [job_id]


async def test_with_too_many_jobs_unpublished_nothing_is_accepted_within_2_s(rig: Rig) -> None:
    rig.broker.is_down = True
    for number in range(100):
        await rig.store.redis.zadd(keys.UNPUBLISHED, {f"job_{number}": 9e12})

    started_s = awake_s()
    answer = await rig.client.post("/v1/jobs", json=chat_line())

    assert awake_s() - started_s < 2
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert (await rig.client.get("/v1/jobs")).json()["data"] == []


async def test_expires_after_becomes_the_deadline(rig: Rig) -> None:
    job_id = await rig.submit(expires_after=60)

    job = (await rig.client.get(f"/v1/jobs/{job_id}")).json()

    assert job["deadline_ms"] - job["created_ms"] == pytest.approx(60_000, abs=2_000)
    assert rig.broker.events[0].extensions["expirytime"]


@pytest.mark.parametrize(
    "asked",
    [{"fallback": "none"}, {"headers": {"torpor-fallback": "none"}}],
    ids=["field", "header"],
)
async def test_a_caller_who_takes_no_other_models_answer_says_so_to_the_predictor(
    rig: Rig, asked: dict[str, Any]
) -> None:
    await rig.submit(**asked)

    assert rig.broker.events[0].extensions["fallback"] == "none"


async def test_another_fallback_than_none_is_refused_by_name(rig: Rig) -> None:
    answer = await rig.client.post("/v1/jobs", json=chat_line(fallback="big"))

    assert (answer.status_code, answer.json()["field"]) == (422, "fallback")


async def test_metadata_comes_back(rig: Rig) -> None:
    job_id = await rig.submit(metadata={"order": "17"})

    assert (await rig.client.get(f"/v1/jobs/{job_id}")).json()["metadata"] == {"order": "17"}


async def test_the_callers_trace_goes_with_the_event(rig: Rig) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    await rig.submit(headers={"traceparent": trace})

    assert rig.broker.events[0].extensions["traceparent"] == trace


async def test_the_callers_request_id_comes_back(rig: Rig) -> None:
    answer = await rig.client.get("/healthz", headers={"x-request-id": "abc-1"})

    assert answer.headers["x-request-id"] == "abc-1"


async def test_the_callers_request_id_stays_with_the_job(rig: Rig) -> None:
    named = await rig.submit(headers={"x-request-id": "order-17"})
    unnamed = await rig.submit(headers={"x-request-id": "two words"})

    assert (await rig.client.get(f"/v1/jobs/{named}")).json()["request_id"] == "order-17"
    assert (await rig.client.get(f"/v1/jobs/{named}")).json()["metadata"] == {}
    assert (await rig.client.get(f"/v1/jobs/{unnamed}")).json()["request_id"] is None
    told = [event.extensions.get("correlationid") for event in rig.broker.events]
    assert told == ["order-17", None]


async def test_the_request_is_shown_only_when_asked_for(rig: Rig) -> None:
    job_id = await rig.submit("a secret plan")

    plain = await rig.client.get(f"/v1/jobs/{job_id}")
    whole = await rig.client.get(f"/v1/jobs/{job_id}?include=request")

    assert "a secret plan" not in plain.text
    assert whole.json()["request"]["body"]["messages"][0]["content"] == "a secret plan"


async def test_ready_means_that_the_store_takes_writes(rig: Rig) -> None:
    assert (await rig.client.get("/readyz")).status_code == 200


async def test_metrics_count_by_route_and_not_by_path(rig: Rig) -> None:
    job_id = await rig.submit()
    await rig.client.get(f"/v1/jobs/{job_id}")

    text = (await rig.client.get("/metrics")).text

    assert 'torpor_api_requests_total{method="GET",route="/v1/jobs/{id}",status="200"}' in text
    assert job_id not in text

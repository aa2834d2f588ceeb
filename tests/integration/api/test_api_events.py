"""CloudEvents in: results from the broker, requests from producers."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from eventing.cloudevent.event import Event, build_binary, build_structured
from eventing.cloudevent.job_event import REQUESTED, job_of
from eventing.cloudevent.result_event import result_event
from eventing.job.job import JobError, JobId, JobState, derive_job_id
from tests.integration.api.conftest import Rig, chat_line
from tests.integration.api.fakes import chat_result


async def send(rig: Rig, path: str, event: Event, *, structured: bool = False) -> Any:
    headers, body = build_structured(event) if structured else build_binary(event)
    return await rig.client.post(path, content=body, headers=headers)


def wanted(**fields: Any) -> Event:
    line = orjson.dumps(fields.pop("line", chat_line()))
    return Event(
        id=fields.pop("id", "order-17"),
        source=fields.pop("source", "/my/shop"),
        type=fields.pop("type", REQUESTED),
        datacontenttype="application/json",
        data=line,
        extensions=fields,
    )


@pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
async def test_a_producer_can_ask_for_a_job(rig: Rig, structured: bool) -> None:
    answer = await send(rig, "/v1/events", wanted(), structured=structured)

    assert answer.status_code == 202
    assert (await rig.client.get(answer.headers["location"])).json()["state"] == "queued"
    assert (rig.broker.events[0].source, rig.broker.events[0].id) == ("/my/shop", "order-17")


async def test_the_same_event_again_is_the_same_job(rig: Rig) -> None:
    first = await send(rig, "/v1/events", wanted())
    second = await send(rig, "/v1/events", wanted())

    assert first.json()["id"] == second.json()["id"]
    assert len(rig.broker.events) == 1


async def test_an_event_may_ask_for_no_fallback(rig: Rig) -> None:
    job_id = (await send(rig, "/v1/events", wanted(fallback="none"))).json()["id"]
    job = await rig.store.get(job_id)

    assert job is not None
    assert job.fallback == "none"
    assert rig.broker.events[0].extensions["fallback"] == "none"


async def test_an_event_cannot_choose_its_tenant(rig: Rig) -> None:
    await send(rig, "/v1/events", wanted(tenant="somebody"))

    assert rig.broker.events[0].extensions["tenant"] == "default"


@pytest.mark.parametrize(
    ("event", "status", "field"),
    [
        pytest.param(wanted(type="other.v1"), 422, "type", id="another type"),
        pytest.param(wanted(source="/torpor/api"), 422, "source", id="our own source"),
        pytest.param(wanted(line={"url": "/v1/x", "body": {}}), 422, "url", id="unknown url"),
        pytest.param(wanted(line=chat_line(model="x")), 422, "body.model", id="unknown model"),
        pytest.param(wanted(priority="now"), 422, "priority", id="unknown priority"),
        pytest.param(wanted(fallback="big"), 422, "fallback", id="another fallback"),
        pytest.param(wanted(expirytime="soon"), 422, "expirytime", id="no time"),
    ],
)
async def test_an_event_that_can_never_be_a_job_is_refused(
    rig: Rig, event: Event, status: int, field: str
) -> None:
    answer = await send(rig, "/v1/events", event)

    assert (answer.status_code, answer.json()["field"]) == (status, field)


async def test_what_is_no_event_is_refused(rig: Rig) -> None:
    answer = await rig.client.post("/v1/events", json={"hello": 1})

    assert (answer.status_code, answer.json()["code"]) == (400, "not_a_cloudevent")


async def test_a_batch_of_events_is_refused(rig: Rig) -> None:
    headers = {"content-type": "application/cloudevents-batch+json"}

    assert (await rig.client.post("/v1/events", content="[]", headers=headers)).status_code == 415


async def ended(rig: Rig, **changes: Any) -> Event:
    """The result event of a job that ended in a predictor, but not in the store."""
    job = await rig.store.get(JobId(await rig.submit()))
    assert job is not None
    fields = {"state": JobState.COMPLETED, "result": chat_result("four")} | changes
    return result_event(replace(job, **fields))


async def test_a_result_of_a_predictor_without_a_store_ends_the_job(rig: Rig) -> None:
    event = await ended(rig)

    answer = await send(rig, "/internal/events", event)

    assert answer.status_code == 202
    job = (await rig.client.get(f"/v1/jobs/{event.subject}")).json()
    assert job["state"] == "completed"
    assert job["result"]["choices"][0]["message"]["content"] == "four"


async def test_a_failure_arrives_with_its_reason(rig: Rig) -> None:
    error = JobError(code="exhausted", message="three tries")
    event = await ended(rig, state=JobState.FAILED, result=None, error=error)

    await send(rig, "/internal/events", event)

    job = (await rig.client.get(f"/v1/jobs/{event.subject}")).json()
    assert (job["state"], job["error"]["code"]) == ("failed", "exhausted")


async def test_a_result_that_comes_late_changes_nothing(rig: Rig) -> None:
    event = await ended(rig)
    await rig.client.delete(f"/v1/jobs/{event.subject}")

    answer = await send(rig, "/internal/events", event)

    assert answer.status_code == 202
    assert (await rig.client.get(f"/v1/jobs/{event.subject}")).json()["state"] == "cancelled"


async def test_a_result_cannot_end_a_job_that_runs_elsewhere(rig: Rig) -> None:
    event = await ended(rig)
    await rig.predictor(event.subject)

    answer = await send(rig, "/internal/events", event)

    assert answer.status_code == 202
    assert (await rig.client.get(f"/v1/jobs/{event.subject}")).json()["state"] == "in_progress"


async def test_a_result_that_arrived_is_not_announced_again(rig: Rig) -> None:
    event = await ended(rig)

    await send(rig, "/internal/events", event)

    assert await rig.store.redis.zcard("torpor:outbox:results") == 0


async def test_an_event_of_another_type_sent_to_the_results_route_is_accepted_and_ignored(
    rig: Rig,
) -> None:
    answer = await send(rig, "/internal/events", wanted(type="something.else.v1"))

    assert answer.status_code == 202


async def test_a_request_that_forgot_its_model_attribute_is_sent_on_with_it(rig: Rig) -> None:
    answer = await send(rig, "/internal/events", wanted())

    assert (answer.status_code, answer.headers["ce-model"]) == (200, "m")


async def test_a_request_that_no_model_wants_is_a_failed_job_and_not_lost(rig: Rig) -> None:
    answer = await send(rig, "/internal/events", wanted(line=chat_line(model="nobody")))

    assert answer.status_code == 202
    (job,) = (await rig.client.get("/v1/jobs")).json()["data"]
    assert (job["state"], job["error"]["code"]) == ("failed", "model_not_found")


async def test_a_request_that_came_round_with_its_model_is_failed_and_not_sent_round_again(
    rig: Rig,
) -> None:
    # The catalog knows the model, and no trigger takes its requests.
    await send(rig, "/v1/events", wanted())
    model = chat_line()["body"]["model"]

    answer = await send(rig, "/internal/events", wanted(model=model))

    job = await rig.store.get(derive_job_id("/my/shop", "order-17"))
    assert (answer.status_code, answer.content) == (202, b"")
    assert job is not None
    assert job.error is not None
    assert (job.state, job.error.field) == (JobState.FAILED, "body.model")


async def test_a_recorded_request_for_an_unknown_model_is_failed(rig: Rig) -> None:
    event = wanted(line=chat_line(model="nobody"))
    await rig.store.submit(job_of(event))

    await send(rig, "/internal/events", event)

    job = await rig.store.get(derive_job_id("/my/shop", "order-17"))
    assert job is not None
    assert job.state is JobState.FAILED

"""Bad input: a clear 4xx that names the field; never a 5xx, never a hang, nothing lost silently."""

import logging
from collections.abc import AsyncIterator, Container, Mapping
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from structlog.testing import capture_logs

from eventing.job.job import JobId
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import api_with_jobs, settings_for
from tests.integration.api.conftest import Rig, chat_line
from tests.integration.api.corpora import JSON_INVALID, JSON_NOT_AN_OBJECT, JSON_ODD, NAUGHTY
from tests.integration.api.raw_line import RawLine, raw_line, timed

CE = {
    "ce-specversion": b"1.0",
    "ce-id": b"1",
    "ce-source": b"/x",
    "ce-type": b"dev.torpor.inference.requested.v1",
}
IS_JSON = {"content-type": b"application/json"}
JSON = {"content-type": "application/json"}
POSTS: dict[str, Mapping[str, bytes]] = {
    "/v1/jobs": IS_JSON,
    "/v1/chat/completions": IS_JSON,
    "/v1/completions": IS_JSON,
    "/v1/embeddings": IS_JSON,
    "/v1/moderations": IS_JSON,
    "/v1/responses": IS_JSON,
    "/v1/batches": IS_JSON,
    "/v1/vector_stores": IS_JSON,
    "/v1/webhook_endpoints": IS_JSON,
    "/v1/events": {"content-type": b"application/cloudevents+json"},
    "/internal/events": {"content-type": b"application/cloudevents+json"},
}
"""Every POST that takes JSON, and how it is told so. Files have their own test."""


@pytest.fixture
async def line(rig: Rig) -> AsyncIterator[RawLine]:
    async with raw_line(rig.url) as made:
        yield made


@pytest.fixture
async def whole_api_line(redis_url: str, store: RedisStore) -> AsyncIterator[RawLine]:
    """To an api that has webhooks as well."""
    async with api_with_jobs(settings_for(redis_url), store) as api, raw_line(api.url) as made:
        yield made


async def offenders(
    line: RawLine, requests: Mapping[Any, tuple[Any, ...]], allowed: Container[int]
) -> dict[Any, Any]:
    """Those of the named requests (method, path, body, headers) that were answered otherwise, or
    took over a second, each time: a busy machine can be late once.
    """
    found = {}
    for name, request in requests.items():
        for _ in range(3):
            answer = await line.ask(*request)
            if answer.status not in allowed or answer.took_s <= 1:
                break
        if answer.status not in allowed or answer.took_s > 1:
            found[name] = (answer.status, round(answer.took_s, 2))
    return found


@pytest.mark.parametrize("path", POSTS)
async def test_a_body_that_is_not_a_json_object_is_a_400(
    whole_api_line: RawLine, path: str
) -> None:
    bodies = JSON_INVALID | JSON_NOT_AN_OBJECT
    requests = {name: ("POST", path, body, POSTS[path]) for name, body in bodies.items()}

    assert await offenders(whole_api_line, requests, {400}) == {}


@pytest.mark.parametrize("path", POSTS)
async def test_odd_but_valid_json_is_refused_by_what_it_says(
    whole_api_line: RawLine, path: str
) -> None:
    requests = {name: ("POST", path, body, POSTS[path]) for name, body in JSON_ODD.items()}

    # A vector store needs nothing, and has no use for what it does not know.
    allowed = {400, 404, 422, *([200] if path == "/v1/vector_stores" else [])}
    assert await offenders(whole_api_line, requests, allowed) == {}


async def test_an_upload_that_is_not_a_form_is_refused(line: RawLine) -> None:
    form = {"content-type": b"multipart/form-data; boundary=x"}
    bodies = {name: body for name, body in JSON_INVALID.items() if body}
    requests = {name: ("POST", "/v1/files", body, form) for name, body in bodies.items()}

    assert await offenders(line, requests, {400}) == {}


async def test_broken_json_in_the_data_of_an_event_is_a_400_or_a_job_that_never_was(
    line: RawLine,
) -> None:
    bodies = JSON_INVALID | JSON_NOT_AN_OBJECT | JSON_ODD
    requests = {n: ("POST", "/v1/events", body, CE | IS_JSON) for n, body in bodies.items()}

    assert await offenders(line, requests, {400, 422}) == {}


async def test_naughty_strings_are_stored_as_they_were_sent(rig: Rig, line: RawLine) -> None:
    for text in filter(None, NAUGHTY):
        body = orjson.dumps(chat_line(text, custom_id=text))
        job_id = (await line.ask("POST", "/v1/jobs", body, IS_JSON)).json()["id"]
        job = await rig.store.get(JobId(job_id))
        assert job is not None

        assert job.request.custom_id == text
        assert job.request.body["messages"][0]["content"] == text


async def test_no_input_makes_a_key_outside_our_own(rig: Rig, line: RawLine) -> None:
    for text in NAUGHTY:
        wanted = chat_line(text, custom_id=text, metadata={text[:60]: text[:500]})
        headers = IS_JSON | {"idempotency-key": in_a_header(text)}
        await line.ask("POST", "/v1/jobs", orjson.dumps(wanted), headers)

    keys = await rig.store.redis.keys("*")
    assert [key for key in keys if not key.startswith(b"torpor:")] == []


@pytest.mark.parametrize(
    "where",
    ["url", "model", "priority", "method", "expires_after", "metadata", "messages", "max_tokens"],
)
async def test_naughty_strings_in_a_field_never_break_the_api(line: RawLine, where: str) -> None:
    requests: dict[Any, tuple[Any, ...]] = {}
    for text in NAUGHTY:
        wanted = chat_line()
        inner = wanted["body"] if where in ("model", "messages", "max_tokens") else wanted
        inner[where] = text
        requests[text] = ("POST", "/v1/jobs", orjson.dumps(wanted), IS_JSON)

    assert await offenders(line, requests, {422}) == {}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs/{}"),
        ("GET", "/v1/jobs/{}/events"),
        ("DELETE", "/v1/jobs/{}"),
        ("GET", "/v1/responses/{}"),
        ("POST", "/v1/responses/{}/cancel"),
        ("DELETE", "/v1/responses/{}"),
        ("GET", "/v1/responses/{}/input_items"),
        ("GET", "/v1/files/{}"),
        ("GET", "/v1/files/{}/content"),
        ("DELETE", "/v1/files/{}"),
        ("GET", "/v1/batches/{}"),
        ("POST", "/v1/batches/{}/cancel"),
        ("GET", "/v1/vector_stores/{}"),
        ("GET", "/v1/vector_stores/{}/files"),
        ("DELETE", "/v1/vector_stores/{}"),
        ("GET", "/v1/models/{}"),
        ("GET", "/v1/dead-letters/{}"),
        ("POST", "/v1/dead-letters/{}/redrive"),
    ],
)
async def test_naughty_strings_in_a_path_are_not_found(
    line: RawLine, method: str, path: str
) -> None:
    requests = {
        text: (method, path.format(quote(text, safe="")), b"", {}) for text in filter(None, NAUGHTY)
    }

    assert await offenders(line, requests, {400, 404, 405}) == {}


async def test_naughty_strings_in_a_query_are_refused(rig: Rig, line: RawLine) -> None:
    """In each place that reads the parameter."""
    job_id = await rig.submit()
    paths = {
        "/v1/jobs": ["cursor", "state", "limit"],
        f"/v1/jobs/{job_id}": ["wait", "include"],
        "/v1/files": ["after", "order", "limit", "purpose"],
        "/v1/batches": ["after", "limit"],
        "/v1/vector_stores": ["after", "before", "order", "limit"],
        "/v1/dead-letters": ["cursor", "limit"],
    }
    requests = {
        (path, name, text): ("GET", f"{path}?{name}={quote(text)}", b"", {})
        for path, names in paths.items()
        for name in names
        for text in NAUGHTY[:: 1 if name in ("cursor", "after") else 4]
    }

    assert await offenders(line, requests, {200, 400, 422}) == {}


async def test_naughty_strings_for_a_cursor_are_refused(rig: Rig, line: RawLine) -> None:
    job_id = await rig.submit()
    path = f"/v1/jobs/{job_id}/events"
    requests: dict[Any, tuple[Any, ...]] = {}
    for text in NAUGHTY:
        if text.strip():
            requests["query", text] = ("GET", f"{path}?after={quote(text)}", b"", {})
        if in_a_header(text):
            requests["header", text] = ("GET", path, b"", {"last-event-id": in_a_header(text)})

    assert await offenders(line, requests, {400}) == {}


@pytest.mark.parametrize(
    "name",
    [
        *("idempotency-key", "traceparent", "tracestate", "prefer", "x-request-id"),
        *("torpor-expires-after", "torpor-webhook-url", "authorization", "accept", "x\x01"),
    ],
)
async def test_naughty_strings_in_a_header_never_break_the_api(line: RawLine, name: str) -> None:
    requests: dict[Any, tuple[Any, ...]] = {}
    for number, text in enumerate(NAUGHTY):
        body = orjson.dumps(chat_line(f"{name} {number}"))
        requests[text] = ("POST", "/v1/jobs", body, IS_JSON | {name: in_a_header(text)})

    assert await offenders(line, requests, {200, 202, 400, 422}) == {}


def in_a_header(text: str) -> bytes:
    """As far as it can stand in one line."""
    return "".join(c for c in text if c not in "\r\n\0").encode().strip()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"url": None}, "url", id="no url"),
        pytest.param({"url": "/v1/unknown"}, "url", id="unknown url"),
        pytest.param({"body": None}, "body", id="no body"),
        pytest.param({"body": []}, "body", id="a list for a body"),
        pytest.param({"body": {"messages": []}}, "body.model", id="no model"),
        pytest.param({"body": {"model": 7}}, "body.model", id="a number for a model"),
        pytest.param({"body": {"model": "m"}}, "body.messages", id="no messages"),
        pytest.param({"body": {"model": "m", "messages": []}}, "body.messages", id="empty"),
        pytest.param({"custom_id": 7}, "custom_id", id="a number for an id"),
        pytest.param({"method": "GET"}, "method", id="GET"),
        pytest.param({"priority": "now"}, "priority", id="unknown priority"),
        pytest.param({"priorty": "batch"}, "priorty", id="a field that is not there"),
        pytest.param({"expires_after": -1}, "expires_after", id="in the past"),
        pytest.param({"expires_after": True}, "expires_after", id="a boolean for seconds"),
        pytest.param(
            {"metadata": {"torpor.response": "x"}}, "metadata.torpor.response", id="a name of ours"
        ),
        pytest.param({"metadata": {"a": 1}}, "metadata.a", id="a number in metadata"),
    ],
)
async def test_an_invalid_request_names_its_field(
    rig: Rig, change: dict[str, Any], field: str
) -> None:
    answer = await rig.client.post("/v1/jobs", json=chat_line() | change)

    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert rig.broker.events == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("priorty", "did you mean priority?"),
        ("expire_after", "did you mean expires_after?"),
        ("zzz", "there are url, body"),
    ],
)
async def test_a_field_that_is_not_there_is_refused_with_the_nearest_name(
    rig: Rig, name: str, hint: str
) -> None:
    answer = await rig.client.post("/v1/jobs", json=chat_line() | {name: 1})

    assert hint in answer.json()["detail"]


async def test_an_empty_prompt_names_the_message(rig: Rig) -> None:
    answer = await rig.client.post("/v1/jobs", json=chat_line(""))

    assert answer.json()["field"] == "body.messages[0].content"


async def test_an_unknown_model_names_what_is_known(rig: Rig) -> None:
    answer = await rig.client.post("/v1/jobs", json=chat_line(model="nobody"))

    assert answer.json()["code"] == "model_not_found"
    assert "m" in answer.json()["detail"]


async def test_lists_100_000_deep_in_a_valid_line_are_refused(rig: Rig) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    body = b'{"url":"/v1/chat/completions","body":{"model":"m","messages":' + deep + b"}}"

    answer, took_s = await timed(rig, "POST", "/v1/jobs", content=body, headers=JSON)

    assert answer.status_code == 400
    assert took_s < 1


async def test_token_ids_over_the_context_name_the_prompt(rig: Rig) -> None:
    line = {"url": "/v1/completions", "body": {"model": "m", "prompt": list(range(65))}}

    answer = await rig.client.post("/v1/jobs", json=line)

    assert answer.json()["code"] == "context_length_exceeded"
    assert answer.json()["field"] == "body.prompt"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE"])
async def test_other_methods_are_refused(rig: Rig, method: str) -> None:
    answer = await rig.client.request(method, "/v1/jobs")

    assert answer.status_code == 405
    assert answer.json()["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        (
            "POST",
            "/v1/images/generations",
            404,
            "nothing is served at /v1/images/generations; /docs",
        ),
        ("GET", "/v1/fine_tuning/jobs", 404, "nothing is served at /v1/fine_tuning/jobs; /docs"),
        ("POST", "/v1/models", 405, "this path takes GET, HEAD, OPTIONS"),
        ("GET", "/v1/embeddings", 405, "this path takes OPTIONS, POST"),
    ],
)
async def test_unsupported_openai_routes_are_refused_with_openais_error_body(
    rig: Rig, method: str, path: str, status: int, message: str
) -> None:
    answer = await rig.client.request(method, path, json={} if method == "POST" else None)

    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("file", ("a", b"x")), ("file", ("b", b"y"))], "Too many files"),
        ([("file", ("x" * 9_000, b"x"))], "Invalid multipart data"),
    ],
)
async def test_a_form_that_cannot_be_read_says_why(rig: Rig, files: Any, message: str) -> None:
    answer = await rig.client.post("/v1/files", files=files, data={"purpose": "batch"})

    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


async def test_prompts_and_keys_are_never_logged(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-7f3a"
    caplog.set_level(logging.DEBUG)
    with capture_logs() as lines:
        job_id = await rig.submit(canary, headers={"idempotency-key": canary})
        await rig.client.post("/v1/jobs", json=chat_line(canary, model=canary))
        await rig.client.post("/v1/jobs", content=f"{{{canary}".encode(), headers=JSON)
        await rig.client.get("/v1/jobs", params={"cursor": canary})
        rig.broker.is_down = True
        await rig.client.post("/v1/jobs", json=chat_line(canary))
        await rig.client.delete(f"/v1/jobs/{JobId(job_id)}")

    # The client's own loggers are not ours; the access log is off, but pytest listens to it anyway.
    others = ("httpx", "httpcore", "uvicorn.access")
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(others)]
    assert canary not in str(lines)
    assert canary not in str(ours)
    assert canary not in (await rig.client.get("/metrics")).text

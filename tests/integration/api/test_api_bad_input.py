"""Bad input: a clear 4xx that names the field; never a 5xx, never a hang, nothing lost silently."""

import asyncio
import logging
import time
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import psutil
import pytest
from structlog.testing import capture_logs

from eventing.job import JobId
from tests.integration.api.conftest import Rig, chat_line
from tests.integration.api.corpora import JSON_INVALID, JSON_NOT_AN_OBJECT, JSON_ODD, NAUGHTY

POSTS = [
    "/v1/jobs",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/batches",
]
JSON = {"content-type": "application/json"}


async def timed(rig: Rig, method: str, path: str, **more: Any) -> tuple[httpx.Response, float]:
    started_s = time.monotonic()
    answer = await rig.client.request(method, path, **more)
    return answer, time.monotonic() - started_s


@pytest.mark.parametrize("path", POSTS)
async def test_what_is_no_json_object_is_a_400_at_once(rig: Rig, path: str) -> None:
    offenders = {}
    for name, body in (JSON_INVALID | JSON_NOT_AN_OBJECT).items():
        answer, took_s = await timed(rig, "POST", path, content=body, headers=JSON)
        if answer.status_code != 400 or took_s > 1:
            offenders[name] = (answer.status_code, took_s)

    assert offenders == {}


@pytest.mark.parametrize("path", POSTS)
async def test_odd_but_valid_json_is_refused_by_what_it_says(rig: Rig, path: str) -> None:
    offenders = {}
    for name, body in JSON_ODD.items():
        answer, took_s = await timed(rig, "POST", path, content=body, headers=JSON)
        if answer.status_code not in (400, 404, 422) or took_s > 1:
            offenders[name] = (answer.status_code, took_s)

    assert offenders == {}


async def test_naughty_strings_are_stored_as_they_were_sent(rig: Rig) -> None:
    for text in NAUGHTY:
        if not text:
            continue
        job_id = await rig.submit(text, custom_id=text)
        job = (await rig.client.get(f"/v1/jobs/{job_id}?include=request")).json()

        assert job["custom_id"] == text
        assert job["request"]["body"]["messages"][0]["content"] == text


async def test_no_input_makes_a_key_outside_our_own(rig: Rig) -> None:
    for text in NAUGHTY:
        line = chat_line(text, custom_id=text, metadata={text[:60]: text[:500]})
        await rig.client.post("/v1/jobs", json=line)
        await rig.client.get("/v1/jobs", params={"cursor": text, "state": text})

    keys = await rig.store.redis.keys("*")
    assert [key for key in keys if not key.startswith(b"torpor:")] == []


@pytest.mark.parametrize(
    "where",
    ["url", "model", "priority", "method", "expires_after", "metadata", "messages", "max_tokens"],
)
async def test_naughty_strings_in_a_field_never_break_the_door(rig: Rig, where: str) -> None:
    offenders = {}
    for text in NAUGHTY:
        line = chat_line()
        if where in ("model", "messages", "max_tokens"):
            line["body"][where] = text
        else:
            line[where] = text
        answer, took_s = await timed(rig, "POST", "/v1/jobs", json=line)
        if answer.status_code != 422 or took_s > 1:
            offenders[text] = answer.status_code

    assert offenders == {}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/{}",
        "/v1/jobs/{}/events",
        "/v1/responses/{}",
        "/v1/responses/{}/input_items",
        "/v1/files/{}",
        "/v1/files/{}/content",
        "/v1/batches/{}",
        "/v1/models/{}",
    ],
)
async def test_naughty_strings_in_a_path_are_not_found(rig: Rig, path: str) -> None:
    offenders = {}
    for text in NAUGHTY:
        if not text:
            continue
        answer, _ = await timed(rig, "GET", path.format(quote(text, safe="")))
        if answer.status_code not in (404, 400):
            offenders[text] = answer.status_code

    assert offenders == {}


@pytest.mark.parametrize("name", ["cursor", "state", "limit", "wait", "after", "order"])
async def test_naughty_strings_in_a_query_are_refused(rig: Rig, name: str) -> None:
    job_id = await rig.submit()
    offenders = {}
    for path in ("/v1/jobs", f"/v1/jobs/{job_id}", "/v1/files", "/v1/batches"):
        for text in NAUGHTY:
            answer, _ = await timed(rig, "GET", path, params={name: text})
            if answer.status_code >= 500:
                offenders[path, text] = answer.status_code

    assert offenders == {}


@pytest.mark.parametrize(
    "name", ["idempotency-key", "last-event-id", "traceparent", "prefer", "x-request-id"]
)
async def test_naughty_strings_in_a_header_never_break_the_door(rig: Rig, name: str) -> None:
    offenders = {}
    for number, text in enumerate(NAUGHTY):
        value = "".join(c for c in text if c not in "\r\n\0").encode().strip()
        headers = JSON | {name: value}
        line = orjson.dumps(chat_line(f"{name} {number}"))
        try:
            answer = await rig.client.post("/v1/jobs", content=line, headers=headers)
        except httpx.LocalProtocolError:
            continue  # the client refuses to send it
        if answer.status_code >= 500:
            offenders[text] = answer.status_code

    assert offenders == {}


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
        pytest.param({"expires_after": -1}, "expires_after", id="in the past"),
        pytest.param({"expires_after": True}, "expires_after", id="a boolean for seconds"),
        pytest.param({"metadata": {"torpor.response": "x"}}, "metadata", id="a name of ours"),
        pytest.param({"metadata": {"a": 1}}, "metadata", id="a number in metadata"),
    ],
)
async def test_what_can_never_run_names_its_field(
    rig: Rig, change: dict[str, Any], field: str
) -> None:
    answer = await rig.client.post("/v1/jobs", json=chat_line() | change)

    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert rig.broker.events == []


async def test_an_empty_prompt_names_the_message(rig: Rig) -> None:
    answer = await rig.client.post("/v1/jobs", json=chat_line(""))

    assert answer.json()["field"] == "body.messages[0].content"


async def test_an_unknown_model_names_what_is_known(rig: Rig) -> None:
    answer = await rig.client.post("/v1/jobs", json=chat_line(model="nobody"))

    assert answer.json()["code"] == "model_not_found"
    assert "m" in answer.json()["detail"]


async def test_a_declared_body_over_the_limit_is_refused(rig: Rig) -> None:
    answer, took_s = await timed(rig, "POST", "/v1/jobs", content=b"x" * 1_100_000, headers=JSON)

    assert (answer.status_code, answer.json()["field"]) == (413, "body")
    assert took_s < 1


async def test_100_megabytes_in_pieces_are_refused_without_being_held(rig: Rig) -> None:
    async def pieces() -> Any:
        for _ in range(1600):
            yield b"x" * 65_536

    before = psutil.Process().memory_info().rss
    try:
        answer = await rig.client.post("/v1/jobs", content=pieces(), headers=JSON)
        status = answer.status_code
    except httpx.WriteError:
        status = 413  # closed on us while we were still sending

    assert status == 413
    assert psutil.Process().memory_info().rss - before < 50_000_000


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x"]
)
async def test_a_body_that_says_it_is_not_json_is_refused(rig: Rig, kind: str) -> None:
    line = orjson.dumps(chat_line())

    answer = await rig.client.post("/v1/jobs", content=line, headers={"content-type": kind})

    assert (answer.status_code, answer.json()["field"]) == (415, "content-type")


async def raw(rig: Rig, request: bytes, *, eof: bool = False, timeout_s: float = 3.0) -> bytes:
    """What comes back for bytes on a bare socket."""
    host, port = rig.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    if eof:
        writer.write_eof()
    async with asyncio.timeout(timeout_s):
        answer = await reader.read()
    writer.close()
    return answer


HEAD = b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


async def test_a_body_that_stops_half_way_is_given_up(rig: Rig) -> None:
    answer = await raw(rig, HEAD + b'content-length: 1000\r\n\r\n{"url":')

    assert answer.startswith(b"HTTP/1.1 408")


async def test_a_connection_that_is_half_closed_does_not_hang(rig: Rig) -> None:
    await raw(rig, HEAD + b'content-length: 1000\r\n\r\n{"url":', eof=True)

    assert (await rig.client.get("/healthz")).status_code == 200


async def test_what_is_no_http_does_not_hang(rig: Rig) -> None:
    answer = await raw(rig, b"\x16\x03\x01\x02\x00 hello\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 400")


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

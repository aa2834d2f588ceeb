"""Readers that take nothing: they are let go, it is no bug, and others are served meanwhile."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import orjson
import pytest
from structlog.testing import capture_logs

from api.http import sse
from tests.integration.api.conftest import Rig, chat_line
from tests.integration.api.fakes import chat_result, sse_events


@asynccontextmanager
async def deaf(rig: Rig, request: str, body: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
    """A client that makes a request and never reads."""
    address = urlsplit(rig.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    head = f"{request} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-length: {len(body)}\r\n"
    writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
    try:
        yield reader
    finally:
        writer.transport.abort()


async def never_read(rig: Rig, request: str, body: bytes = b"") -> None:
    """Returns once the api has let the client of this stream go."""
    async with deaf(rig, request, body):
        while not (jobs := (await rig.store.list_jobs("default")).jobs):
            await asyncio.sleep(0.01)
        predictor = await rig.predictor(jobs[0].id)
        with capture_logs() as logs:
            while not any(line["event"] == "a client does not read its stream" for line in logs):
                await predictor.chat("x" * 60_000)
            while rig.parts.streams.reader_count:
                await asyncio.sleep(0.02)
    assert not [line for line in logs if line["log_level"] == "error"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_reader_that_takes_nothing_is_let_go_and_is_no_bug(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    monkeypatch.setattr(sse, "_STUCK_S", 0.3)
    with caplog.at_level(logging.INFO):
        async with asyncio.timeout(60):
            if method == "GET":
                await never_read(rig, f"GET /v1/jobs/{await rig.submit()}/events")
            else:
                body = orjson.dumps({**chat_line()["body"], "stream": True})
                await never_read(rig, "POST /v1/chat/completions", body)

    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_reader_that_pauses_is_told_every_word_once(rig: Rig) -> None:
    call = {"model": "m", "input": "hi", "stream": True}
    words = [str(number) + "x" * 7_900 for number in range(48)]
    async with rig.client.stream("POST", "/v1/responses", json=call) as answer:
        predictor = await rig.predictor(answer.headers["torpor-job-id"])
        for word in words:  # more than the connection takes, less than a reader may be behind
            await predictor.chat(word)
        await asyncio.sleep(0.1)
        await predictor.finish(chat_result("".join(words)))
        events = [orjson.loads(e["data"]) async for e in sse_events(answer.aiter_lines())]

    deltas = [each["delta"] for each in events if each["type"] == "response.output_text.delta"]
    done = next(each for each in events if each["type"] == "response.output_text.done")
    assert "".join(deltas) == "".join(words)
    assert done["text"] == "".join(words)
    assert [each["sequence_number"] for each in events] == list(range(len(events)))

"""Readers that take nothing: they are let go, it is no bug, and others are served meanwhile."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from api.http import sse
from tests.integration.api.conftest import Rig


@asynccontextmanager
async def deaf(rig: Rig, job_id: str) -> AsyncIterator[asyncio.StreamReader]:
    """A reader of the job's events that asks and never reads."""
    address = urlsplit(rig.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(
        f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nhost: {address.netloc}\r\n\r\n".encode()
    )
    try:
        yield reader
    finally:
        writer.transport.abort()


async def test_a_reader_that_takes_nothing_is_let_go_and_is_no_bug(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sse, "_STUCK_S", 0.3)
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    with caplog.at_level(logging.INFO), capture_logs() as logs:
        async with deaf(rig, job_id):
            async with asyncio.timeout(8):
                while not any(
                    line["event"] == "a client does not read its stream" for line in logs
                ):
                    await predictor.chat("x" * 60_000)
                while rig.parts.streams.reader_count:
                    await asyncio.sleep(0.02)

    assert not [line for line in logs if line["log_level"] == "error"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

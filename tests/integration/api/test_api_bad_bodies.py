"""Bodies that are too long, too slow or broken off."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import psutil
import pytest

from api.settings import ApiSettings
from eventing.process.body import HELD_BYTES
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, chat_line, rig_over
from tests.integration.api.fakes import FakeBroker
from tests.integration.api.raw_line import timed
from tests.time_limits import HANG_S


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
    except (httpx.WriteError, httpx.ReadError):
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


async def raw(rig: Rig, request: bytes, *, eof: bool = False, timeout_s: float = HANG_S) -> bytes:
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


JSON = {"content-type": "application/json"}
HEAD = b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture
async def hasty(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> AsyncIterator[Rig]:
    """An api that waits for a body half a second."""
    settings = api_settings.model_copy(update={"body_timeout_s": 0.5})
    async with rig_over(settings, store, broker) as made:
        yield made


async def test_a_body_that_stops_half_way_is_given_up(hasty: Rig) -> None:
    answer = await raw(hasty, HEAD + b'content-length: 1000\r\n\r\n{"url":')

    assert answer.startswith(b"HTTP/1.1 408")


async def test_a_body_that_drips_is_given_up_as_well(hasty: Rig) -> None:
    host, port = hasty.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(HEAD + b"content-length: 1000\r\n\r\n")
    answering = asyncio.create_task(reader.read())
    async with asyncio.timeout(60):
        while not answering.done():
            writer.write(b" ")
            await asyncio.sleep(0.1)
    writer.close()

    assert (await answering).startswith(b"HTTP/1.1 408")


async def test_bodies_that_are_not_whole_have_a_limit_together(rig: Rig) -> None:
    rig.parts.body_room.take(HELD_BYTES - 100_000)  # others hold the rest
    part = HEAD + b"content-length: 1000000\r\n\r\n" + b" " * 200_000

    assert (await raw(rig, part)).startswith(b"HTTP/1.1 503")
    rig.parts.body_room.take(100_000)  # and what it held is free again


async def test_a_connection_that_is_half_closed_does_not_hang(rig: Rig) -> None:
    await raw(rig, HEAD + b'content-length: 1000\r\n\r\n{"url":', eof=True)

    assert (await rig.client.get("/healthz")).status_code == 200


async def test_bytes_that_are_not_http_do_not_hang_the_server(rig: Rig) -> None:
    answer = await raw(rig, b"\x16\x03\x01\x02\x00 hello\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 400")

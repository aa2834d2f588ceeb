"""A job's events over a WebSocket."""

import logging
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import chat_result


async def everything(rig: Rig, job_id: str, after: str = "") -> list[dict[str, Any]]:
    url = f"{rig.url.replace('http', 'ws')}/v1/jobs/{job_id}/ws?after={after}"
    async with connect(url) as socket:
        return [orjson.loads(message) async for message in socket]


async def ended_job(rig: Rig) -> str:
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    await predictor.chat("Hello")
    await predictor.chat(" you", "stop")
    await predictor.finish(chat_result("Hello you"))
    return job_id


async def test_a_socket_carries_the_same_events_as_sse(rig: Rig) -> None:
    messages = await everything(rig, await ended_job(rig))

    names = [message["event"] for message in messages]
    assert names == ["state", "attempt", "tokens", "tokens", "state", "result"]


async def test_a_socket_goes_on_after_the_last_message_seen(rig: Rig) -> None:
    job_id = await ended_job(rig)
    whole = await everything(rig, job_id)

    assert await everything(rig, job_id, after=whole[2]["id"]) == whole[3:]


async def test_a_live_socket_sees_tokens_as_they_come(rig: Rig) -> None:
    job_id = await rig.submit()

    async with connect(f"{rig.url.replace('http', 'ws')}/v1/jobs/{job_id}/ws") as socket:
        first = orjson.loads(await socket.recv())
        predictor = await rig.predictor(job_id)
        await predictor.chat("Hello")
        rest = [orjson.loads(await socket.recv()) for _ in range(2)]

    assert [first["event"]] + [message["event"] for message in rest] == [
        "state",
        "attempt",
        "tokens",
    ]


async def test_a_job_that_is_not_there_is_refused_before_the_socket_opens(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await everything(rig, "job_" + "0" * 24)

    assert caught.value.response.status_code == 404
    await everything(rig, await ended_job(rig))  # the refused call has ended by now
    assert [line for line in caplog.records if line.levelno >= logging.ERROR] == []


async def test_a_page_of_another_site_cannot_open_a_socket(rig: Rig) -> None:
    job_id = await ended_job(rig)
    url = f"{rig.url.replace('http', 'ws')}/v1/jobs/{job_id}/ws"

    with pytest.raises(InvalidStatus) as caught:
        await connect(url, origin="https://elsewhere.example")  # type: ignore[arg-type]

    assert caught.value.response.status_code == 403

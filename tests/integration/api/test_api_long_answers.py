"""An answer of 2 MB reaches readers with default limits: aiohttp takes lines of 128 KiB, websockets
messages of 1 MiB.
"""

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import connect

from tests.integration.api.conftest import Rig, chat_line
from tests.integration.api.fakes import chat_result

PIECE = "many words, " * 2_000
PIECES = 84
TEXT = PIECE * PIECES


async def long_answer(rig: Rig, job_id: str, *, streamed: bool = True) -> None:
    predictor = await rig.predictor(job_id)
    for _ in range(PIECES if streamed else 0):
        await predictor.chat(PIECE)
    await predictor.finish(chat_result(TEXT, reasoning=TEXT))


async def lines_of(rig: Rig, method: str, path: str, call: Any = None) -> list[bytes]:
    """What follows `data: `, by aiohttp's own lines."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, rig.url + path, json=call) as answer,
    ):
        lines = [line async for line in answer.content]
    assert max(map(len, lines)) <= 128 * 1024
    return [line[6:].strip() for line in lines if line.startswith(b"data: ")]


async def the_job(rig: Rig) -> str:
    async with asyncio.timeout(60):
        while not rig.broker.events:
            await asyncio.sleep(0.01)
    return rig.broker.events[0].subject


async def test_a_jobs_stream_ends_with_a_link_to_its_result(rig: Rig) -> None:
    job_id = await rig.submit()
    await long_answer(rig, job_id)

    lines = [orjson.loads(line) for line in await lines_of(rig, "GET", f"/v1/jobs/{job_id}/events")]

    told = "".join(line["delta"][0]["delta"]["content"] for line in lines if line.get("delta"))
    assert told == TEXT
    assert (lines[-1]["state"], lines[-1]["result"]) == ("completed", None)
    linked = (await rig.client.get(lines[-1]["links"]["result"])).json()
    assert linked["choices"][0]["message"]["content"] == TEXT


async def test_a_jobs_socket_too(rig: Rig) -> None:
    job_id = await rig.submit()
    await long_answer(rig, job_id)

    async with connect(f"{rig.url.replace('http', 'ws')}/v1/jobs/{job_id}/ws") as socket:
        messages = [orjson.loads(message) async for message in socket]

    assert messages[-1]["event"] == "result"
    assert messages[-1]["data"]["links"]["result"] == f"/v1/jobs/{job_id}/result"


async def test_result_events_carry_an_address(rig: Rig) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{rig.url}/v1/events") as answer,
    ):
        job_id = await rig.submit()
        await long_answer(rig, job_id)
        async for line in answer.content:
            if line.startswith(b"data: "):
                break

    event = orjson.loads(line[6:])
    assert (event["dataref"], event["data"]["response"]) == (
        f"/v1/jobs/{job_id}/result",
        None,
    )


@pytest.mark.parametrize("streamed", [True, False], ids=["in tokens", "whole at the end"])
async def test_a_chat_stream_has_no_line_that_is_too_long(rig: Rig, streamed: bool) -> None:
    """An engine that can not stream a call (beam search) gives its answer whole, at the end."""
    call = chat_line()["body"] | {"stream": True}
    reading = asyncio.create_task(lines_of(rig, "POST", "/v1/chat/completions", call))
    await long_answer(rig, await the_job(rig), streamed=streamed)

    *chunks, done = await reading

    deltas = [choice["delta"] for chunk in chunks for choice in orjson.loads(chunk)["choices"]]
    assert done == b"[DONE]"
    assert "".join(delta.get("content") or "" for delta in deltas) == TEXT
    if not streamed:
        for name in ("reasoning", "reasoning_content"):
            assert "".join(delta.get(name) or "" for delta in deltas) == TEXT
        ends = [choice["finish_reason"] for c in chunks for choice in orjson.loads(c)["choices"]]
        assert ends == [None] * (len(ends) - 1) + ["stop"]
        assert [delta.get("role") for delta in deltas if "role" in delta] == ["assistant"]


async def test_a_completions_stream_has_none_either(rig: Rig) -> None:
    call = {"model": "m", "prompt": "hi", "stream": True}
    reading = asyncio.create_task(lines_of(rig, "POST", "/v1/completions", call))
    predictor = await rig.predictor(await the_job(rig))
    choice = {"index": 0, "text": TEXT, "finish_reason": "stop", "logprobs": None}
    await predictor.finish({"object": "text_completion", "choices": [choice]})

    *chunks, _ = await reading

    choices = [choice for chunk in chunks for choice in orjson.loads(chunk)["choices"]]
    assert "".join(choice["text"] for choice in choices) == TEXT


@pytest.mark.parametrize("streamed", [True, False], ids=["in tokens", "whole at the end"])
async def test_a_responses_stream_ends_for_a_reader_of_short_lines(
    rig: Rig, streamed: bool
) -> None:
    """aiohttp's own reader: it fails at a longer line, although it has the whole text by then."""
    call = {"model": "m", "input": "hi", "stream": True}
    reading = asyncio.create_task(lines_of(rig, "POST", "/v1/responses", call))
    await long_answer(rig, await the_job(rig), streamed=streamed)

    events = [orjson.loads(line) for line in await reading]

    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == TEXT
    last = events[-1]
    assert (last["type"], last["response"]["status"]) == ("response.completed", "completed")
    whole = (await rig.client.get(f"/v1/responses/{last['response']['id']}")).json()
    assert whole["output"][-1]["content"][0]["text"] == TEXT


async def test_openais_sdk_assembles_a_long_response(rig: Rig) -> None:
    """It takes the answer from the events that close the response, and lines of any length."""
    async with (
        AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as client,
        client.responses.stream(model="m", input="hi") as stream,
    ):
        reading = asyncio.create_task(stream.get_final_response())
        await long_answer(rig, await the_job(rig))
        response = await reading

    assert response.output_text == TEXT


@pytest.mark.parametrize(
    ("headers", "is_whole"),
    [
        ({}, True),
        ({"prefer": "return=minimal"}, False),
        ({"prefer": 'respond-sync, Return = "minimal"'}, False),
        ({"user-agent": "Python/3.11 aiohttp/3.14.5", "prefer": "return=representation"}, True),
    ],
    ids=["any reader", "minimal", "minimal among others", "aiohttp with a longer line"],
)
async def test_the_reader_of_a_response_says_whether_its_end_repeats_the_text(
    rig: Rig, headers: dict[str, str], is_whole: bool
) -> None:
    call = {"model": "m", "input": "hi", "stream": True}
    asking = asyncio.create_task(rig.client.post("/v1/responses", json=call, headers=headers))
    await long_answer(rig, await the_job(rig))
    lines = [line for line in (await asking).text.splitlines() if line.startswith("data: ")]

    assert bool(orjson.loads(lines[-1][6:])["response"]["output"]) is is_whole

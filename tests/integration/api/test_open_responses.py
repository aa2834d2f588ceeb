"""The Open Responses specification of 2026-04-24: what its compliance suite asks for, over HTTP and
WebSocket, and every object and event held against the specification's own schema.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from openresponses_types import types as spec
from pydantic import BaseModel, TypeAdapter
from websockets.asyncio.client import ClientConnection, connect

from eventing.job.job import Job
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakePredictor, chat_result, sse_events

PNG = "data:image/png;base64,iVBORw0KGgo="
TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}
TERMINAL = ("response.completed", "response.failed", "response.incomplete", "error")


def _events() -> dict[str, type[BaseModel]]:
    """The specification's events by their `type`."""
    named = {}
    for name in dir(spec):
        if name.endswith("StreamingEvent") and name != "ErrorStreamingEvent":
            model: type[BaseModel] = getattr(spec, name)
            (kind,) = TypeAdapter(model.model_fields["type"].annotation).json_schema()["enum"]
            named[kind] = model
    return named


EVENTS = _events()


class Model:
    """A predictor that answers every job of a rig: a call of a tool where it may, else words."""

    def __init__(self, rig: Rig, group: asyncio.TaskGroup) -> None:
        self._rig, self._group = rig, group
        self.asked: list[Job] = []
        rig.broker.on_event = lambda event: self._take(event.subject)

    def _take(self, job_id: str) -> None:
        self._group.create_task(self._answer(job_id))

    async def _answer(self, job_id: str) -> None:
        job = await self._rig.store.get(job_id)  # type: ignore[arg-type]
        assert job is not None
        self.asked.append(job)
        predictor = await FakePredictor(self._rig.store, job_id).start()
        if job.request.body.get("tools"):
            function = {"name": "get_weather", "arguments": '{"place": "Bern"}'}
            call = {"index": 0, "id": "call_1", "type": "function", "function": function}
            await predictor.say({"index": 0, "delta": {"tool_calls": [call]}})
            await predictor.finish(chat_result("", tool_calls=[call]))
            return
        await predictor.chat("one ")
        await predictor.chat("two", "stop")
        await predictor.finish(chat_result("one two"))


@pytest.fixture
async def model(rig: Rig) -> AsyncIterator[Model]:
    async with asyncio.TaskGroup() as group:
        yield Model(rig, group)


def user(content: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": content}


async def answered(rig: Rig, path: str = "/v1/responses", **call: Any) -> dict[str, Any]:
    answer = await rig.client.post(path, json={"model": "m"} | call)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def check_events(events: list[dict[str, Any]]) -> None:
    """Each is an event of the specification, and they are numbered."""
    for event in events:
        EVENTS[event["type"]].model_validate(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([user("hello")], id="a text"),
        pytest.param(
            [{"type": "message", "role": "system", "content": "be a pirate"}, user("hello")],
            id="a system message",
        ),
        pytest.param(
            [
                user("I am Ann."),
                {"type": "message", "role": "assistant", "content": "Hello Ann."},
                user("Who am I?"),
            ],
            id="several turns",
        ),
        pytest.param(
            [
                {"role": "assistant", "phase": "commentary", "content": "I look it up."},
                {"role": "assistant", "phase": "final_answer", "content": "It is four."},
                user("Say it again."),
            ],
            id="phases of an assistant",
        ),
        pytest.param(
            [
                user(
                    [
                        {"type": "input_text", "text": "What is this?"},
                        {"type": "input_image", "image_url": PNG},
                    ]
                )
            ],
            id="an image",
        ),
    ],
)
async def test_a_response_is_whole_and_completed(
    rig: Rig, model: Model, items: list[dict[str, Any]]
) -> None:
    response = await answered(rig, input=items)

    spec.ResponseResource.model_validate(response)
    assert response["status"] == "completed"
    assert response["output"][0]["content"][0]["text"] == "one two"
    assert len(model.asked[0].request.body["messages"]) == len(items)


async def test_a_tool_is_called(rig: Rig, model: Model) -> None:
    response = await answered(rig, input=[user("weather?")], tools=[TOOL])

    spec.ResponseResource.model_validate(response)
    assert [item["type"] for item in response["output"]] == ["function_call"]


@pytest.mark.parametrize("tools", [[], [TOOL]], ids=["a text", "a call"])
async def test_every_event_of_a_stream_is_the_specifications(
    rig: Rig, model: Model, tools: list[dict[str, Any]]
) -> None:
    call = {"model": "m", "input": [user("count")], "stream": True, "tools": tools}
    async with rig.client.stream("POST", "/v1/responses", json=call) as answer:
        told = [e async for e in sse_events(answer.aiter_lines())]
    events = [orjson.loads(event["data"]) for event in told]

    check_events(events)
    assert [event["event"] for event in told] == [event["type"] for event in events]
    assert events[-1]["response"]["status"] == "completed"


async def test_a_conversation_is_compacted(rig: Rig, model: Model) -> None:
    compacted = await answered(
        rig, "/v1/responses/compact", input=[user("We launch on Tuesday.")], prompt_cache_key="k"
    )

    spec.CompactResource.model_validate(compacted)
    assert [item["type"] for item in compacted["output"]] == ["message", "compaction"]


async def test_a_compaction_without_a_model_is_refused(rig: Rig) -> None:
    answer = await rig.client.post("/v1/responses/compact", json={"input": [user("x")]})

    assert answer.status_code in (400, 422)


@asynccontextmanager
async def opened(rig: Rig) -> AsyncIterator[ClientConnection]:
    async with connect(f"{rig.url.replace('http', 'ws')}/v1/responses") as socket:
        yield socket


async def turn(socket: ClientConnection, **call: Any) -> dict[str, Any]:
    """The last event of a turn, all of them held against the schema."""
    await socket.send(orjson.dumps({"type": "response.create", "model": "m"} | call).decode())
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] not in TERMINAL:
        events.append(orjson.loads(await socket.recv()))
    if events[-1]["type"] == "error":
        spec.WebSocketErrorEvent.model_validate(events[-1])
    else:
        check_events(events)
    return events[-1]


async def test_a_socket_answers_one_turn_after_the_other(rig: Rig, model: Model) -> None:
    async with opened(rig) as socket:
        first = await turn(socket, input=[user("count")])
        second = await turn(socket, store=False, input="and again")

    for last in (first, second):
        spec.ResponseResource.model_validate(last["response"])
        assert last["response"]["status"] == "completed"


async def test_what_is_not_stored_goes_on_on_its_socket_alone(rig: Rig, model: Model) -> None:
    async with opened(rig) as socket:
        first = await turn(socket, store=False, input="the word is cobalt")
        previous = {"store": False, "previous_response_id": first["response"]["id"]}
        second = await turn(socket, **previous, input="which word?")
    async with opened(rig) as other:
        missed = await turn(other, **previous, input="which word?")
        recovered = await turn(other, store=False, input=[user("start anew")])

    assert [m["content"] for m in model.asked[1].request.body["messages"]] == [
        "the word is cobalt",
        "one two",
        "which word?",
    ]
    assert second["type"] == recovered["type"] == "response.completed"
    assert (missed["status"], missed["error"]["code"]) == (400, "previous_response_not_found")


async def test_a_failed_turn_evicts_what_it_was_to_go_on_from(rig: Rig, model: Model) -> None:
    output = {"type": "function_call_output", "call_id": "call_nobody", "output": "7"}
    async with opened(rig) as socket:
        first = await turn(socket, store=False, input="the word is ember")
        previous = {"store": False, "previous_response_id": first["response"]["id"]}
        failed = await turn(socket, **previous, input=[output])
        again = await turn(socket, **previous, input="which word?")

    assert failed["type"] == "error"
    assert again["error"]["code"] == "previous_response_not_found"


async def test_a_compacted_conversation_goes_on_over_a_socket(rig: Rig, model: Model) -> None:
    compacted = await answered(rig, "/v1/responses/compact", input=[user("the word is slate")])

    async with opened(rig) as socket:
        last = await turn(
            socket, store=False, tools=[], input=[*compacted["output"], user("which word?")]
        )

    assert last["response"]["status"] == "completed"
    assert "one two" in model.asked[-1].request.body["messages"][1]["content"]

"""Responses over a WebSocket: OpenAI's own client where it will, exact messages elsewhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.settings import ApiSettings
from eventing.job.job import JobState
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, rig_over
from tests.integration.api.fakes import FakeBroker, FakeEngine, chat_result

TERMINAL = ("response.completed", "response.failed", "response.incomplete", "error")


@pytest.fixture
async def socket(rig: Rig) -> AsyncIterator[ClientConnection]:
    async with opened(rig) as made:
        yield made


@asynccontextmanager
async def opened(rig: Rig, **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect(f"{rig.url.replace('http', 'ws')}/v1/responses", **options) as made:
        yield made


async def send(socket: ClientConnection, **call: Any) -> None:
    asked = {"type": "response.create", "model": "m", "input": "hi"} | call
    await socket.send(orjson.dumps(asked).decode())


async def events_of(socket: ClientConnection) -> list[dict[str, Any]]:
    """The events of one turn."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] not in TERMINAL:
        events.append(orjson.loads(await socket.recv()))
    return events


async def turn(socket: ClientConnection, **call: Any) -> dict[str, Any]:
    """The event that ends one turn."""
    await send(socket, **call)
    return (await events_of(socket))[-1]


def error_of(event: dict[str, Any]) -> tuple[int, str, str | None]:
    assert event["type"] == "error"
    return event["status"], event["error"]["code"], event["error"]["param"]


async def test_openais_client_has_its_answer_over_a_socket(rig: Rig, engine: FakeEngine) -> None:
    async with (
        AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none") as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(model="m", input="hi")
        events = [event async for event in _until_end(connection)]

    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        engine.answer
    )


async def _until_end(connection: Any) -> AsyncIterator[Any]:
    async for event in connection:
        yield event
        if event.type in TERMINAL:
            return


async def test_the_events_are_those_of_a_streamed_response(
    rig: Rig, engine: FakeEngine, socket: ClientConnection
) -> None:
    await send(socket)
    over_socket = [event["type"] for event in await events_of(socket)]

    call = {"model": "m", "input": "hi", "stream": True}
    streamed = (await rig.client.post("/v1/responses", json=call)).text
    over_http = [line[7:] for line in streamed.splitlines() if line.startswith("event: ")]
    assert over_socket == over_http


async def test_calls_that_were_sent_ahead_are_answered_one_by_one(
    engine: FakeEngine, socket: ClientConnection
) -> None:
    for text in ("one", "two"):
        await send(socket, input=text)

    first, second = await events_of(socket), await events_of(socket)

    named = [{e["response"]["id"] for e in one if "response" in e} for one in (first, second)]
    assert [len(ids) for ids in named] == [1, 1]
    assert first[-1]["response"]["id"] != second[-1]["response"]["id"]
    assert [job.request.body["messages"][0]["content"] for job in engine.played] == ["one", "two"]


async def test_an_unstored_response_can_be_continued_on_its_connection(
    engine: FakeEngine, socket: ClientConnection
) -> None:
    first = await turn(socket, store=False, input="my name is Ann")

    await turn(socket, store=False, input="my name?", previous_response_id=first["response"]["id"])

    assert engine.played[-1].request.body["messages"] == [
        {"role": "user", "content": "my name is Ann"},
        {"role": "assistant", "content": engine.answer},
        {"role": "user", "content": "my name?"},
    ]


async def test_another_connection_does_not_know_what_was_not_stored(
    rig: Rig, engine: FakeEngine, socket: ClientConnection
) -> None:
    first = await turn(socket, store=False)

    async with opened(rig) as other:
        missed = await turn(other, store=False, previous_response_id=first["response"]["id"])
        after = await turn(other, store=False)

    assert error_of(missed) == (400, "previous_response_not_found", "previous_response_id")
    assert after["type"] == "response.completed"


async def test_a_stored_response_can_be_continued_on_any_connection(
    rig: Rig, engine: FakeEngine, socket: ClientConnection
) -> None:
    first = await turn(socket)

    async with opened(rig) as other:
        second = await turn(other, previous_response_id=first["response"]["id"])

    assert second["type"] == "response.completed"


async def test_what_a_failed_turn_was_to_go_on_from_is_forgotten(
    engine: FakeEngine, socket: ClientConnection
) -> None:
    previous = (await turn(socket, store=False))["response"]["id"]
    output = {"type": "function_call_output", "call_id": "call_nobody", "output": "7"}

    failed = await turn(socket, store=False, previous_response_id=previous, input=[output])
    again = await turn(socket, store=False, previous_response_id=previous)

    assert error_of(failed) == (400, "invalid_job", "input")
    assert error_of(again)[1] == "previous_response_not_found"


async def test_a_response_can_be_prepared_without_an_answer(
    engine: FakeEngine, socket: ClientConnection
) -> None:
    prepared = await turn(socket, store=False, generate=False, input="you are a pirate")
    assert (prepared["response"]["status"], prepared["response"]["output"]) == ("completed", [])
    assert engine.played == []

    await turn(socket, store=False, previous_response_id=prepared["response"]["id"])

    assert [m["content"] for m in engine.played[0].request.body["messages"]] == [
        "you are a pirate",
        "hi",
    ]


@pytest.mark.parametrize(
    ("message", "status", "param"),
    [
        pytest.param("not json", 400, "body", id="no JSON"),
        pytest.param({"type": "response.cancel"}, 400, "type", id="another event"),
        pytest.param({"background": True}, 400, "background", id="in the background"),
        pytest.param({"stream": False}, 400, "stream", id="not streamed"),
        pytest.param({"generate": "no"}, 400, "generate", id="generate is no boolean"),
        pytest.param({"stream_id": "a"}, 400, "stream_id", id="several at once"),
        pytest.param({"model": "nobody"}, 404, "model", id="an unknown model"),
        pytest.param({"input": []}, 400, "input", id="nothing asked"),
    ],
)
async def test_a_refused_call_gets_an_error_and_the_connection_stays_open(
    engine: FakeEngine, socket: ClientConnection, message: Any, status: int, param: str
) -> None:
    asked = {"type": "response.create", "model": "m", "input": "hi"}
    text = message if isinstance(message, str) else orjson.dumps(asked | message).decode()

    await socket.send(text)
    refused = (await events_of(socket))[-1]

    assert (refused["status"], refused["error"]["param"]) == (status, param)
    assert (await turn(socket))["type"] == "response.completed"


async def test_a_client_that_leaves_cancels_what_it_waits_for(rig: Rig) -> None:
    async with opened(rig) as socket:
        await send(socket)
        created = orjson.loads(await socket.recv())

    job_id = created["response"]["id"].replace("resp_", "job_")
    async with asyncio.timeout(60):
        while (job := await rig.store.get(job_id)) is None or job.state is not JobState.CANCELLED:
            await asyncio.sleep(0.01)


async def test_a_key_is_asked_for_before_the_socket_opens(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker, acme: dict[str, str]
) -> None:
    settings = api_settings.model_copy(update={"keys_source": "redis"})
    async with rig_over(settings, store, broker) as rig:
        with pytest.raises(InvalidStatus) as refusal:
            async with opened(rig):
                pass
        async with opened(rig, additional_headers=acme) as socket:
            assert error_of(await turn(socket, model="nobody"))[0] == 404

    assert refusal.value.response.status_code == 401


async def test_a_connection_is_served_for_so_long(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> None:
    settings = api_settings.model_copy(update={"response_socket_s": 0.05})
    async with rig_over(settings, store, broker) as rig, opened(rig) as socket:
        last = (await events_of(socket))[-1]
        with pytest.raises(ConnectionClosed):
            await socket.recv()

    assert error_of(last)[:2] == (400, "websocket_connection_limit_reached")


async def test_a_client_that_sends_too_far_ahead_is_disconnected(rig: Rig) -> None:
    async with opened(rig) as socket:
        for _ in range(30):
            await send(socket)
        with suppress(ConnectionClosed):
            async for _ in socket:
                continue

        assert socket.close_code == 1008


async def test_at_shutdown_the_client_gets_an_error_and_the_response_goes_on(rig: Rig) -> None:
    async with opened(rig) as socket:
        await send(socket)
        created = orjson.loads(await socket.recv())
        rig.parts.shutdown.begin()
        last = (await events_of(socket))[-1]

    job_id = created["response"]["id"].replace("resp_", "job_")
    assert error_of(last)[:2] == (503, "shutting_down")
    assert (await rig.predictor(job_id)).lease.attempt == 1


async def test_no_message_is_longer_than_default_readers_take(rig: Rig) -> None:
    """Python's `websockets` takes 1 MiB a message, and hangs up on a longer one."""
    async with opened(rig) as socket:
        await send(socket, store=False)
        job_id = orjson.loads(await socket.recv())["response"]["id"].replace("resp_", "job_")
        predictor = await rig.predictor(job_id)
        pieces = ["x" * 50_000] * 40
        for piece in pieces:
            await predictor.chat(piece)
        await predictor.finish(chat_result("".join(pieces)))
        events = await events_of(socket)

    told = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert len(told) == 2_000_000
    assert events[-1]["type"] == "response.completed"

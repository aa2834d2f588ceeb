"""Stand-ins for the rooms behind the api: a broker that remembers, a predictor that plays.

`FakePredictor` goes through the real `Store` as a predictor does (lease, checkpoints, finish), with
answers that the test hands it; `FakeEngine` answers every published job by itself.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI

from api.http.protocol import BoundedHttpProtocol, protocol_class
from eventing.cloudevent.event import Event
from eventing.errors import BrokerUnavailable
from eventing.job.job import Job, JobError, JobId, JobState
from eventing.job.store import NO_LEASE, Ending, Store, TokenBatch
from tests.contract.rig import append

OWNER = "fake-predictor"


class FakeBroker:
    """A `Publisher` that keeps what it was given; `is_down` makes it refuse, `is_mute` hang."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_down = False
        self.is_mute = False
        self.on_event: Callable[[Event], None] = lambda _: None

    async def publish(self, event: Event) -> None:
        if self.is_mute:
            await asyncio.sleep(3600)
        if self.is_down:
            raise BrokerUnavailable("down")
        self.events.append(event)
        self.on_event(event)

    async def until_asked_for(self, job_id: str) -> None:
        """Return once the job's event is here, as it will be soon after its 202."""
        async with asyncio.timeout(60):
            while not (self.is_down or self.is_mute) and not any(
                event.subject == job_id for event in self.events
            ):
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        """Nothing is held open."""


class FakePredictor:
    """Plays one attempt at one job, step by step."""

    def __init__(self, store: Store, job_id: str) -> None:
        self._store = store
        self.job_id = JobId(job_id)
        self.lease = NO_LEASE
        self.index = 0

    async def start(self, *, can_resume: bool = True) -> "FakePredictor":
        acquired = await self._store.acquire(self.job_id, OWNER, can_resume=can_resume)
        self.lease, self.index = acquired.lease, acquired.token_count
        return self

    async def say(self, *choices: dict[str, Any], tokens: int = 1) -> None:
        """Checkpoint `tokens` tokens that show `choices`."""
        ids = tuple(range(self.index, self.index + tokens))
        delta = orjson.dumps(choices).decode()
        await append(
            self._store, self.lease, TokenBatch(index=self.index, token_ids=ids, delta=delta)
        )
        self.index += tokens

    async def chat(self, text: str, finish_reason: str | None = None) -> None:
        choice: dict[str, Any] = {"index": 0, "delta": {"content": text}}
        await self.say(choice | ({"finish_reason": finish_reason} if finish_reason else {}))

    async def finish(self, result: dict[str, Any] | None = None, **fields: Any) -> None:
        state = fields.pop("state", JobState.COMPLETED)
        usage = (result or {}).get("usage")
        ending = Ending(state=state, result=result, usage=usage, **fields)
        await self._store.finish(self.lease, ending)

    async def fail(self, code: str, message: str = "it broke", field: str = "") -> None:
        error = JobError(code=code, message=message, field=field)
        await self.finish(state=JobState.FAILED, error=error, is_dead_letter=True)


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def chat_result(text: str, **message: Any) -> dict[str, Any]:
    """The body a predictor stores for a chat completion."""
    return {
        "id": "engine-1",
        "object": "chat.completion",
        "created": 1,
        "model": "engine",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text} | message,
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": USAGE,
    }


class FakeEngine:
    """Answers every job that the broker is given: the words of `answer`, one token each."""

    def __init__(self, store: Store, broker: FakeBroker, group: asyncio.TaskGroup) -> None:
        self._store = store
        self._group = group
        self.answer = "Hello there friend"
        self.played: list[Job] = []
        broker.on_event = self._take

    def _take(self, event: Event) -> None:
        if event.type.endswith("requested.v1"):
            self._group.create_task(self._play(JobId(event.subject)))

    async def _play(self, job_id: JobId) -> None:
        job = await self._store.get(job_id)
        assert job is not None
        self.played.append(job)
        predictor = await FakePredictor(self._store, job_id).start()
        match job.request.url:
            case "/v1/chat/completions" | "/v1/chat/completions/batch":
                await self._speak(predictor, lambda text: {"delta": {"content": text}})
                await predictor.finish(chat_result(self.answer))
            case "/v1/completions":
                await self._speak(predictor, lambda text: {"text": text})
                await predictor.finish(_text_result(self.answer))
            case _:
                await predictor.finish(_embedding_result(job.request.body["input"]))

    async def _speak(self, predictor: FakePredictor, form: Callable[[str], dict[str, Any]]) -> None:
        words = [word + " " for word in self.answer.split()]
        words[-1] = words[-1].rstrip()
        for number, word in enumerate(words):
            end = {"finish_reason": "stop"} if number == len(words) - 1 else {}
            await predictor.say({"index": 0, **form(word), **end})


def _text_result(text: str) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    return {
        "id": "e",
        "object": "text_completion",
        "created": 1,
        "choices": [choice],
        "usage": USAGE,
    }


def _embedding_result(texts: Any) -> dict[str, Any]:
    count = 1 if isinstance(texts, str) else len(texts)
    data = [{"object": "embedding", "index": i, "embedding": [0.5, 0.25]} for i in range(count)]
    usage = {"prompt_tokens": 2, "total_tokens": 2}
    return {"object": "list", "data": data, "model": "e", "usage": usage}


@asynccontextmanager
async def serving(
    app: FastAPI, protocol: type[BoundedHttpProtocol] | None = None
) -> AsyncIterator[str]:
    """The application behind a real uvicorn on a free loopback port; gives its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with _served(app, listening, protocol) as url:
            yield url


@asynccontextmanager
async def _served(
    app: FastAPI, listening: socket.socket, protocol: type[BoundedHttpProtocol] | None
) -> AsyncIterator[str]:
    # asyncio sets it for sockets that it makes itself; without, an answer waits 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        http=protocol_class(10_000) if protocol is None else protocol,
        ws="websockets-sansio",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(server._serve([listening]))
        while not server.started:
            assert not task.done()
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True


async def sse_events(
    lines: AsyncIterator[str], *, with_keep_alives: bool = False
) -> AsyncIterator[dict[str, str]]:
    """The events of an SSE stream as dicts of their fields; comments are under `comment`. Keep-alives, which come by
    the clock, are left out unless wanted; they are under `blank`.
    """
    event: dict[str, str] = {}
    async for line in lines:
        if not line:
            if event:
                yield event
            event = {}
            continue
        if line == " ":
            if with_keep_alives:
                yield {"blank": ""}
            continue
        name, _, value = line.partition(": ")
        if name:
            event[name] = value
        else:
            yield {"comment": value}


def names_of(events: Sequence[dict[str, str]]) -> list[str]:
    return [event["event"] for event in events if "event" in event]

"""Everything that callers do, at once and for long: twins under one key, other bodies under it, events of strangers,
redrives, deletes, cancels, readers of streams, webhooks. What they are told goes into the history.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import aiohttp
import orjson

from eventing.cloudevent.event import Event, build_binary
from eventing.cloudevent.job_event import REQUESTED
from eventing.job.job import derive_job_id
from tests.faults.client import body
from tests.faults.history import Kind
from tests.faults.hooks import Hooks
from tests.faults.processes import System
from tests.faults.programs import Program, port_of

_AWAY: Final = (aiohttp.ClientError, TimeoutError, ConnectionError, orjson.JSONDecodeError)
_SOURCE: Final = "/soak"
_TRUSTED_AFTER_S: Final = 5.0
"""An answer this old can not be taken back by a failover that comes now."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked under a key, and when it was accepted."""

    line: dict[str, Any]
    key: str
    job_id: str
    at_s: float
    noted: dict[str, Any]


@dataclass(eq=False)
class SoakLoad:
    """Callers of a fleet, until `stop`."""

    system: System
    brokers: list[Program]
    hooks: Hooks
    draw: random.Random
    session: aiohttp.ClientSession
    asked: list[Asked] = field(default_factory=list)
    events: list[tuple[Event, float]] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    mended: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    is_store_trusted: Callable[[], bool] = lambda: True
    """False while what was accepted may be gone and is not asked again yet."""
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        self._stopped.set()

    async def run(self) -> None:
        """All callers, several of each kind."""
        kinds: list[Callable[[], Coroutine[Any, Any, None]]] = [
            *[self.twins] * 3,
            self.other_body,
            self.stranger,
            self.poison,
            *[self.delete] * 2,
            self.cancel,
            *[self.follow] * 2,
            *[self.chat] * 2,
        ]
        async with asyncio.TaskGroup() as group:
            for caller in kinds:
                group.create_task(self._again_and_again(caller))

    async def _again_and_again(self, caller: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while not self._stopped.is_set():
            with suppress(*_AWAY):
                await caller()
                self.done[caller.__name__] = self.done.get(caller.__name__, 0) + 1
            await asyncio.sleep(self.draw.uniform(0.2, 1))

    async def submitted(self, line: dict[str, Any], **noted: Any) -> Asked:
        """Accepted, however often that takes."""
        key = f"soak-{next(self._numbers)}"
        job_id = await self.system.client.submit(line, key, within_s=120, **noted)
        made = Asked(line, key, job_id, time.monotonic(), noted)
        self.asked.append(made)
        return made

    def line(self, **knobs: Any) -> dict[str, Any]:
        return body(next(self._numbers), tokens=self.draw.randint(2, 120), **knobs)

    async def twins(self) -> None:
        """The same call twice at once, at two api processes."""
        noted: dict[str, Any] = {}
        line = self.line()
        if self.draw.random() < 0.3:
            line["webhook"], noted = {"url": self.hooks.url}, {"webhook": True}
        key = f"soak-{next(self._numbers)}"
        client = self.system.client
        both = (client.submit(line, key, within_s=120, **noted) for _ in range(2))
        job_id, _ = await asyncio.gather(*both)
        self.asked.append(Asked(line, key, job_id, time.monotonic(), noted))

    async def other_body(self) -> None:
        """Another call under a key that was used."""
        old = [it for it in self.asked if it.at_s < time.monotonic() - _TRUSTED_AFTER_S]
        if old and self.is_store_trusted():
            await self.system.client.submit_once(self.line(), self.draw.choice(old).key)

    async def stranger(self) -> None:
        """An event of somebody else's, at a broker and at an api, until it is taken."""
        number = next(self._numbers)
        data = orjson.dumps(body(number, tokens=self.draw.randint(2, 60)))
        made = Event(
            id=str(number),
            source=_SOURCE,
            type=REQUESTED,
            datacontenttype="application/json",
            data=data,
        )
        await self.send(made)

    async def send(self, event: Event) -> None:
        headers, content = build_binary(event)
        job_id = derive_job_id(event.source, event.id)
        for _ in range(2):
            while True:
                bases = [f"{base}/v1/events" for base in self.system.client.bases]
                bases += [f"http://127.0.0.1:{port_of(broker)}/" for broker in self.brokers]
                with suppress(*_AWAY):
                    url = self.draw.choice(bases)
                    async with self.session.post(url, data=content, headers=headers) as answer:
                        await answer.read()
                        if answer.status in (200, 202):
                            break
                        assert answer.status >= 500 or answer.status == 429, answer.status
                await asyncio.sleep(0.1)
        self.system.history.add(Kind.OK, "submit", job_id=job_id, key=f"event-{event.id}")
        self.events.append((event, time.monotonic()))

    async def poison(self) -> None:
        """A job that can not work; when it has failed it is mended and redriven, or left."""
        made = await self.submitted(self.line(fail_at=1), is_poison=True)
        await self._seen(made.job_id, ("failed",))
        if self.draw.random() < 0.6:
            mended = body(next(self._numbers), tokens=6)
            self.mended[made.job_id] = mended
            await self.redrive(made.job_id)

    async def redrive(self, job_id: str) -> None:
        """Until it is no dead letter any more."""
        while True:
            noted = {"job_id": job_id, "is_mended": True}
            # Before the call: whatever is seen from now on may be of the new life.
            self.system.history.add(Kind.OK, "redrive", **noted)
            with suppress(*_AWAY):
                path = f"/v1/dead-letters/{job_id}/redrive"
                status, _ = await self.call("POST", path, json=self.mended[job_id])
                if status in (202, 404, 409):
                    self.system.history.add(Kind.OK, "redrive", **noted)
                    return
            await asyncio.sleep(0.2)

    async def delete(self) -> None:
        """A background response that is forgotten while it waits, runs, or has ended."""
        call = {"model": "seeded", "input": "why?", "background": True, "max_output_tokens": 40}
        key = {"idempotency-key": f"soak-{next(self._numbers)}"}
        status, made = await self.call("POST", "/v1/responses", json=call, headers=key)
        if status not in (200, 202):
            return
        response_id = made["id"]
        job_id = response_id.replace("resp_", "job_", 1)
        await asyncio.sleep(self.draw.choice([0, 0, self.draw.uniform(0, 1)]))
        self.system.history.add(Kind.INVOKE, "delete", job_id=job_id)
        while True:
            with suppress(*_AWAY):
                status, _ = await self.call("DELETE", f"/v1/responses/{response_id}")
                if status in (200, 404):
                    break
            await asyncio.sleep(0.2)
        self.deleted.add(response_id)
        self.system.history.add(Kind.OK, "delete", job_id=job_id)

    async def cancel(self) -> None:
        made = await self.submitted(self.line())
        await asyncio.sleep(self.draw.uniform(0, 0.6))
        while True:
            with suppress(*_AWAY, KeyError):
                await self.system.client.cancel(made.job_id)
                return
            await asyncio.sleep(0.2)

    async def follow(self) -> None:
        """A reader of a job's events, who comes back with its last id until it has the result."""
        made = await self.submitted(self.line())
        reader = Reader()
        async with asyncio.timeout(120):
            while not reader.has_result and not self._stopped.is_set():
                with suppress(*_AWAY):
                    base = self.draw.choice(self.system.client.bases)
                    url = f"{base}/v1/jobs/{made.job_id}/events"
                    headers = {"last-event-id": reader.cursor} if reader.cursor else {}
                    async with self.session.get(url, headers=headers) as answer:
                        await reader.read(answer)
                await asyncio.sleep(0.1)
        if reader.state == "completed" and not reader.had_gap:
            self._whole(made.job_id, reader.text)

    async def chat(self) -> None:
        """A streamed chat: one that ends in [DONE] is whole."""
        number = next(self._numbers)
        call = body(number, tokens=self.draw.randint(20, 150))["body"] | {"stream": True}
        text, last = "", ""
        url = f"{self.draw.choice(self.system.client.bases)}/v1/chat/completions"
        async with self.session.post(url, json=call) as answer:
            if answer.status != 200:
                return
            job_id = answer.headers["torpor-job-id"]
            async for raw in answer.content:
                if raw.startswith(b"data: "):
                    last = raw.decode().removeprefix("data: ").strip()
                    text += _piece(last)
        if last == "[DONE]":
            self._whole(job_id, text)

    def _whole(self, job_id: str, text: str) -> None:
        self.system.history.add(Kind.SEEN, "whole stream", job_id=job_id, text=text)

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
        base = self.draw.choice(self.system.client.bases)
        async with self.session.request(method, base + path, **more) as answer:
            return answer.status, orjson.loads(await answer.read() or b"{}")

    async def _seen(self, job_id: str, states: tuple[str, ...]) -> None:
        async with asyncio.timeout(120):
            while True:
                with suppress(*_AWAY):
                    status, job = await self.call("GET", f"/v1/jobs/{job_id}")
                    if status == 200 and job["state"] in states:
                        return
                await asyncio.sleep(0.3)

    async def ask_again(self, since_s: float) -> None:
        """What careful callers do after a failover: everything that was accepted of late is asked again."""
        since_s -= 1
        for it in [it for it in self.asked if it.at_s >= since_s]:
            await self._ask_again(it)
        for event, at_s in list(self.events):
            if at_s >= since_s:
                await self.send(event)

    async def _ask_again(self, it: Asked) -> None:
        """Until it is accepted. A job that was redriven with another request answers its old call with 409."""
        async with asyncio.timeout(120):
            while it.job_id not in self.mended:
                if await self.system.client.submit_once(it.line, it.key, **it.noted):
                    return
                await asyncio.sleep(0.1)


class Reader:
    """The screen of somebody who follows a job's events."""

    def __init__(self) -> None:
        self.cursor = ""
        self.state = ""
        self.had_gap = False
        self.has_result = False
        self._pieces: list[tuple[int, str]] = []

    @property
    def text(self) -> str:
        return "".join(text for _, text in self._pieces)

    async def read(self, answer: aiohttp.ClientResponse) -> None:
        """Until the stream ends or breaks."""
        name, cursor = "", ""
        if answer.status != 200:
            return
        async for raw in answer.content:
            line = raw.decode().rstrip("\n")
            if line.startswith("id: "):
                cursor = line[4:]
            elif line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                self._take(name, orjson.loads(line[6:]))
                self.cursor, name = cursor or self.cursor, ""

    def _take(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "attempt":
                self._pieces = [piece for piece in self._pieces if piece[0] < data["index"]]
            case "tokens":
                for choice in data["delta"]:
                    self._pieces.append((data["index"], choice["delta"].get("content") or ""))
            case "gap":
                self.had_gap = True
            case "result":
                self.has_result, self.state = True, data["state"]


def _piece(data: str) -> str:
    if data == "[DONE]":
        return ""
    choices = orjson.loads(data).get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")


@asynccontextmanager
async def callers_of(
    system: System, brokers: list[Program], hooks: Hooks, draw: random.Random
) -> AsyncIterator[SoakLoad]:
    timeout = aiohttp.ClientTimeout(total=40, sock_connect=5, sock_read=15)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        yield SoakLoad(system, brokers, hooks, draw, session)

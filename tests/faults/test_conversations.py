"""A conversation under kill -9 of each process: every turn once, whole, and in order."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventing.job.job import JobId
from tests.faults.history import Kind
from tests.faults.processes import System, running
from tests.faults.programs import Program, Tuning, Zygote
from tests.faults.proxy import Proxy, Way
from tests.faults.test_kill import called, kill_at, warm

pytestmark = pytest.mark.timeout(1800)

Step = tuple[Program, Proxy, bytes, Way, bool]


class Talk:
    """A client with one conversation, which repeats each call under its key until it is taken."""

    def __init__(self, system: System, http: httpx.AsyncClient, conversation: str) -> None:
        self._system = system
        self._http = http
        self.conversation = conversation
        self.jobs: list[str] = []
        self.texts: list[str] = []

    async def say(self, text: str) -> None:
        """A turn, asked until it is taken; repeats have its Idempotency-Key."""
        body = {
            "model": "seeded",
            "input": text,
            "conversation": self.conversation,
            "background": True,
            "max_output_tokens": 12,
        }
        while True:
            try:
                answer = await self._http.post(
                    "/v1/responses", json=body, headers={"idempotency-key": text}
                )
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                break
            assert answer.status_code in (409, 503), answer.text
        self.jobs.append(answer.json()["id"].replace("resp_", "job_"))
        self.texts.append(text)

    async def items(self) -> list[dict[str, Any]]:
        path, found, after = f"/v1/conversations/{self.conversation}/items", [], ""
        while True:
            query = {"order": "asc", "limit": "100"} | ({"after": after} if after else {})
            page = (await self._http.get(path, params=query)).json()
            found += page["data"]
            if not page["has_more"]:
                return found
            after = page["last_id"]


def said(items: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Who said what."""
    return [(item["role"], item["content"][0]["text"]) for item in items]


async def expected(system: System, talk: Talk) -> list[tuple[str, str]]:
    """What the conversation must hold: each turn and its job's answer, in order."""
    turns = []
    for text, job_id in zip(talk.texts, talk.jobs, strict=True):
        job = await system.store.get(JobId(job_id))
        assert job is not None
        assert job.result is not None
        answer = job.result["choices"][0]["message"]["content"]
        turns += [("user", text), ("assistant", answer)]
    return turns


def steps_of(system: System) -> list[Step]:
    """Every point of a turn at which a process can die."""
    api, predictor, broker = system.api, system.predictor, system.broker
    steps: list[Step] = []
    for is_forwarded in (False, True):
        steps += [
            (api, system.api_redis, called("submit"), Way.UP, is_forwarded),
            (predictor, system.predictor_redis, called("acquire"), Way.UP, is_forwarded),
            (predictor, system.predictor_redis, called("append"), Way.UP, is_forwarded),
            (predictor, system.predictor_redis, called("finish"), Way.UP, is_forwarded),
            (broker, system.broker_redis, called("enqueue"), Way.UP, is_forwarded),
            (broker, system.broker_redis, called("settle"), Way.UP, is_forwarded),
        ]
    return steps


async def turn_with_kill(system: System, talk: Talk, number: int, step: Step) -> None:
    program, link, needle, way, is_forwarded = step
    hold = link.hold(needle, way, is_forwarded=is_forwarded)
    saying = asyncio.ensure_future(talk.say(f"turn {number}"))
    assert await kill_at(hold, program), f"step {needle!r} was never reached"
    system.history.add(Kind.FAULT, "kill", what=program.name, step=needle.decode())
    program.start()
    await program.ready()
    await saying
    await system.ended(talk.jobs, within_s=60)


async def test_each_turn_is_in_its_conversation_once_and_in_order_whoever_dies(
    zygote: Zygote, tmp_path: Path, trials: int
) -> None:
    tuning = Tuning(lease_s=0.6, max_attempts=50, tokens_per_s=100, delivery_timeout="PT4S")
    async with (
        running(zygote, tmp_path, tuning) as system,
        httpx.AsyncClient(base_url=system.client.bases[0], timeout=10) as http,
    ):
        await warm(system)
        made = await http.post("/v1/conversations", json={})
        talk = Talk(system, http, made.json()["id"])
        steps = steps_of(system)
        for number in range(trials):
            await turn_with_kill(system, talk, number, steps[number % len(steps)])

        assert len(set(talk.jobs)) == trials
        assert said(await talk.items()) == await expected(system, talk)

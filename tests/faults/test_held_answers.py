"""Answers that rules hold back by windows, under kills: whatever dies, no reader is shown what a rule forbids."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import pytest

from predictor.engine.engine import EngineRequest
from predictor.engine.seeded_engine import SeededEngine, SeededSettings
from tests.faults.checker import Rules
from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.history import Kind
from tests.faults.processes import System
from tests.faults.programs import Program, Zygote
from tests.faults.proxy import Proxy, Way
from tests.faults.test_kill import called, kill_at, warm
from tests.faults.test_steps import shown, stepping
from tests.integration.engine_calls import all_steps, body_of

pytestmark = pytest.mark.timeout(1800)
TOKENS: Final = 50
FORBIDDEN: Final = re.compile(r"\b(so|of|while) [a-z]+ [a-z]")
"""Over three tokens, each of which may be the last one before a kill."""
HELD: Final[dict[str, Any]] = {
    "step": "validate-output",
    "settings": {
        "mode": "block",
        "hold": "window",
        "rules": [{"regex": FORBIDDEN.pattern, "longest": 40}],
    },
}
Point = tuple[Proxy, bytes, Way, bool]


@pytest.fixture
def kills(trials: int) -> int:
    """Each is read by three readers to its end: a quarter of what other tests take."""
    return max(5, trials // 4)


@asynccontextmanager
async def engine() -> AsyncIterator[SeededEngine]:
    made = SeededEngine(SeededSettings(tokens_per_s=0, prefill_tokens_per_s=0))
    await made.start(lambda _: None)
    yield made
    await made.stop()


async def said(engine: SeededEngine, line: dict[str, Any]) -> str:
    """What the engine says to a line where nothing judges it."""
    call = {**line["body"], "seeded": {"output_tokens": TOKENS}}
    answer = body_of(await all_steps(engine, EngineRequest("r", line["url"], call)))
    return str(answer["choices"][0]["message"]["content"])


async def events(system: System, job_id: str) -> str:
    """Every event that a reader is sent until the job's end."""
    timeout = aiohttp.ClientTimeout(total=120)
    accept = {"accept": "text/event-stream"}
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.get(f"{system.client.bases[0]}/v1/jobs/{job_id}/events", headers=accept) as answer,
    ):
        return await answer.text()


def text_of(told: str) -> str:
    """The text in the token events of an event stream."""
    lines = [each for each in told.splitlines() if each.startswith("data: {")]
    deltas = [orjson.loads(each[6:]).get("delta") or [] for each in lines]
    return "".join(c.get("delta", {}).get("content") or "" for d in deltas for c in d)


async def read_job(system: System, line: dict[str, Any], key: str) -> tuple[str, str]:
    """A job, and what a reader of it was sent from its beginning on."""
    job_id = await system.client.submit(line, key)
    return job_id, await events(system, job_id)


async def hurt_reading(
    system: System, points: list[Point], program: Program, trials: int
) -> list[tuple[dict[str, Any], str, str]]:
    """`trials` kills at each point in turn, with jobs under way that are read; each line, its job and what was read."""
    lines: list[dict[str, Any]] = []
    reads: list[asyncio.Task[tuple[str, str]]] = []
    numbers = count(1)
    for trial in range(trials):
        link, needle, way, is_forwarded = points[trial % len(points)]
        hold = link.hold(needle, way, is_forwarded=is_forwarded)
        for _ in range(3):
            number = next(numbers)
            lines.append(body(number, tokens=TOKENS, tokens_per_s=400))
            reads.append(asyncio.ensure_future(read_job(system, lines[-1], f"h{number}")))
        assert await kill_at(hold, program), f"point {needle!r} was never reached"
        system.history.add(Kind.FAULT, "kill", what=program.name, step=needle.decode())
        program.start()
        await program.ready()
    read = await asyncio.gather(*reads)
    return [(line, *each) for line, each in zip(lines, read, strict=True)]


async def held_back(system: System, read: list[tuple[dict[str, Any], str, str]]) -> None:
    """No view of any job has what is forbidden; an answer without it is shown whole."""
    withheld = 0
    async with engine() as made:
        for line, job_id, live in read:
            text, job = await said(made, line), await shown(system, job_id)
            again = text_of(await events(system, job_id))
            told = text_of(live)
            assert text.startswith(told), job
            for view in (told, again, str(job)):
                assert not FORBIDDEN.search(view), job
            if found := FORBIDDEN.search(text):
                withheld += 1
                assert len(told) <= found.start(), job  # no part of it
                assert (job["state"], job["incomplete_reason"]) == ("incomplete", "content_filter")
                assert job["usage"]["prompt_tokens"] > 0
                assert again == ""
            else:
                assert job["state"] == "completed", job
                assert told == again == text
    assert 0 < withheld < len(read)


async def test_the_predictor_dies_while_a_forbidden_text_is_on_its_way(
    zygote: Zygote, tmp_path: Path, kills: int, judge: Judge
) -> None:
    async with stepping(zygote, tmp_path, HELD, max_attempts=50) as (system, _):
        await warm(system)
        redis = system.predictor_redis
        points: list[Point] = [
            (redis, called("append"), Way.UP, False),
            (redis, called("append"), Way.UP, True),
            (redis, called("finish"), Way.UP, False),
            (redis, called("finish"), Way.UP, True),
            (system.delivery, b"HTTP/1.1 200", Way.DOWN, False),
        ]
        await held_back(system, await hurt_reading(system, points, system.predictor, kills))
        await judge(system, kills, Rules(max_attempts=50), of="kills")


async def test_the_steps_process_dies_while_it_judges_what_was_held_back(
    zygote: Zygote, tmp_path: Path, kills: int, judge: Judge
) -> None:
    async with stepping(zygote, tmp_path, HELD) as (system, steps):
        await warm(system)
        redis, link = system.steps_redis, system.steps_delivery
        points: list[Point] = [
            (link, b"POST ", Way.UP, False),
            (redis, called("begin_step"), Way.UP, True),
            (redis, called("advance"), Way.UP, False),
            (redis, called("advance"), Way.UP, True),
            (link, b"HTTP/1.1 200", Way.DOWN, False),
        ]
        await held_back(system, await hurt_reading(system, points, steps, kills))
        await judge(system, kills, of="kills")

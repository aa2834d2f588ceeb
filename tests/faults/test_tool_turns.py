"""A loop of five turns whose predictor is killed: text, calls, usage and stream are those of an unbroken run."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from eventing.job.job import Job, JobId
from eventing.job.stream import EntryKind
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote
from tests.faults.tool_server import ToolServer, tool_server

pytestmark = pytest.mark.timeout(1800)
SEEDS = int(os.environ.get("TORPOR_TURN_SEEDS", "2"))
KILLS = int(os.environ.get("TORPOR_TURN_KILLS", "4"))
"""How many kills are spread over one loop; `make test-turns` takes 20 seeds and 60 kills."""
NAME = "shop__shop"


def turns(seed: int) -> list[dict[str, Any]]:
    """Four turns with calls, two of them at once in the second, and the answer. The third can not be continued."""

    def call(n: int) -> dict[str, Any]:
        return {"name": NAME, "arguments": {"item": f"item {n} of {seed}", "count": n}}

    return [
        {"text": "I look it up.", "reasoning_tokens": 4, "calls": [call(1)]},
        {"text": "Two more are needed.", "calls": [call(2), call(3)]},
        {"calls": [call(4)], "resumable": False},
        {"text": "One last look, at length, since it is long.", "calls": [call(5)]},
        {"text": f"So it is, said seed {seed}, after all of that and no less than five calls."},
    ]


def line(seed: int) -> dict[str, Any]:
    return {
        "url": "/v1/chat/completions",
        "body": {
            "model": "seeded",
            "messages": [{"role": "user", "content": f"How is it, {seed}?"}],
            "seed": seed,
            "seeded": {"turns": turns(seed)},
        },
    }


@asynccontextmanager
async def shop(zygote: Zygote, folder: Path) -> AsyncIterator[tuple[System, ToolServer]]:
    """A system whose model has one tool."""
    async with tool_server() as tool:
        known = {
            "kind": "function",
            "url": tool.url,
            "tenants": ["*"],
            "effect": "keyed",
            "approval": "never",
            "trusted": True,
            "description": "Says what there is of an item.",
            "parameters": {"type": "object"},
        }
        steps = ({"step": "list-tools", "settings": {"servers": ["shop"]}}, "tools")
        tuning = Tuning(
            steps=steps,
            tools=(("shop", known),),
            lease_s=0.6,
            max_attempts=100,
            tokens_per_s=100,
            puts_itself=True,
        )
        async with running(zygote, folder, tuning) as system:
            yield system, tool


def shape(job: Job) -> dict[str, Any]:
    """What an unbroken run and a broken one must have in common: all but ids, times and attempts."""
    usage = job.usage or {}
    return {
        "state": job.state,
        "text": (job.result or {})["choices"][0]["message"]["content"],
        "turns": [
            {
                "text": turn.message.get("content"),
                "thought": turn.message.get("reasoning"),
                "tokens": (turn.begin, turn.end),
                "used": {name: turn.usage.get(name) for name in COUNTS},
                "calls": [
                    (call.name, call.arguments, call.state, call.output, call.sends)
                    for call in turn.calls
                ],
            }
            for turn in job.turns
        ],
        "usage": {name: usage.get(name) for name in COUNTS},
        "tokens": job.token_count,
    }


COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


async def streamed(system: System, job_id: str) -> list[tuple[int, str, str]]:
    """What is left of the job's stream: token by token its id, and what was shown in all."""
    ids: dict[int, int] = {}
    texts: dict[int, list[dict[str, Any]]] = {}
    told: list[tuple[int, str, str]] = []
    for entry in await system.store.read_stream(JobId(job_id), "", 100_000):
        match entry.kind:
            case EntryKind.ATTEMPT if entry.is_restart:
                ids = {at: each for at, each in ids.items() if at < entry.index}
                texts = {at: each for at, each in texts.items() if at < entry.index}
            case EntryKind.TOKENS:
                ids |= dict(enumerate(entry.token_ids, entry.index))
                texts.setdefault(entry.index, []).extend(orjson.loads(entry.delta or "[]"))
            case EntryKind.TURN:
                told.append((entry.index, "turn", str(entry.turn)))
    said = [delta for at in sorted(texts) for delta in texts[at]]
    return [
        *told,
        (len(ids), "ids", str([ids[at] for at in sorted(ids)])),
        *((0, kind, text) for kind, text in _joined(said).items()),
    ]


def _joined(said: Sequence[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in said:
        delta = each["delta"]
        for name in ("reasoning_content", "content"):
            found[name] = found.get(name, "") + (delta.get(name) or "")
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            shown = f"<{function['name']}>" if function.get("name") else ""
            found["calls"] = found.get("calls", "") + shown + (function.get("arguments") or "")
    return found


async def watched(
    system: System, http: aiohttp.ClientSession, job_id: str, after: str = ""
) -> list[str]:
    """The events of one reader from a cursor to the end, but for what tells of the wait alone."""
    told: list[str] = []
    url = f"{system.client.bases[0]}/v1/jobs/{job_id}/events"
    async with http.get(url, params={"after": after} if after else {}) as answer:
        assert answer.status == 200
        frames = await answer.text()
    for frame in frames.split("\n\n"):
        lines = dict(each.split(": ", 1) for each in frame.splitlines() if ": " in each)
        if lines.get("event") in ("attempt", "tokens", "turn", "call", "gap"):
            told.append(frame.lstrip(" \n"))  # lines that keep the connection alive
    assert "event: result" in frames
    return told


async def test_a_predictor_is_killed_all_along_a_loop_of_five_turns(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with shop(zygote, tmp_path) as (system, tool), aiohttp.ClientSession() as http:
        plain = [await system.client.submit(line(seed), f"p{seed}") for seed in range(SEEDS)]
        await system.ended(plain, within_s=120)
        unbroken = [await job_of(system, job_id) for job_id in plain]
        length = min(job.token_count for job in unbroken)
        assert [len(job.turns) for job in unbroken] == [4] * SEEDS, unbroken
        assert length > 60

        hurt = [await system.client.submit(line(seed), f"k{seed}") for seed in range(SEEDS)]
        readers = [asyncio.ensure_future(watched(system, http, job_id)) for job_id in hurt]
        for number in range(KILLS):
            await reached(system, hurt[number % SEEDS], length * (number + 1) // (KILLS + 1))
            await system.predictor.restart()
        await system.ended(hurt, within_s=240)

        for seed, job_id in enumerate(hurt):
            job = await job_of(system, job_id)
            assert shape(job) == shape(unbroken[seed])
            assert await streamed(system, job_id) == await streamed(system, plain[seed])
            assert await readers[seed] == await watched(system, http, job_id)
        assert {count for count in tool.sends.values()} == {1}
        assert len(tool.sends) == 2 * 5 * SEEDS


async def job_of(system: System, job_id: str) -> Job:
    job = await system.store.get(JobId(job_id))
    assert job is not None
    return job


async def reached(system: System, job_id: str, count: int) -> None:
    """Return when the job has so many tokens, or has ended."""
    async with asyncio.timeout(120):
        while (await system.token_counts([job_id]))[0] < count:
            if (await job_of(system, job_id)).state.is_terminal:
                return
            await asyncio.sleep(0.003)


async def test_every_view_of_a_loop_has_the_same_text_and_the_same_usage(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with shop(zygote, tmp_path) as (system, _), aiohttp.ClientSession() as http:
        base, body = system.client.bases[0], line(7)["body"]
        job_id = await system.client.submit(line(7), "v7")
        await system.ended([job_id], within_s=120)
        job = await job_of(system, job_id)
        texts = [turn.message.get("content") for turn in job.turns] + [shape(job)["text"]]
        whole = "\n\n".join(text for text in texts if text)
        called = [call.tool for turn in job.turns for call in turn.calls]
        used = shape(job)["usage"]

        answer = await posted(http, f"{base}/v1/chat/completions", body)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = await sent_events(http, f"{base}/v1/chat/completions", body | options)
        view = (await system.client.get(job_id))[1]

        assert answer["choices"][0]["message"]["content"] == whole
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert "".join(each["delta"].get("content") or "" for each in choices) == whole
        assert not any(each["delta"].get("tool_calls") for each in choices)
        assert [each["finish_reason"] for each in choices if each["finish_reason"]] == ["stop"]
        for said in (answer, *[chunk for chunk in chunks if chunk.get("torpor")]):
            assert [each["tool"] for each in said["torpor"]["tool_calls"]] == called
        for usage in (answer["usage"], chunks[-1]["usage"], view["usage"]):
            assert {name: usage[name] for name in COUNTS} == used
        told = await watched(system, http, job_id)
        for at, frame in enumerate(told):
            cursor = frame.split("\n")[0].removeprefix("id: ")
            assert await watched(system, http, job_id, cursor) == told[at + 1 :]
        for name in COUNTS:
            assert sum(turn["usage"][name] for turn in view["turns"]) == used[name]


async def posted(http: aiohttp.ClientSession, url: str, body: Any) -> Any:
    async with http.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def sent_events(http: aiohttp.ClientSession, url: str, body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    async with http.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()
        lines = [line.strip().decode() async for line in answer.content]
    data = [each.removeprefix("data: ") for each in lines if each.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [orjson.loads(each) for each in data[:-1]]

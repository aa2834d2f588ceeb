"""An api process is suspended (a closed lid, a migrated virtual machine) while jobs end: its readers still get the
rest.
"""

import asyncio
import signal
from pathlib import Path

import aiohttp
import orjson

from tests.faults.client import body
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote

READERS = 10
STANDS_STILL_S = 17.0
"""Longer than a silent stream waits before it looks at the record (`api.job.live`)."""


async def read_chat(
    session: aiohttp.ClientSession, system: System, seed: int, begun: asyncio.Semaphore
) -> tuple[str, str]:
    """The text of a streamed chat, and the stream's last line."""
    url = system.api.health.replace("/healthz", "/v1/chat/completions")
    call = body(seed, tokens=120)["body"] | {"stream": True}
    text, last = "", ""
    async with session.post(url, json=call) as answer:
        async for raw in answer.content:
            if not raw.startswith(b"data: "):
                continue
            last = raw.decode().removeprefix("data: ").strip()
            if last != "[DONE]":
                (choice,) = orjson.loads(last)["choices"]
                text += choice["delta"].get("content") or ""
                begun.release()
    return text, last


async def whole(session: aiohttp.ClientSession, system: System, seed: int) -> str:
    url = system.api.health.replace("/healthz", "/v1/chat/completions")
    async with session.post(url, json=body(seed, tokens=120)["body"]) as answer:
        return str((await answer.json())["choices"][0]["message"]["content"])


async def test_streams_of_an_api_that_stood_still_while_its_jobs_ended_are_whole(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with (
        running(zygote, tmp_path, Tuning(tokens_per_s=30)) as system,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session,
    ):
        begun = [asyncio.Semaphore(0) for _ in range(READERS)]
        reading = [
            asyncio.create_task(read_chat(session, system, seed, begun[seed]))
            for seed in range(READERS)
        ]
        for reader in begun:
            for _ in range(10):
                await reader.acquire()
        system.api.signal(signal.SIGSTOP)
        await asyncio.sleep(STANDS_STILL_S)
        system.api.signal(signal.SIGCONT)
        shown = await asyncio.gather(*reading)

        assert [last for _, last in shown] == ["[DONE]"] * READERS
        wholes = await asyncio.gather(*(whole(session, system, seed) for seed in range(READERS)))
        assert [text for text, _ in shown] == wholes

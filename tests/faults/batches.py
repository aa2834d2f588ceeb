"""Batches as a careful caller makes them, and what must stand in their files at the end."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.faults.client import body
from tests.faults.programs import Program

_LINES: Final = 25
_FINAL: Final = ("completed", "failed", "cancelled", "expired")
_AWAY: Final = (httpx.TransportError, json.JSONDecodeError)


@dataclass(eq=False)
class BatchLoad:
    """What is asked of the system, and of which api: of any that answers."""

    apis: Sequence[Program]
    draw: random.Random
    batches: dict[str, int] = field(default_factory=dict)

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """The first answer that is no 5xx and no 429; every call here is safe to make again."""
        async with httpx.AsyncClient(timeout=5) as client:
            while True:
                base = self.draw.choice(self.apis).health.removesuffix("/healthz")
                with suppress(*_AWAY):
                    answer = await client.request(method, base + path, **more)
                    if answer.status_code < 500 and answer.status_code != 429:
                        return answer
                await asyncio.sleep(0.1)

    async def start(self, number: int) -> str:
        """A batch, created under a key, however often that takes."""
        made = [
            json.dumps(body(number * 1000 + n, tokens=8) | {"custom_id": f"c{n}"})
            for n in range(_LINES)
        ]
        made[7] = "{no line"
        form = {"file": ("in.jsonl", "\n".join(made)), "purpose": (None, "batch")}
        key = {"idempotency-key": f"batch-{number}"}
        file_id = (await self.ask("POST", "/v1/files", files=form, headers=key)).json()["id"]
        call = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        batch_id = str((await self.ask("POST", "/v1/batches", json=call, headers=key)).json()["id"])
        self.batches[batch_id] = number
        return batch_id

    async def look(self, batch_id: str) -> dict[str, Any]:
        seen: dict[str, Any] = (await self.ask("GET", f"/v1/batches/{batch_id}")).json()
        return seen

    async def entries(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        text = (await self.ask("GET", f"/v1/files/{file_id}/content")).text
        return [json.loads(line) for line in text.splitlines()]


async def all_ended(load: BatchLoad) -> None:
    for batch_id in load.batches:
        while (await load.look(batch_id))["status"] not in _FINAL:
            await asyncio.sleep(0.2)


async def check_batch(load: BatchLoad, batch_id: str) -> None:
    batch = await load.look(batch_id)
    output = await load.entries(batch["output_file_id"])
    errors = await load.entries(batch["error_file_id"])
    told = Counter(entry["id"] for entry in (*output, *errors))
    wanted = Counter(f"batch_req_{batch_id.removeprefix('batch_')}_{n + 1}" for n in range(_LINES))
    counts = batch["request_counts"]
    assert told == wanted
    assert counts == {"total": _LINES, "completed": len(output), "failed": len(errors)}
    if batch["status"] == "completed":
        assert [entry["error"]["line"] for entry in errors] == [8]

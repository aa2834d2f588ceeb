"""The steps process with handlers for tests beside the product's, and in place of those of the checks of answers."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eventing.errors import Unavailable
from eventing.job.job import REJECTED, JobError, JobRequest
from eventing.job.store import TokenBatch
from steps.__main__ import main as run
from steps.handler import (
    Again,
    Answer,
    Continue,
    Handler,
    Refuse,
    Skip,
    StepCall,
    StepOutcome,
    Withhold,
)
from steps.table import Parts, handlers

RESULT = {
    "object": "chat.completion",
    "model": "seeded",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "kept"}}],
}


def _marks(call: StepCall) -> str:
    return str(call.request.body.get("user") or "")


def _marked(call: StepCall, mark: str) -> JobRequest:
    body = {**call.request.body, "user": _marks(call) + mark}
    return JobRequest(url=call.request.url, body=body, custom_id=call.request.custom_id)


def marker(mark: str) -> Handler:
    """Leaves its mark in the request, and tells which marks it found there."""

    async def handle(call: StepCall) -> StepOutcome:
        await asyncio.sleep(float(call.settings.get("seconds", 0)))
        return Continue(request=_marked(call, mark), detail={"found": _marks(call)})

    return handle


async def judge(call: StepCall) -> StepOutcome:
    """Withholds the answers of some callers, and has those of others made again, once."""
    assert call.candidate is not None
    await asyncio.sleep(float(call.settings.get("seconds", 0)))
    asked = str(call.job.request.custom_id or "")
    if "withhold" in asked:
        return Withhold()
    if "again" in asked and not any(each.outcome == REJECTED for each in call.job.history):
        return Again()
    return Continue(detail={"choices": len(call.candidate["choices"])})


async def answer(call: StepCall) -> StepOutcome:
    tokens = (
        TokenBatch(index=0, token_ids=(1, 2), delta='[{"index":0,"delta":{"content":"kept"}}]'),
    )
    return Answer(result=RESULT, usage={"total_tokens": 0}, detail={"hit": True}, tokens=tokens)


async def refuse(call: StepCall) -> StepOutcome:
    return Refuse(error=JobError(code="content_filter", message="not this", field="messages"))


async def skip(call: StepCall) -> StepOutcome:
    return Skip(reason="does not apply")


async def away(call: StepCall) -> StepOutcome:
    """Unavailable until a file is there."""
    if not Path(str(call.settings["until"])).exists():
        raise Unavailable("not yet", 0.1)
    return Continue(detail={"runs": call.attempt})


async def broken(call: StepCall) -> StepOutcome:
    """Fails in its first runs."""
    if call.attempt <= int(call.settings.get("times", 1)):
        raise RuntimeError("a bug")
    return Continue(detail={"runs": call.attempt})


async def deadly(call: StepCall) -> StepOutcome:
    """Input that kills the process; other input takes a moment."""
    if "poison" in str(call.request.body["messages"]):
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.1)
    return Continue()


def table(parts: Parts) -> Mapping[str, Handler]:
    found: dict[str, Any] = {
        "answer": answer,
        "refuse": refuse,
        "skip": skip,
        "away": away,
        "broken": broken,
        "deadly": deadly,
        "ground": judge,
    }
    ours = handlers(parts)

    async def validated(call: StepCall) -> StepOutcome:
        """With rules the product's own step; without, the test's."""
        return await (ours["validate-output"] if "rules" in call.settings else judge)(call)

    found["validate-output"] = validated
    return {
        **ours,
        **found,
        "mark-a": marker("a"),
        "mark-b": marker("b"),
        "mark-c": marker("c"),
    }


def main(arguments: Sequence[str] = ()) -> int:
    """As `python -m steps`."""
    return run(arguments, table)

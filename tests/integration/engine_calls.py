"""Calls to an engine and what comes of them, and the marks of the tests of the real one."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest

from predictor.engine.engine import DecodeStep, EngineRequest
from predictor.generation.assembly import Assembler

REAL_ENGINE = [
    # Not importorskip: torch must not be imported before the engine has set OMP_NUM_THREADS.
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: pip install torpor[cpu]"),
    pytest.mark.real_engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore"),  # torch's and transformers' own
]
CONTEXT = 2048
CAPITAL = "What is the capital of France, and what is it known for?"


def chat(text: str = CAPITAL, request_id: str = "chat", **body: Any) -> EngineRequest:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **body}
    return EngineRequest(request_id, "/v1/chat/completions", body)


def completion(prompt: Any, request_id: str = "text", **body: Any) -> EngineRequest:
    body = {"prompt": prompt, "temperature": 0, **body}
    return EngineRequest(request_id, "/v1/completions", body)


async def all_steps(
    engine: Any, request: EngineRequest, prior: Sequence[int] = ()
) -> list[DecodeStep]:
    return [step async for step in engine.run(request, prior)]


def token_ids(steps: Sequence[DecodeStep]) -> list[int]:
    return [token_id for step in steps for token_id in step.token_ids]


def body_of(steps: Sequence[DecodeStep]) -> dict[str, Any]:
    """The whole body that the chunks make, without what no two runs share."""
    assembler = Assembler()
    for step in steps:
        if step.chunk is not None:
            assembler.add(step.chunk)
    return {
        name: value for name, value in assembler.body().items() if name not in ("created", "id")
    }

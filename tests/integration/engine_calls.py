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
    """The whole body that the chunks make, without what no two runs share: they find different parts of a prompt
    in the cache.
    """
    assembler = Assembler()
    for step in steps:
        if step.chunk is not None:
            assembler.add(step.chunk)
    body = {
        name: value for name, value in assembler.body().items() if name not in ("created", "id")
    }
    if body.get("usage"):
        details = "prompt_tokens_details"
        body["usage"] = {n: v for n, v in body["usage"].items() if n != details}
    return body


def cached_tokens(steps: Sequence[DecodeStep]) -> int | None:
    """How many tokens of its prompt a call says that it found in the engine's cache."""
    details = [
        (step.chunk.get("usage") or {}).get("prompt_tokens_details") for step in steps if step.chunk
    ]
    found = [each["cached_tokens"] for each in details if each]
    return found[-1] if found else None

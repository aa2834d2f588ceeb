"""What a job is answered with on the real engine is what bare vLLM answers the same call with."""

import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from predictor.engine.engine import EngineRequest
from predictor.engine.vllm.engine import VllmEngine, VllmSettings
from predictor.errors import BadRequest
from predictor.model_files.weights import DEFAULT_MODEL, ensure_model
from tests.integration.engine_calls import REAL_ENGINE, all_steps, body_of, chat, completion

pytestmark = REAL_ENGINE

CALLS: Mapping[str, EngineRequest] = {
    "chat": chat(max_tokens=8),
    "chat logprobs": chat(max_tokens=4, logprobs=True, top_logprobs=2),
    "chat prompt_logprobs": chat("Hi", max_tokens=3, prompt_logprobs=1),
    "chat prompt_logprobs 0": chat("Hi", max_tokens=3, prompt_logprobs=0),
    "chat beam search": chat("Hi", max_tokens=4, use_beam_search=True, n=2),
    "chat token ids": chat("Hi", max_tokens=4, return_token_ids=True),
    "chats": EngineRequest(
        "chats",
        "/v1/chat/completions/batch",
        {
            "messages": [[{"role": "user", "content": text}] for text in ("Hi", "Name a bird")],
            "max_tokens": 4,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 1,
        },
    ),
    "chat n": chat("Hi", max_tokens=4, n=3, temperature=0.7, seed=5),
    "chat stop": chat(max_tokens=20, stop=["of"]),
    "chat include_stop_str": chat(max_tokens=20, stop=["of"], include_stop_str_in_output=True),
    "text": completion("The sky is", max_tokens=6),
    "text list": completion(["The sky is", "The sea is"], max_tokens=4),
    "text ids": completion([504, 6376, 314], max_tokens=4),
    "text logprobs": completion("The sky is", max_tokens=4, logprobs=2),
    "text echo": completion("The sky is", max_tokens=3, echo=True),
    "text echo logprobs": completion("The sky is", max_tokens=3, echo=True, logprobs=1),
    "text echo alone": completion("The sky is", max_tokens=0, echo=True, logprobs=1),
    "text prompt_logprobs": completion("The sky is", max_tokens=2, prompt_logprobs=1),
    "text beam search": completion("The sky is", max_tokens=4, use_beam_search=True, n=2),
    "text token ids": completion("The sky is", max_tokens=4, return_token_ids=True),
    "text token ids of two": completion(
        ["The sky", "The sea"], max_tokens=3, return_token_ids=True
    ),
}


_CALLS_WITH_LOGPROBS = """
import asyncio
from pathlib import Path
from predictor.engine.vllm.engine import VllmEngine, VllmSettings
from predictor.model_files.weights import DEFAULT_MODEL, ensure_model
from tests.integration.engine_calls import all_steps, chat

async def main():
    model = ensure_model(DEFAULT_MODEL, Path(".torpor/models"), lambda _: None)
    args = ("--max-model-len", "512", "--max-num-seqs", "8")
    engine = VllmEngine(VllmSettings(model, DEFAULT_MODEL, vllm_args=args))
    await engine.start(lambda _: None)
    await all_steps(engine, chat(max_tokens=4, logprobs=True, top_logprobs=2))
    import torch
    print()
    print("disabled:", torch._dynamo.config.disable, flush=True)
    await engine.stop()

asyncio.run(main())
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    model = ensure_model(DEFAULT_MODEL, Path(".torpor/models"), print)
    args = ("--max-model-len", "512", "--max-num-seqs", "8", "--max-logprobs", "5")
    engine = VllmEngine(VllmSettings(model, DEFAULT_MODEL, vllm_args=args))
    await engine.start(lambda _: None)
    yield engine
    await engine.stop()


def without_nulls(value: Any) -> Any:
    """OpenAI's clients read a field that is null as one that is not there."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def about(value: Any) -> Any:
    """Equal to it, but for the last digits of log probabilities: a batch of another size adds in another order."""
    if isinstance(value, dict):
        return {k: about(v) for k, v in value.items()}
    if isinstance(value, list):
        return [about(each) for each in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize("name", CALLS)
async def test_a_job_is_answered_as_a_call_that_did_not_stream(
    engine: VllmEngine, name: str
) -> None:
    request = CALLS[name]
    as_job = body_of(await all_steps(engine, request))
    bare = body_of(await all_steps(engine, replace(request, wants_chunks=False)))

    assert without_nulls(as_job) == about(without_nulls(bare))


async def test_a_caller_that_streams_is_refused_what_vllm_cannot_stream(engine: VllmEngine) -> None:
    with pytest.raises(BadRequest) as refused:
        await all_steps(engine, chat("Hi", max_tokens=3, prompt_logprobs=1, stream=True))
    assert refused.value.field == "prompt_logprobs"


def test_no_call_waits_for_a_compiler() -> None:
    """The kernel of logprobs was compiled at its first use, while everybody waited for 6 to 15 s.

    In a process of its own, as a predictor is: torch reads the switch when it is first imported.
    """
    done = subprocess.run([sys.executable, "-c", _CALLS_WITH_LOGPROBS], stdout=subprocess.PIPE)

    assert done.returncode == 0
    assert b"disabled: True" in done.stdout.splitlines()  # vLLM writes there, too


async def test_usage_comes_with_every_chunk_for_whom_asks(engine: VllmEngine) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    steps = await all_steps(engine, chat(max_tokens=4, stream=True, stream_options=options))
    chunks = [step.chunk for step in steps if step.chunk is not None]
    assert all(chunk.get("usage") for chunk in chunks)
    plain = await all_steps(engine, chat(max_tokens=4, stream=True))
    assert sum(bool(step.chunk.get("usage")) for step in plain if step.chunk) == 1

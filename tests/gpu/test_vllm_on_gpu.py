"""The questions of docs/gpu.md that a test can answer. Not run yet on any machine of ours."""

import asyncio
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from predictor.engine.engine import ColdStartPhase, EngineRequest
from predictor.engine.vllm.engine import VllmEngine, VllmSettings
from tests.integration.engine_calls import all_steps, body_of, token_ids

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="no NVIDIA GPU"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.skipif("TORPOR_GPU_MODEL" not in os.environ, reason="set TORPOR_GPU_MODEL"),
]


PHASES: list[tuple[ColdStartPhase, float]] = []
"""Of the module's one start, each with the second it began at."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    arguments = tuple(shlex.split(os.environ.get("TORPOR_GPU_ARGS", "")))
    model = os.environ["TORPOR_GPU_MODEL"]
    engine = VllmEngine(VllmSettings(model, "model", vllm_args=arguments))
    await engine.start(lambda phase: PHASES.append((phase, time.monotonic())))
    yield engine
    await engine.stop()


async def test_a_greedy_answer_resumed_anywhere_is_the_uninterrupted_one(
    engine: VllmEngine,
) -> None:
    body = {"prompt": "A hummingbird", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    request = EngineRequest("resumed", "/v1/completions", body)
    whole = token_ids(await all_steps(engine, request))
    cuts = random.Random(7).sample(range(1, 200), 24)
    different = [
        cut
        for cut in cuts
        if token_ids(await all_steps(engine, request, whole[:cut])) != whole[cut:]
    ]
    assert different == []


async def test_a_spawned_worker_reports_its_phases(engine: VllmEngine) -> None:
    for (phase, since), (_, until) in pairwise(PHASES):
        print(f"{phase}: {until - since:.2f} s")
    told = [phase for phase, _ in PHASES]
    assert told == [phase for phase in ColdStartPhase if phase is not ColdStartPhase.SCHEDULE]


async def test_an_engine_whose_process_is_killed_leaves_nothing_on_the_gpu() -> None:
    """In a process of its own; last, since it takes memory beside the module's engine."""
    command = [sys.executable, "-m", "predictor", "--http_port", "18080", "--host", "127.0.0.1"]
    command += ["--model", os.environ["TORPOR_GPU_MODEL"], "--gpu-memory-utilization", "0.2"]
    before = pids_on_gpu()
    predictor = await asyncio.create_subprocess_exec(*command)
    async with asyncio.timeout(400):
        while not pids_on_gpu() - before:
            await asyncio.sleep(0.5)
        await asyncio.sleep(20)
        predictor.kill()
        await predictor.wait()
        await asyncio.sleep(5)
    assert pids_on_gpu() <= before


def pids_on_gpu() -> set[str]:
    """Processes that hold memory on it."""
    query = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    return set(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split())


async def test_the_replay_of_a_long_answer_costs_about_its_prefill(engine: VllmEngine) -> None:
    made = min(8000, engine.max_model_len - 100)
    ids = [random.Random(1).randrange(1000, 9000) for _ in range(made)]
    prefill_s = await seconds_to_first_token(engine, ids, ())
    replay_s = await seconds_to_first_token(engine, [*ids[:8]], ids[::-1])
    print(f"{made} tokens: prefill {prefill_s:.2f} s, replay {replay_s:.2f} s")
    assert replay_s < 1.5 * prefill_s


async def seconds_to_first_token(
    engine: VllmEngine, prompt: Sequence[int], prior: Sequence[int]
) -> float:
    body = {"prompt": list(prompt), "max_tokens": len(prior) + 1, "ignore_eos": True}
    request = EngineRequest("timed", "/v1/completions", body)
    began = time.monotonic()
    steps = await all_steps(engine, request, prior)
    assert body_of(steps)["choices"]
    return time.monotonic() - began

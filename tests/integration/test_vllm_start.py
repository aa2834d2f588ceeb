"""Starts of the real engine: what it says meanwhile, what it serves then, and clean failures."""

import asyncio
import gc
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventing.job.stream import EntryKind
from predictor.engine.engine import ColdStartPhase, EngineRequest
from predictor.engine.vllm.engine import STOP_TIMEOUT_S, VllmEngine, VllmSettings
from predictor.engine.vllm.start import build_config, parse_arguments, prepare_environment
from predictor.errors import BadRequest, EngineDeadError, EngineStartError
from predictor.generation.generation import Interrupted
from predictor.model_files.weights import DEFAULT_MODEL, ensure_model
from tests.awake import awake_s
from tests.integration.engine_calls import REAL_ENGINE, all_steps, body_of, chat, completion
from tests.unit.predictor.harness import data_of, event_of, open_harness, read_text, text_of

pytestmark = REAL_ENGINE

SIXTEEN = {"max_tokens": 16, "ignore_eos": True}


@pytest.fixture(scope="module")
def model() -> str:
    return ensure_model(DEFAULT_MODEL, Path(".torpor/models"), print)


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """vLLM leaves sockets open where its start fails; pytest would make that the run's failure."""
    yield
    for _ in range(3):
        gc.collect()


async def test_a_model_that_embeds_does_so_and_says_that_it_does_nothing_else(model: str) -> None:
    args = ("--max-model-len", "512", "--runner", "pooling", "--convert", "embed")
    engine = VllmEngine(VllmSettings(model, "embedder", vllm_args=args))
    await engine.start(lambda _: None)
    try:
        texts = ["hummingbirds sleep", "hummingbirds sleep at night", "tax law of 1804"]
        request = EngineRequest("e", "/v1/embeddings", {"input": texts, "model": "embedder"})
        (step,) = await all_steps(engine, request)
        with pytest.raises(BadRequest) as refused:
            engine.validate(chat())
    finally:
        await engine.stop()

    assert step.chunk is not None
    vectors = [entry["embedding"] for entry in step.chunk["data"]]
    assert [len(vector) for vector in vectors] == [576] * 3
    assert closeness(vectors[0], vectors[1]) > closeness(vectors[0], vectors[2])
    assert refused.value.field == "url"


def test_a_configuration_made_in_an_empty_cache_starts_no_second_interpreter(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own inspection of the model's class imports all of vLLM again, and then fills the cache."""
    settings = VllmSettings(model, "base", vllm_args=("--max-model-len", "512"))
    prepare_environment(settings)
    args = parse_arguments(settings)
    from vllm.model_executor.models import registry

    (name,) = json.loads(Path(model, "config.json").read_text())["architectures"]
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setitem(
        registry.ModelRegistry.models,
        name,
        registry._LazyRegisteredModel("vllm.model_executor.models.llama", name),
    )
    registry._try_inspect_model_cls.cache_clear()

    config = build_config(args)

    assert config.model_config.architecture == name
    assert list(tmp_path.iterdir()) == []


def closeness(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine, since vLLM gives vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_lora_adapters_are_models_and_a_dead_engine_is_reported_at_once(
    model: str, tmp_path: Path
) -> None:
    """Two claims, one engine: starting another costs six seconds."""
    adapter = write_adapter(tmp_path / "adapter", model)
    flags = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={adapter}")
    args = ("--max-model-len", "512", *flags)
    engine = VllmEngine(VllmSettings(model, "base", vllm_args=args))
    phases: list[ColdStartPhase] = []
    ticks: list[None] = []
    ticking = asyncio.create_task(tick(ticks))
    await engine.start(phases.append)
    ticking.cancel()
    assert len(ticks) > 20, "the event loop stood still while the engine was loaded"
    assert phases == [
        ColdStartPhase.IMPORT,
        ColdStartPhase.WEIGHTS,
        ColdStartPhase.COMPILE,
        ColdStartPhase.WARM_UP,
        ColdStartPhase.READY,
    ]
    assert list(engine.model_names) == ["base", "tuned"]
    answers = [
        body_of(await all_steps(engine, completion("The sun is", f"of-{name}", model=name)))
        for name in engine.model_names
    ]
    assert answers[0]["choices"] != answers[1]["choices"]
    assert [answer["model"] for answer in answers] == ["base", "tuned"]
    await check_that_an_adapter_thinks_on_for_a_job(engine)

    running = asyncio.ensure_future(
        all_steps(engine, completion("Count: 1", "dying", max_tokens=400, ignore_eos=True))
    )
    await asyncio.sleep(0.3)
    began = awake_s()
    os.kill(engine_process(engine), signal.SIGKILL)
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(running, 60)
    while engine.is_healthy():
        await asyncio.sleep(0.01)
    assert awake_s() - began < 2
    await engine.stop()


async def check_that_an_adapter_thinks_on_for_a_job(engine: VllmEngine) -> None:
    """A job for the adapter, as an event, whose first attempt ended half-way: the same answer as in
    one go, so the adapter was there on both sides of the seam.
    """
    body = {"model": "tuned", "prompt": "The sun is", "temperature": 0, **SIXTEEN}
    once, cut = (event_of({"url": "/v1/completions", "body": body}, event_id=e) for e in "ab")
    async with open_harness(running=engine) as harness:
        whole = await harness.deliver(once)
        first = asyncio.ensure_future(harness.deliver(cut))
        await harness.wait_tokens(cut, 2)
        harness.keeper.interrupt_all(Interrupted.HANDOVER)
        assert (await first).status == 503
        answer = await harness.deliver(cut)
        entries = await harness.entries(cut)

    starts = [entry.index for entry in entries if entry.kind is EntryKind.ATTEMPT]
    assert len(starts) == 2
    assert starts[1] >= 2
    assert text_of(answer) == text_of(whole) == read_text(entries, "text")
    assert data_of(answer)["response"]["model"] == "tuned"


async def test_a_load_that_is_given_up_leaves_no_process(model: str) -> None:
    engine = VllmEngine(VllmSettings(model, "base"))
    is_loading = asyncio.Event()

    def note(phase: ColdStartPhase) -> None:
        if phase is ColdStartPhase.WEIGHTS:
            is_loading.set()

    others = multiprocessing.active_children()
    start = asyncio.create_task(engine.start(note))
    await is_loading.wait()
    while not (children := [c for c in multiprocessing.active_children() if c not in others]):
        await asyncio.sleep(0.01)
    start.cancel()
    began = awake_s()
    await engine.stop()
    assert awake_s() - began <= STOP_TIMEOUT_S  # vLLM looks after its process every 5 s
    assert not any(child.is_alive() for child in children)
    assert all(other.is_alive() for other in others)


async def tick(ticks: list[None]) -> None:
    """Twenty times a second, for as long as the event loop goes round."""
    while True:
        await asyncio.sleep(0.05)
        ticks.append(None)


def engine_process(engine: VllmEngine) -> int:
    return int(engine._llm.engine_core.resources.engine_manager.processes[0].pid)


def write_adapter(folder: Path, model: str) -> Path:
    """A LoRA adapter of noise, loud enough to change any answer."""
    import numpy as np
    from safetensors.numpy import save_file

    noise = np.random.default_rng(0)
    config: Mapping[str, Any] = json.loads(Path(model, "config.json").read_text())
    hidden, rank = config["hidden_size"], 8
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for part, shape in (("lora_A", (rank, hidden)), ("lora_B", (hidden, rank))):
            tensors[f"{name}.{part}.weight"] = noise.standard_normal(shape).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return folder


@pytest.mark.parametrize(
    ("vllm_args", "message"),
    [
        pytest.param(("--no-such-flag", "1"), "unrecognized arguments", id="unknown flag"),
        pytest.param(("--dtype", "nonsense"), "invalid choice", id="wrong value"),
        pytest.param(("--max-model-len", "100000"), "max_model_len", id="more than the model has"),
        pytest.param(
            ("--kv-cache-memory-bytes", "1000000"),
            "--kv-cache-memory-bytes",
            id="too little memory",
        ),
        pytest.param(
            ("--kv-cache-memory-bytes", str(20 << 40)),
            "not enough memory for this model: lower --kv-cache-memory-bytes",
            id="more memory than there is",
        ),
        pytest.param(
            ("--enable-auto-tool-choice", "--tool-call-parser", "wizard"),
            "tool_parser:'wizard' which has not been registered",
            id="a parser that is not there",
        ),
    ],
)
async def test_a_start_that_fails_says_what_to_change(
    model: str, vllm_args: tuple[str, ...], message: str
) -> None:
    engine = VllmEngine(VllmSettings(model, "base", vllm_args=vllm_args))
    with pytest.raises(EngineStartError) as caught:
        await engine.start(lambda _: None)
    assert message in str(caught.value)
    assert not engine.is_healthy()
    await engine.stop()

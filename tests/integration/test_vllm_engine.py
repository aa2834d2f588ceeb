"""The real engine with the real model: answers that go on where they were, and clean failures.

The reasoning parser of these tests takes the first sentence for the thought: the packaged model
does not think, but it makes sentences, so the seam can be put inside a real «thought».
"""

import asyncio
import gc
import json
import multiprocessing
import os
import random
import signal
import textwrap
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from predictor.assembly import assemble
from predictor.engine import ColdStartPhase, EngineRequest, Step
from predictor.errors import BadRequest, EngineDeadError, EngineStartError
from predictor.vllm_engine import STOP_TIMEOUT_S, VllmEngine, VllmSettings
from predictor.weights import DEFAULT_MODEL, ensure_model

pytestmark = [
    # Not importorskip: torch must not be imported before the engine has set OMP_NUM_THREADS.
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: pip install torpor[cpu]"),
    pytest.mark.real_engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore"),  # torch's and transformers' own
]

PARSER = """
    from vllm.reasoning import ReasoningParserManager
    from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

    @ReasoningParserManager.register_module("first_sentence")
    class FirstSentence(DeepSeekR1ReasoningParser):
        start_token = "<|endoftext|>"
        end_token = "."
"""
CONTEXT = 2048
CAPITAL = "What is the capital of France, and what is it known for?"


@pytest.fixture(scope="module")
def model() -> str:
    return ensure_model(DEFAULT_MODEL, Path(".torpor/models"), print)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: str) -> AsyncIterator[VllmEngine]:
    args = ("--max-model-len", str(CONTEXT), "--max-num-seqs", "16")
    engine = VllmEngine(VllmSettings(model, DEFAULT_MODEL, vllm_args=args))
    await engine.start(lambda _: None)
    yield engine
    await engine.stop()


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """vLLM leaves sockets open where its start fails; pytest would make that the run's failure."""
    yield
    for _ in range(3):
        gc.collect()


def chat(text: str = CAPITAL, request_id: str = "chat", **body: Any) -> EngineRequest:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **body}
    return EngineRequest(request_id, "/v1/chat/completions", body)


def completion(prompt: Any, request_id: str = "text", **body: Any) -> EngineRequest:
    body = {"prompt": prompt, "temperature": 0, **body}
    return EngineRequest(request_id, "/v1/completions", body)


async def all_steps(engine: Any, request: EngineRequest, prior: Sequence[int] = ()) -> list[Step]:
    return [step async for step in engine.run(request, prior)]


def token_ids(steps: Sequence[Step]) -> list[int]:
    return [token_id for step in steps for token_id in step.token_ids]


def body_of(steps: Sequence[Step]) -> dict[str, Any]:
    body = assemble(step.chunk for step in steps if step.chunk is not None)
    return {name: value for name, value in body.items() if name not in ("created", "id")}


async def differing_seams(
    engine: Any, request: EngineRequest, whole: Sequence[Step], cuts: Sequence[int]
) -> list[int]:
    """The seams at which a continued answer is not the uninterrupted one."""
    ids, body = token_ids(whole), body_of(whole)

    async def is_different(cut: int) -> bool:
        steps = await all_steps(engine, replace(request, request_id=f"cut-{cut}"), ids[:cut])
        return token_ids(steps) != ids[cut:] or body_of(steps) != body

    answers = await asyncio.gather(*map(is_different, cuts))
    return [cut for cut, different in zip(cuts, answers, strict=True) if different]


async def test_a_greedy_answer_resumed_anywhere_is_the_uninterrupted_one(
    engine: VllmEngine,
) -> None:
    request = chat("Tell me a short story about a hummingbird.", max_tokens=48)
    whole = await all_steps(engine, request)
    cuts = random.Random(7).sample(range(1, 48), 20)
    assert await differing_seams(engine, request, whole, cuts) == []


async def test_a_seam_inside_a_character_does_not_show(engine: VllmEngine) -> None:
    request = completion("🐦🐝 🐦🐝 🐦🐝 🐦🐝 🐦🐝", max_tokens=14)
    whole = await all_steps(engine, request)
    assert "🐝" in body_of(whole)["choices"][0]["text"]
    assert await differing_seams(engine, request, whole, range(1, 15)) == []


async def test_a_seam_inside_a_stop_string_does_not_show(engine: VllmEngine) -> None:
    request = chat(stop=["ital of Fr"], max_tokens=20)
    whole = await all_steps(engine, request)
    choice = body_of(whole)["choices"][0]
    assert choice["stop_reason"] == "ital of Fr"
    assert choice["message"]["content"].endswith("cap")
    assert await differing_seams(engine, request, whole, range(1, len(token_ids(whole)))) == []


@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_an_answer_that_was_complete_is_not_made_again(
    engine: VllmEngine, reason: str
) -> None:
    request = chat("What is the capital of France?", max_tokens=40 if reason == "stop" else 4)
    whole = await all_steps(engine, request)
    steps = await all_steps(engine, request, token_ids(whole))
    assert token_ids(steps) == []
    assert body_of(steps) == body_of(whole)
    assert body_of(steps)["choices"][0]["finish_reason"] == reason


async def test_a_seam_inside_and_after_the_thought_does_not_show(
    engine: VllmEngine, tmp_path: Path
) -> None:
    thinking = await serving_with_parser(engine, tmp_path)
    request = chat(max_tokens=40, ignore_eos=True)
    whole = [step async for step in thinking.steps(request, ())]
    message = body_of(whole)["choices"][0]["message"]
    assert "capital" in message["reasoning"]
    assert message["content"]
    ids = token_ids(whole)
    for cut in (1, 4, len(ids) // 2, len(ids) - 1):
        steps = [step async for step in thinking.steps(request, ids[:cut])]
        assert body_of(steps) == body_of(whole), f"seam at {cut}"


async def serving_with_parser(engine: VllmEngine, folder: Path) -> Any:
    """The same engine, behind a serving layer that splits off the first sentence."""
    from predictor.vllm_serving import build_serving
    from predictor.vllm_start import parse_arguments

    plugin = folder / "first_sentence.py"
    plugin.write_text(textwrap.dedent(PARSER))
    flags = ("--reasoning-parser", "first_sentence", "--reasoning-parser-plugin", str(plugin))
    model = engine._settings.model
    args = parse_arguments(VllmSettings(model, DEFAULT_MODEL, vllm_args=flags))
    return await build_serving(args, engine._llm, model=model, names=[DEFAULT_MODEL])


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(chat(max_tokens=12), id="chat"),
        pytest.param(chat(max_tokens=6, n=3, temperature=1, seed=5), id="three choices"),
        pytest.param(chat(max_tokens=5, logprobs=True, top_logprobs=2), id="chat logprobs"),
        pytest.param(completion("Once upon", max_tokens=5, logprobs=2), id="text logprobs"),
        pytest.param(completion("Once upon", max_tokens=5, echo=True), id="echo"),
        pytest.param(completion(["Once", "Twice"], max_tokens=5), id="two prompts"),
        pytest.param(chat(max_tokens=9, return_token_ids=True), id="token ids"),
        pytest.param(
            chat(structured_outputs={"choice": ["yes", "no"]}, max_tokens=5), id="a choice"
        ),
    ],
)
async def test_the_assembled_body_is_vllms_own(engine: VllmEngine, request_: EngineRequest) -> None:
    assembled = body_of(await all_steps(engine, request_))
    assert without_none(assembled) == without_none(await vllms_own_body(engine, request_))


async def vllms_own_body(engine: VllmEngine, request: EngineRequest) -> dict[str, Any]:
    serving = engine._serving
    assert serving is not None
    once = serving.parse(request).model_copy(update={"stream": False, "stream_options": None})
    response = await serving._calls[request.url](once)
    body: dict[str, Any] = response.model_dump()
    return {name: value for name, value in body.items() if name not in ("created", "id")}


def without_none(value: Any) -> Any:
    """vLLM fills its bodies with empty fields; OpenAI's readers take absent for empty."""
    match value:
        case dict():
            return {k: without_none(v) for k, v in value.items() if v is not None and v != []}
        case list():
            return [without_none(item) for item in value]
        case _:
            return value


async def test_structured_output_keeps_to_the_choice(engine: VllmEngine) -> None:
    request = chat("Is the sky blue?", structured_outputs={"choice": ["yes", "no"]})
    assert not engine.can_resume(request)
    message = body_of(await all_steps(engine, request))["choices"][0]["message"]
    assert message["content"] in ("yes", "no")


async def test_sixteen_at_once_each_get_their_own_answer(engine: VllmEngine) -> None:
    prompts = [f"{number} {number} {number} {number}" for number in range(10, 26)]
    requests = [
        completion(prompt, request_id=f"many-{i}", max_tokens=8) for i, prompt in enumerate(prompts)
    ]
    bodies = [body_of(s) for s in await asyncio.gather(*(all_steps(engine, r) for r in requests))]
    for prompt, body in zip(prompts, bodies, strict=True):
        assert prompt.split()[0] in body["choices"][0]["text"]
        assert body["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("make", [chat, completion], ids=["chat", "completion"])
async def test_closing_a_run_frees_its_slot(engine: VllmEngine, make: Any) -> None:
    runs = [
        engine.run(make("Count.", request_id=f"slot-{i}", max_tokens=900, ignore_eos=True), ())
        for i in range(engine.max_concurrency)
    ]
    for run in runs:
        await anext(run)
    began = time.monotonic()
    await runs[0].aclose()
    freed_s = time.monotonic() - began
    next_steps = await asyncio.wait_for(all_steps(engine, make("Hi", "next", max_tokens=1)), 10)
    for run in runs[1:]:
        await run.aclose()
    assert token_ids(next_steps)
    assert freed_s < 1


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        pytest.param(chat("word " * CONTEXT), "messages", id="prompt longer than the context"),
        pytest.param(completion("word " * CONTEXT), "prompt", id="text longer than the context"),
        pytest.param(chat(max_tokens=CONTEXT + 1), "max_tokens", id="answer longer than that"),
        pytest.param(chat(max_tokens="many"), "max_tokens", id="a text for a number"),
        pytest.param(chat(messages="hi"), "messages", id="a text for messages"),
        pytest.param(chat(messages=[]), "messages", id="no message"),
        pytest.param(chat(model="gpt"), "model", id="another model"),
        pytest.param(chat(temperature=-1), "temperature", id="out of range"),
        pytest.param(chat(n=0), "n", id="no choices"),
        pytest.param(chat(stop=[1]), "stop", id="a number to stop at"),
        pytest.param(chat(logit_bias={"999999": 1}), "logit_bias", id="no such token"),
        pytest.param(
            chat(structured_outputs={"regex": "(("}), "structured_outputs", id="a broken regex"
        ),
        pytest.param(completion(""), "prompt", id="empty prompt"),
        pytest.param(EngineRequest("e", "/v1/embeddings", {"input": "x"}), "url", id="embeddings"),
    ],
)
async def test_a_bad_request_names_its_field(
    engine: VllmEngine, request_: EngineRequest, field: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        await all_steps(engine, request_)
    assert caught.value.field == field
    assert engine.is_healthy()


async def test_lora_adapters_are_models_and_a_dead_engine_is_told_at_once(
    model: str, tmp_path: Path
) -> None:
    """Two claims, one engine: starting another costs six seconds."""
    adapter = write_adapter(tmp_path / "adapter", model)
    flags = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={adapter}")
    args = ("--max-model-len", "512", *flags)
    engine = VllmEngine(VllmSettings(model, "base", vllm_args=args))
    phases: list[ColdStartPhase] = []
    ticks = asyncio.create_task(count_ticks())
    await engine.start(phases.append)
    ticks.cancel()
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

    running = asyncio.ensure_future(
        all_steps(engine, completion("Count: 1", "dying", max_tokens=400, ignore_eos=True))
    )
    await asyncio.sleep(0.3)
    began = time.monotonic()
    os.kill(engine_process(engine), signal.SIGKILL)
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(running, 2)
    while engine.is_healthy():
        await asyncio.sleep(0.01)
    assert time.monotonic() - began < 2
    await engine.stop()


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
    began = time.monotonic()
    await engine.stop()
    assert time.monotonic() - began <= STOP_TIMEOUT_S  # vLLM looks after its process every 5 s
    assert not any(child.is_alive() for child in children)
    assert all(other.is_alive() for other in others)


async def count_ticks() -> None:
    """Fails the test when the event loop stands still for a second while the model loads."""
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.05)
        assert time.monotonic() - began < 1.0


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

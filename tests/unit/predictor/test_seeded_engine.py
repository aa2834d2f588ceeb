"""The test engine implements the engine's contract, on which all tests with it rely."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from predictor.engine.engine import ColdStartPhase, DecodeStep, EngineRequest
from predictor.engine.seeded_engine import PrefixCache, SeededEngine, SeededSettings
from predictor.errors import BadRequest, EngineDeadError, EngineRequestError, EngineStartError
from tests.awake import awake_s

FAST = SeededSettings(tokens_per_s=0, prefill_tokens_per_s=0)


def chat(text: Any = "hello there", **body: Any) -> EngineRequest:
    body = {"messages": [{"role": "user", "content": text}], **body}
    return EngineRequest("r1", "/v1/chat/completions", body)


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[SeededEngine]:
    engine = SeededEngine(FAST)
    await engine.start(lambda _: None)
    yield engine
    await engine.stop()


async def all_steps(
    engine: SeededEngine, request: EngineRequest, prior: Sequence[int] = ()
) -> list[DecodeStep]:
    return [step async for step in engine.run(request, prior)]


def token_ids(steps: Sequence[DecodeStep]) -> list[int]:
    return [token_id for step in steps for token_id in step.token_ids]


def shown(steps: Sequence[DecodeStep], field: str = "content") -> str:
    return "".join(
        choice["delta"].get(field, "")
        for step in steps
        if step.chunk is not None
        for choice in step.chunk["choices"]
    )


def usage(steps: Sequence[DecodeStep]) -> Mapping[str, Any]:
    assert steps[-1].chunk is not None
    return dict(steps[-1].chunk["usage"])


def finish_reason(steps: Sequence[DecodeStep]) -> str:
    assert steps[-2].chunk is not None
    return str(steps[-2].chunk["choices"][0]["finish_reason"])


async def test_the_same_prompt_and_seed_give_the_same_answer(engine: SeededEngine) -> None:
    assert shown(await all_steps(engine, chat(seed=3))) == shown(
        await all_steps(engine, chat(seed=3))
    )


@pytest.mark.parametrize("other", [chat("hello you"), chat(seed=1)], ids=["prompt", "seed"])
async def test_another_prompt_or_seed_gives_another_answer(
    engine: SeededEngine, other: EngineRequest
) -> None:
    assert shown(await all_steps(engine, chat())) != shown(await all_steps(engine, other))


@pytest.mark.parametrize("cut", [0, 1, 7, 19, 20])
async def test_a_resumed_answer_is_the_uninterrupted_one(engine: SeededEngine, cut: int) -> None:
    request = chat(seeded={"output_tokens": 19, "reasoning_tokens": 5})
    whole = await all_steps(engine, request)
    ids = token_ids(whole)
    resumed = await all_steps(engine, request, ids[:cut])
    assert token_ids(resumed) == ids[cut:]
    assert shown(resumed) == shown(whole)
    assert shown(resumed, "reasoning") == shown(whole, "reasoning")
    assert usage(resumed) == usage(whole)
    assert finish_reason(resumed) == finish_reason(whole) == "stop"


async def test_wrong_prior_ids_show_in_the_answer(engine: SeededEngine) -> None:
    request = chat(seeded={"output_tokens": 30})
    ids = token_ids(await all_steps(engine, request))
    wrong = [ids[0] % 9 + 1, *ids[1:5]]
    assert token_ids(await all_steps(engine, request, wrong)) != ids[5:]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_the_answer_ends_at_the_limit(engine: SeededEngine, field: str) -> None:
    steps = await all_steps(engine, chat(**{field: 4}))
    assert len(token_ids(steps)) == 4
    assert finish_reason(steps) == "length"
    assert usage(steps)["completion_tokens"] == 4


async def test_completions_carry_text(engine: SeededEngine) -> None:
    request = EngineRequest("r", "/v1/completions", {"prompt": "once", "max_tokens": 3})
    steps = await all_steps(engine, request)
    assert steps[0].chunk is not None
    assert steps[0].chunk["choices"][0]["text"]
    assert steps[0].chunk["object"] == "text_completion"


async def test_embeddings_are_one_body(engine: SeededEngine) -> None:
    request = EngineRequest("r", "/v1/embeddings", {"input": ["a", "b"]})
    (step,) = await all_steps(engine, request)
    assert step.chunk is not None
    assert [entry["index"] for entry in step.chunk["data"]] == [0, 1]


async def test_several_choices_are_several_answers(engine: SeededEngine) -> None:
    request = chat(n=2, max_tokens=6)
    assert not engine.can_resume(request)
    steps = await all_steps(engine, request)
    per_choice = {0: "", 1: ""}
    for step in steps:
        assert step.chunk is not None
        for choice in step.chunk["choices"]:
            per_choice[choice["index"]] += choice["delta"].get("content", "")
    assert per_choice[0] != per_choice[1]
    assert usage(steps)["completion_tokens"] == 12


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({"messages": []}, "messages", id="no message"),
        pytest.param({"messages": [{"role": "user"}]}, "messages.0.content", id="no content"),
        pytest.param({"messages": ["hi"]}, "messages.0", id="a text for a message"),
        pytest.param({"max_tokens": 0}, "max_tokens", id="no room for an answer"),
        pytest.param({"max_tokens": "9"}, "max_tokens", id="a text for a number"),
        pytest.param({"max_tokens": 9999}, "max_tokens", id="more than the context"),
        pytest.param({"model": "gpt"}, "model", id="another model"),
        pytest.param({"seeded": {"nonsense": 1}}, "seeded", id="unknown knob"),
    ],
)
def test_a_bad_request_names_its_field(body: Mapping[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        SeededEngine(FAST).validate(chat(**body))
    assert caught.value.field == field


def test_a_prompt_longer_than_the_context_names_the_messages() -> None:
    with pytest.raises(BadRequest) as caught:
        SeededEngine(FAST).validate(chat("word " * 5000))
    assert caught.value.field == "messages"


async def test_closing_the_run_frees_its_slot(engine: SeededEngine) -> None:
    run = engine.run(chat(seeded={"stall_at": 2}), ())
    await anext(run)
    assert engine.running == {"r1"}
    await run.aclose()
    assert engine.running == frozenset()


async def test_no_more_run_at_once_than_there_are_slots() -> None:
    engine = SeededEngine(SeededSettings(tokens_per_s=0, max_concurrency=1))
    await engine.start(lambda _: None)
    first = engine.run(chat(), ())
    await anext(first)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(engine.run(chat(), ())), 0.05)
    await first.aclose()
    await anext(engine.run(chat(), ()))


async def test_a_failing_request_leaves_the_engine_healthy(engine: SeededEngine) -> None:
    with pytest.raises(EngineRequestError):
        await all_steps(engine, chat(seeded={"fail_at": 2}))
    assert engine.is_healthy()


async def test_a_dying_engine_fails_every_request_at_once(engine: SeededEngine) -> None:
    stalled = asyncio.ensure_future(all_steps(engine, chat(seeded={"stall_at": 1})))
    with pytest.raises(EngineDeadError):
        await all_steps(engine, chat(seeded={"engine_dies_at": 2}))
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(stalled, 10)
    assert not engine.is_healthy()
    with pytest.raises(EngineStartError):
        await engine.start(lambda _: None)


async def test_tokens_keep_their_pace() -> None:
    engine = SeededEngine(SeededSettings(tokens_per_s=100, prefill_tokens_per_s=0))
    await engine.start(lambda _: None)
    began, began_awake = time.monotonic(), awake_s()
    await all_steps(engine, chat(max_tokens=20, seeded={"output_tokens": 50}))
    assert time.monotonic() - began >= 0.19
    assert awake_s() - began_awake < 1.0


async def test_a_start_passes_through_its_phases() -> None:
    phases: list[ColdStartPhase] = []
    engine = SeededEngine(SeededSettings(start_up_s=0.03))
    assert not engine.is_healthy()
    await engine.start(phases.append)
    assert phases[0] is ColdStartPhase.WEIGHTS
    assert phases[-1] is ColdStartPhase.READY
    assert engine.is_healthy()


def test_the_seeded_engine_imports_no_model_library() -> None:
    code = (
        "import sys, predictor.engine.seeded_engine as e; "
        "heavy = {'torch', 'vllm', 'kserve', 'transformers', 'pydantic'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


async def test_a_tenant_finds_its_prefix_and_no_other_tenant_does(engine: SeededEngine) -> None:
    async def found(tenant: str, text: str, **body: Any) -> int:
        request = replace(chat(text, **body), tenant=tenant)
        told = usage(await all_steps(engine, request))
        cached = told.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        assert cached < told["prompt_tokens"]
        return int(cached)

    long = "one two three four " * 20
    assert await found("acme", long) == 0
    assert await found("acme", long) == 80  # of 84, in blocks of 16
    assert await found("acme", long[: len(long) // 2] + "else") == 32
    assert await found("other", long) == 0
    assert await found("acme", long, cache_salt="mine") == 0


async def test_a_continued_answer_says_nothing_of_cached_tokens(engine: SeededEngine) -> None:
    request = chat("one two three four " * 20, seeded={"output_tokens": 6})
    ids = token_ids(await all_steps(engine, request))
    assert "prompt_tokens_details" in usage(await all_steps(engine, request))
    assert "prompt_tokens_details" not in usage(await all_steps(engine, request, ids[:3]))


def test_a_prefix_cache_forgets_the_blocks_that_were_used_longest_ago() -> None:
    cache = PrefixCache(most=3)
    assert cache.take([b"a", b"b"]) == 0
    assert cache.take([b"c", b"d"]) == 0
    assert cache.take([b"a", b"b"]) == 16  # the end of a prompt goes before its start
    assert cache.take([b"c"]) == 16

"""The real engine with the real model: answers that go on where they were, and clean failures.

The reasoning parser of these tests takes the first sentence for the thought: the packaged model
does not think, but it makes sentences, so the seam can be put inside a real «thought».
"""

import asyncio
import json
import random
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from eventing.job.tools.call import CallState, ToolCall, Turn
from eventing.job.tools.prompt import body_with_turns
from predictor.engine.engine import DecodeStep, EngineRequest, TurnIds
from predictor.engine.vllm.engine import VllmEngine, VllmSettings
from predictor.errors import BadRequest
from predictor.model_files.weights import DEFAULT_MODEL, ensure_model
from tests.awake import awake_s
from tests.integration.engine_calls import (
    CONTEXT,
    REAL_ENGINE,
    all_steps,
    body_of,
    cached_tokens,
    chat,
    completion,
    token_ids,
)

pytestmark = REAL_ENGINE

PARSER = """
    from vllm.reasoning import ReasoningParserManager
    from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

    @ReasoningParserManager.register_module("first_sentence")
    class FirstSentence(DeepSeekR1ReasoningParser):
        start_token = "<|endoftext|>"
        end_token = "."
"""
CALL: Mapping[str, Any] = {
    "name": "weather_at",
    "arguments": {"city": "Zürich", "days": [1, 2], "exact": True},
}
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {"name": "weather_at", "parameters": {"type": "object", "properties": {}}},
}


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


async def differing_seams(
    run: Callable[..., AsyncIterator[DecodeStep]],
    request: EngineRequest,
    whole: Sequence[DecodeStep],
    cuts: Sequence[int],
) -> list[int]:
    """The seams at which a continued answer is not the uninterrupted one."""
    ids, body = token_ids(whole), body_of(whole)

    async def is_different(cut: int) -> bool:
        again = run(replace(request, request_id=f"cut-{cut}"), ids[:cut])
        steps = [step async for step in again]
        return token_ids(steps) != ids[cut:] or body_of(steps) != body

    answers = await asyncio.gather(*map(is_different, cuts))
    return [cut for cut, different in zip(cuts, answers, strict=True) if different]


async def test_a_greedy_answer_resumed_anywhere_is_the_uninterrupted_one(
    engine: VllmEngine,
) -> None:
    request = chat("Tell me a short story about a hummingbird.", max_tokens=48)
    whole = await all_steps(engine, request)
    cuts = random.Random(7).sample(range(1, 48), 12)
    assert await differing_seams(engine.run, request, whole, cuts) == []


async def test_a_seam_inside_a_character_does_not_show(engine: VllmEngine) -> None:
    request = completion("🐦🐝 🐦🐝 🐦🐝 🐦🐝 🐦🐝", max_tokens=14)
    whole = await all_steps(engine, request)
    assert "🐝" in body_of(whole)["choices"][0]["text"]
    assert await differing_seams(engine.run, request, whole, range(1, 15)) == []


async def test_a_seam_inside_a_stop_string_does_not_show(engine: VllmEngine) -> None:
    request = chat(stop=["ital of Fr"], max_tokens=20)
    whole = await all_steps(engine, request)
    choice = body_of(whole)["choices"][0]
    assert choice["stop_reason"] == "ital of Fr"
    assert choice["message"]["content"].endswith("cap")
    assert await differing_seams(engine.run, request, whole, range(1, len(token_ids(whole)))) == []


async def test_a_seam_under_a_repetition_penalty_does_not_show(engine: VllmEngine) -> None:
    """It counts prompt and answer alike, so that it does not matter which a replayed token is."""
    request = chat("Count: one two three", repetition_penalty=1.4, max_tokens=24)
    assert engine.can_resume(request)
    whole = await all_steps(engine, request)
    plain = await all_steps(engine, chat("Count: one two three", "plain", max_tokens=24))
    assert token_ids(whole) != token_ids(plain)
    assert await differing_seams(engine.run, request, whole, range(2, 24, 3)) == []


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_requests_with_output_penalties_are_not_resumed(engine: VllmEngine, penalty: str) -> None:
    assert not engine.can_resume(chat(**{penalty: 0.5}))
    assert engine.can_resume(chat(**{penalty: 0}))


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
    assert await differing_seams(thinking.steps, request, whole, (1, 4, 20, 39)) == []


async def serving_with_parser(engine: VllmEngine, folder: Path) -> Any:
    """The same engine, behind a serving layer that splits off the first sentence."""
    plugin = folder / "first_sentence.py"
    plugin.write_text(textwrap.dedent(PARSER))
    flags = ("--reasoning-parser", "first_sentence", "--reasoning-parser-plugin", str(plugin))
    return await serving_with(engine, flags, engine._llm)


async def serving_with(engine: VllmEngine, flags: tuple[str, ...], llm: Any) -> Any:
    """A serving layer of its own over the running engine."""
    from predictor.engine.vllm.serving import build_serving
    from predictor.engine.vllm.start import parse_arguments

    model = engine._settings.model
    args = parse_arguments(VllmSettings(model, DEFAULT_MODEL, vllm_args=flags))
    return await build_serving(args, llm, model=model, names=[DEFAULT_MODEL])


async def test_a_seam_anywhere_in_a_tool_call_does_not_show(engine: VllmEngine) -> None:
    """vLLM's own parser, over what a model with tools would have said."""
    said = f"I shall look.<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
    calling = await serving_with(engine, TOOL_FLAGS, Scripted(engine._llm, said))
    request = chat("What is the weather?", tools=[TOOL], tool_choice="auto", max_tokens=100)
    assert engine.can_resume(request)
    whole = [step async for step in calling.steps(request, ())]
    ids, body = token_ids(whole), without_ids(body_of(whole))
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather_at"
    assert json.loads(call["function"]["arguments"]) == CALL["arguments"]
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    for cut in range(1, len(ids)):
        steps = [step async for step in calling.steps(request, ids[:cut])]
        assert token_ids(steps) == ids[cut:]
        assert without_ids(body_of(steps)) == body, f"seam at {cut}"


async def test_a_forced_call_and_the_answer_to_its_result_are_two_turns(
    engine: VllmEngine,
) -> None:
    """The packaged model calls nothing of itself: a forced choice gives valid JSON, and no sense."""
    serving = await serving_with(engine, TOOL_FLAGS, engine._llm)
    choice = {"type": "function", "function": {"name": "weather_at"}}
    request = chat(
        "Weather in Oslo?", tools=[STRICT_TOOL], tool_choice=choice, max_tokens=60, seed=1
    )
    assert not engine.can_resume(request)
    whole = [step async for step in serving.steps(noting(request), ())]
    first = body_of(whole)
    message = first["choices"][0]["message"]
    (made,) = message["tool_calls"]
    assert isinstance(json.loads(made["function"]["arguments"])["city"], str)

    call = ToolCall(
        turn=1,
        place=0,
        call_id=made["id"],
        name="weather_at",
        arguments=made["function"]["arguments"],
        state=CallState.RETURNED,
        output="4 degrees and rain",
    )
    said = {"role": "assistant", "content": None, "tool_calls": [made]}
    turn = Turn(
        number=1, attempt=1, begin=0, end=1, message=said, usage=first["usage"], calls=(call,)
    )
    body = {**body_with_turns(request.body, (turn,)), "tools": [CITY_TOOL]}
    second = replace(request, request_id="second", body=body)
    assert engine.can_resume(second)
    noted = noting(second, first["prefix"])
    steps = [step async for step in serving.steps(noted, ())]
    answer = body_of(steps)
    rendered = steps
    assert answer["choices"][0]["message"]["content"]
    # This model's template shows no calls, so the ids of the first turn are not in the second's prompt as rendered.
    assert answer["prefix"]["kept"] is False
    made = tuple(token_ids(whole))
    appended = replace(noted, request_id="appended", turns=(TurnIds(first["prefix"], made),))
    steps = [step async for step in serving.steps(appended, ())]
    after = body_of(steps)
    assert after["prefix"]["kept"] is True
    assert after["usage"]["prompt_tokens"] > answer["usage"]["prompt_tokens"]
    assert (cached_tokens(steps) or 0) >= first["prefix"]["tokens"] // 16 * 16 - 16
    assert await differing_seams(serving.steps, appended, steps, (3,)) == []
    assert await differing_seams(serving.steps, noted, rendered, (3,)) == []


async def test_a_prompt_that_goes_on_after_an_answer_keeps_its_ids(engine: VllmEngine) -> None:
    request = chat("What is the capital of France?", max_tokens=24)
    first = body_of(await all_steps(engine, noting(request)))
    said = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    messages = [*request.body["messages"], said, {"role": "user", "content": "And of Italy?"}]
    following = replace(request, request_id="next", body={**request.body, "messages": messages})

    steps = await all_steps(engine, noting(following, first["prefix"]))

    assert body_of(steps)["prefix"]["kept"] is True
    assert (cached_tokens(steps) or 0) >= first["prefix"]["tokens"] // 16 * 16 - 16


def noting(request: EngineRequest, before: Mapping[str, Any] | None = None) -> EngineRequest:
    """A turn's request, after the turn before."""
    return replace(request, notes_prefix=True, prefix=before)


TOOL_FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
CITY_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather_at",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


STRICT_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {**CITY_TOOL["function"], "strict": True},
}
"""vLLM holds arguments to the schema only then, forced ones too."""


def without_ids(body: dict[str, Any]) -> dict[str, Any]:
    """Parsers draw the ids of calls anew each time; readers keep the first (`predictor.generation.replay_filter`)."""
    for choice in body["choices"]:
        for call in choice["message"].get("tool_calls") or ():
            call.pop("id")
    return body


class Scripted:
    """An engine that says one thing, and goes on with it where the prompt holds its beginning."""

    def __init__(self, llm: Any, text: str) -> None:
        self._llm = llm
        tokenizer = llm.renderer.tokenizer
        self._ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        self._prompt_length = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    async def generate(
        self, prompt: Any, params: Any, request_id: str, **_: Any
    ) -> AsyncIterator[Any]:
        from predictor.engine.vllm.resume import ResumedAnswer

        ids = prompt["prompt_token_ids"]
        self._prompt_length = self._prompt_length or len(ids)  # the first run has nothing before it
        answer = ResumedAnswer(self._llm, prompt, params, request_id)
        for token_id in self._ids[len(ids) - self._prompt_length :]:
            yield answer.add([token_id], answer.ending_at(token_id))


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
    own = await vllms_own_body(engine, request_)
    for body in (assembled, own):  # the second run finds in the cache what the first one left
        body["usage"].pop("prompt_tokens_details", None)
    assert without_none(assembled) == without_none(own)


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
async def test_an_answer_that_may_be_stopped_says_its_usage_from_the_first_token_on(
    engine: VllmEngine, make: Any
) -> None:
    whole = body_of(await all_steps(engine, make("Count.", max_tokens=8)))
    request = replace(make("Count.", "counts", max_tokens=8), counts_throughout=True)
    steps = await all_steps(engine, request)

    assert body_of(steps) == whole
    said = [step.chunk["usage"] for step in steps if step.chunk and step.chunk.get("choices")]
    assert {usage["prompt_tokens"] for usage in said} == {whole["usage"]["prompt_tokens"]}


@pytest.mark.parametrize("make", [chat, completion], ids=["chat", "completion"])
async def test_closing_a_run_frees_its_slot(engine: VllmEngine, make: Any) -> None:
    runs = [
        engine.run(make("Count.", request_id=f"slot-{i}", max_tokens=900, ignore_eos=True), ())
        for i in range(engine.max_concurrency)
    ]
    await asyncio.gather(*map(anext, runs))
    began = awake_s()
    await runs[0].aclose()
    freed_s = awake_s() - began
    next_steps = await asyncio.wait_for(all_steps(engine, make("Hi", "next", max_tokens=1)), 60)
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


LONG = "The hummingbird rests at night and saves its strength until the sun is back. " * 10


@pytest.mark.parametrize("call", [chat, completion])
async def test_a_tenant_finds_its_prefix_in_the_cache_and_no_other_tenant_does(
    engine: VllmEngine, call: Any
) -> None:
    async def found(tenant: str, **body: Any) -> int | None:
        request = replace(call(LONG, f"of-{tenant}", max_tokens=2, **body), tenant=tenant)
        return cached_tokens(await all_steps(engine, request))

    assert await found("acme") == 0
    again = await found("acme")
    assert again is not None
    assert again >= 64
    assert await found("other") == 0
    assert await found("") == 0, "a direct call is of no tenant"
    # A salt of one's own only parts one's own prompts.
    assert await found("other", cache_salt="acme") == 0
    assert await found("acme", cache_salt="mine") == 0
    assert await found("acme", cache_salt="mine") == again


async def test_a_continued_answer_says_nothing_of_cached_tokens(engine: VllmEngine) -> None:
    request = replace(chat(LONG, "continued", max_tokens=8), tenant="continues")
    whole = await all_steps(engine, request)
    assert cached_tokens(whole) == 0
    rest = await all_steps(engine, replace(request, request_id="rest"), token_ids(whole)[:4])
    assert cached_tokens(rest) is None


def test_a_salt_that_vllm_refuses_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(BadRequest) as refused:
        engine.validate(chat(cache_salt="a/b"))
    assert refused.value.field == "cache_salt"

"""Scripted turns of the test engine, on which the tests of tool loops rely."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import orjson
import pytest
import pytest_asyncio

from predictor.engine.engine import DecodeStep, EngineRequest
from predictor.engine.seeded_engine import SeededEngine, SeededSettings
from predictor.errors import BadRequest, EngineRequestError
from predictor.generation.assembly import Assembler

TOOLS = [{"type": "function", "function": {"name": "web__fetch"}}]
TURNS = [
    {
        "text": "I look it up.",
        "reasoning_tokens": 3,
        "calls": [
            {"name": "web__fetch", "arguments": {"url": "https://a.example/"}},
            {"name": "web__fetch", "arguments": '{"url": "https://b.example/"}'},
        ],
    },
    {"calls": [{"name": "web__fetch", "arguments": {}}], "resumable": False},
    {"text": "It is so."},
]
ASK = {"role": "user", "content": "Is it so?"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "yes"}


def call(*said: Mapping[str, Any], **body: Any) -> EngineRequest:
    knobs = {"turns": TURNS, "output_tokens": 4}
    body = {"messages": [ASK, *said], "tools": TOOLS, "seeded": knobs, **body}
    return EngineRequest("r1", "/v1/chat/completions", body)


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[SeededEngine]:
    engine = SeededEngine(SeededSettings(tokens_per_s=0, prefill_tokens_per_s=0))
    await engine.start(lambda _: None)
    yield engine
    await engine.stop()


async def run(
    engine: SeededEngine, request: EngineRequest, prior: Sequence[int] = ()
) -> tuple[list[DecodeStep], dict[str, Any]]:
    answer, steps = Assembler(), []
    async with aclosing(engine.run(request, prior)) as running:
        async for step in running:
            steps.append(step)
            if step.chunk is not None:
                answer.add(step.chunk)
    return steps, answer.body()


def made(steps: Sequence[DecodeStep]) -> list[int]:
    return [token_id for step in steps for token_id in step.token_ids]


async def test_a_turn_says_its_text_and_makes_its_calls_token_by_token(
    engine: SeededEngine,
) -> None:
    steps, body = await run(engine, call())

    choice = body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look it up."
    assert len(choice["message"]["reasoning"].split()) == 3
    functions = [each["function"] for each in choice["message"]["tool_calls"]]
    assert [each["name"] for each in functions] == ["web__fetch", "web__fetch"]
    urls = [orjson.loads(each["arguments"])["url"] for each in functions]
    assert urls == ["https://a.example/", "https://b.example/"]
    assert body["usage"]["completion_tokens"] == len(made(steps)) > 20
    assert all(len(step.token_ids) <= 1 for step in steps)


async def test_a_turn_goes_on_at_any_token_and_is_the_same(engine: SeededEngine) -> None:
    steps, whole = await run(engine, call())
    ids = made(steps)

    for cut in range(1, len(ids)):
        rest, body = await run(engine, call(), ids[:cut])
        assert made(rest) == ids[cut:]
        assert body["choices"] == whole["choices"]
        assert body["usage"] == whole["usage"]


async def test_a_turn_does_not_go_on_after_the_ids_of_another(engine: SeededEngine) -> None:
    steps, _ = await run(engine, call())
    ids = made(steps)
    ids[5] = ids[5] % 250 + 1

    with pytest.raises(EngineRequestError):
        await run(engine, call(), ids[:8])


@pytest.mark.parametrize(
    ("said", "body", "text", "calls"),
    [
        ((CALLED, RESULT), {}, None, 1),
        ((CALLED, RESULT, CALLED, RESULT), {}, "It is so.", 0),
        ((CALLED, RESULT, ASK), {}, "I look it up.", 2),
        ((), {"parallel_tool_calls": False}, "I look it up.", 1),
        ((), {"tool_choice": "none"}, "I look it up.", 0),
    ],
)
async def test_the_turn_is_chosen_by_the_calls_since_the_last_message_of_the_user(
    engine: SeededEngine, said: Any, body: Any, text: str | None, calls: int
) -> None:
    _, answer = await run(engine, call(*said, **body))

    message = answer["choices"][0]["message"]
    assert (message["content"], len(message.get("tool_calls", ()))) == (text, calls)


async def test_after_its_last_turn_it_answers_with_words_that_depend_on_the_results(
    engine: SeededEngine,
) -> None:
    other = {**RESULT, "content": "no"}
    answers = [
        (await run(engine, call(*[CALLED, RESULT] * 2, CALLED, result)))[1]
        for result in (RESULT, RESULT, other)
    ]

    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert len(texts[0].split()) == 4
    assert texts[0] == texts[1] != texts[2]


def test_a_turn_says_itself_whether_it_may_be_continued(engine: SeededEngine) -> None:
    assert engine.can_resume(call())
    assert not engine.can_resume(call(CALLED, RESULT))


@pytest.mark.parametrize(
    "turns",
    ["x", [1], [{"words": 3}], [{"calls": "x"}], [{"calls": ["x"]}], [{"calls": [{}]}]],
)
def test_turns_of_another_form_are_refused(engine: SeededEngine, turns: Any) -> None:
    with pytest.raises(BadRequest):
        engine.validate(call(seeded={"turns": turns}))

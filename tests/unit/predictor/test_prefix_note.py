"""Whether a later turn's prompt begins with the tokens of the turn before, and where that is noted."""

import pytest

from predictor.engine.engine import prefix_note
from predictor.generation.assembly import Assembler
from predictor.generation.generation import Completed
from tests.unit.predictor.test_settlement import job_of_attempt, running_job


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ([1, 2, 3, 4, 9, 9], True),
        ([1, 2, 3, 4], True),
        ([1, 2, 3], False),
        ([1, 2, 9, 4, 5], False),
        ([9, 1, 2, 3, 4], False),
    ],
)
def test_a_prompt_keeps_the_prefix_that_begins_with_prompt_and_answer_of_the_turn_before(
    prompt: list[int], kept: bool
) -> None:
    first = prefix_note([1, 2], [3, 4], None)

    assert "kept" not in first
    assert prefix_note(prompt, [7], first)["kept"] is kept


async def test_a_note_of_the_engine_is_in_the_turns_usage_and_in_no_sum() -> None:
    answer = Assembler()
    frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    note = prefix_note([1, 2], [3], prefix_note([7], [], None))
    said = {"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}
    answer.add({**frame, "choices": [said]})
    answer.add({**frame, "choices": [], "usage": usage, "prefix": note})
    store, settlement, attempt = await running_job()

    await settlement.settle(attempt, Completed(answer.body()), new_tokens=1)

    job = await job_of_attempt(store, attempt)
    assert job.usage == usage
    assert (job.result or {})["usage"] == {**usage, "prefix": note}
    assert "prefix" not in (job.result or {})


@pytest.mark.parametrize(
    "written",
    ["x", 3, [], {}, {"tokens": "3", "digest": "d" * 32}, {"tokens": -1, "digest": "d" * 32}],
)
async def test_what_a_provider_writes_there_is_no_note(written: object) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}}
    body = {"choices": [choice], "usage": {**usage, "prefix": written}, "prefix": written}
    store, settlement, attempt = await running_job()

    await settlement.settle(attempt, Completed(body), new_tokens=1)

    job = await job_of_attempt(store, attempt)
    assert job.usage == usage
    assert job.result == {"choices": [choice], "usage": usage}

"""Whether a later turn's prompt begins with the tokens of the turn before, and where that is noted."""

import pytest

from predictor.engine.engine import TurnIds, appended_ids, known_prefix, prefix_note
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


END = 0  # the token that ends an answer


def turns_of(*made: tuple[list[int], list[int]]) -> list[TurnIds]:
    """The turns of these prompts and answers."""
    return [TurnIds(prefix_note(prompt, answer, None), tuple(answer)) for prompt, answer in made]


def test_answers_stand_in_the_next_prompt_as_they_were_made() -> None:
    first = ([1, 2], [50, 51, END])
    second = ([1, 2, 50, 51, END, 3], [60, END])
    rendered = [1, 2, 90, END, 3, 91, 92, 93, END, 4, 5]  # the template writes both in another way

    prompt = appended_ids(rendered, turns_of(first, second))

    assert prompt == [1, 2, 50, 51, END, 3, 60, END, 4, 5]
    assert prefix_note(prompt, [], prefix_note(*second, None))["kept"] is True


def test_the_last_ids_of_a_prompt_may_be_cut_in_another_way_when_text_follows() -> None:
    made = ([1, 2, 7, 77], [50, END])
    rendered = [1, 2, 7, 7, 8, 90, END, 3]

    assert appended_ids(rendered, turns_of(made)) == [1, 2, 7, 77, 50, END, 3]
    made = (
        [1, END, 4],
        [50, END],
    )  # the end of what was said before the answer is not the answer's
    assert appended_ids([1, END, 4, 90, END, 3], turns_of(made)) == [1, END, 4, 50, END, 3]


def test_an_answer_that_the_template_keeps_changes_nothing() -> None:
    rendered = [1, 2, 50, END, 3]

    assert appended_ids(rendered, turns_of(([1, 2], [50, END]))) == rendered


@pytest.mark.parametrize(
    ("rendered", "made"),
    [
        (
            [9, 2, 3, 50, END, 3],
            ([1, 2, 3], [50, END]),
        ),  # the prompt itself is rendered in another way
        ([1], ([1, 2, 3, 4], [50, END])),
        ([1, 2, 90, 3], ([1, 2], [50, END])),  # where the answer ends is not shown
        ([1, 2, 50, END, 3], ([1, 2], [])),
    ],
)
def test_where_the_template_does_not_allow_it_no_ids_are_appended(
    rendered: list[int], made: tuple[list[int], list[int]]
) -> None:
    assert appended_ids(rendered, turns_of(made)) is None


def test_a_note_of_an_older_version_appends_nothing() -> None:
    note = prefix_note([1], [END], None)
    del note["prompt"], note["tail"]

    assert known_prefix(note) == note
    assert appended_ids([1, END, 2], [TurnIds(note, (END,))]) is None

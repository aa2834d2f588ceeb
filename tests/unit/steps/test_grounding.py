"""The step `ground`: which words stand in no passage, what is said of an answer, and when it is withheld."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.errors import BadRequest
from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.job.passage import Passage
from eventing.job.plan import parse_pipelines
from steps.grounding.step import ground, parse_rule
from steps.grounding.support import support
from steps.handler import Continue, Refuse, Skip, StepCall, Withhold

HANDBOOK = "Every employee has 27 days of paid leave. Leave is asked for in the portal."
BLOCK = {"mode": "block", "min_score": 0.5}


def called(*texts: str, settings: dict[str, Any] | None = None) -> StepCall:
    request = JobRequest(url="/v1/chat/completions", body={"model": "m"})
    choices = [
        {"index": n, "message": {"role": "assistant", "content": text}}
        for n, text in enumerate(texts)
    ]
    plan = parse_pipelines({"m": {"steps": ["retrieve", "ground"]}})["m"]
    return StepCall(
        job=Job(id=JobId("job_1"), state=JobState.IN_PROGRESS, request=request, plan=plan),
        request=request,
        settings=settings or {},
        attempt=1,
        deadline_ms=0,
        candidate={"choices": choices},
        passages=(Passage(file_id="file-1", filename="handbook.md", text=HANDBOOK),),
    )


def marked(answer: str, *passages: str) -> list[str]:
    return [answer[each.start : each.end] for each in support(answer, passages).unsupported]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Employees have 27 days of leave [1].", []),
        ("Employees have 30 days of leave.", ["30"]),
        ("The Portal is asked for paid leaves.", []),
        ("They are paid by Mumbai Steel Works, in the portal.", ["Mumbai Steel Works"]),
        ("Leave is 1,000 days.", ["1,000"]),
    ],
)
def test_words_and_numbers_that_stand_in_no_passage_are_marked(
    answer: str, words: list[str]
) -> None:
    assert marked(answer, HANDBOOK) == words


def test_accents_case_and_number_words_are_the_same_word() -> None:
    assert marked("CAFÉ has 3 rooms", "The cafe has three rooms") == []


def test_words_in_an_order_that_no_passage_has_lower_the_score() -> None:
    copied = support("27 days of paid leave", [HANDBOOK]).score
    mixed = support("paid days of leave 27", [HANDBOOK]).score
    assert copied == 1
    assert mixed is not None
    assert mixed < 1


@pytest.mark.parametrize(("answer", "ok"), [("Leave [1].", True), ("Leave [2].", False)])
def test_a_citation_of_a_passage_that_there_is_not_is_found(answer: str, ok: bool) -> None:
    assert support(answer, [HANDBOOK]).citations_ok is ok


@given(answer=st.text(max_size=200), passage=st.text(max_size=200))
def test_any_text_has_a_score_between_0_and_1_and_spans_inside_it(
    answer: str, passage: str
) -> None:
    found = support(answer, [passage])

    assert found.score is None or 0 <= found.score <= 1
    ends = [place for each in found.unsupported for place in (each.start, each.end)]
    assert ends == sorted(ends)
    assert not ends or (ends[0] >= 0 and ends[-1] <= len(answer))
    assert support(answer, [answer]).unsupported == ()


async def test_an_answer_is_shown_with_its_verdict() -> None:
    outcome = await ground(called("Employees have 30 days of leave [1]."))

    assert isinstance(outcome, Continue)
    assert outcome.result is None
    verdict = outcome.detail["grounding"]
    assert verdict["unsupported"] == [{"start": 15, "end": 17}]
    assert verdict["citations_ok"] is True
    assert 0 < verdict["score"] < 1


async def test_spans_are_places_in_the_text_that_the_client_sees() -> None:
    outcome = await ground(called("![x](https://evil.example/a.png)Leave in Mumbai"))

    assert isinstance(outcome, Continue)
    shown = "xLeave in Mumbai"
    spans = outcome.detail["grounding"]["unsupported"]
    assert [shown[each["start"] : each["end"]] for each in spans] == ["xLeave in Mumbai"]


async def test_of_several_choices_the_worst_counts() -> None:
    outcome = await ground(called("27 days of paid leave", "Mumbai Steel"))

    assert isinstance(outcome, Continue)
    verdict = outcome.detail["grounding"]
    assert (verdict["score"], verdict["unsupported"][0]["choice"]) == (0, 1)


@pytest.mark.parametrize(
    ("text", "is_withheld"),
    [
        ("27 days of paid leave [1]", False),
        ("27 days of paid leave [2]", True),
        ("Mumbai Steel", True),
        ("yes [2]", True),
    ],
)
async def test_block_withholds_what_its_passages_do_not_support(
    text: str, is_withheld: bool
) -> None:
    assert isinstance(await ground(called(text, settings=BLOCK)), Withhold) is is_withheld


async def test_without_a_least_score_block_withholds_only_false_citations() -> None:
    settings = {"mode": "block"}

    assert isinstance(await ground(called("Mumbai Steel", settings=settings)), Continue)
    assert isinstance(await ground(called("Leave [7]", settings=settings)), Withhold)


async def test_what_can_not_be_checked_is_skipped_with_a_reason() -> None:
    without = replace(called("Leave"), passages=())

    assert await ground(without) == Skip(reason="no passages")
    assert await ground(called("")) == Skip(reason="the answer has no text")
    assert await ground(called("Yes.")) == Skip(reason="no word of the answer can be compared")


@pytest.mark.parametrize(
    "settings",
    [{"mode": "score"}, {"min_score": 2}, {"min_score": True}, {"hold": "window"}, {"x": 1}],
)
async def test_settings_that_can_not_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        parse_rule(settings)
    assert isinstance(await ground(called("Leave", settings=settings)), Refuse)

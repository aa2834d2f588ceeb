"""An answer that is judged while it is made: what is shown of it, and where it is stopped."""

import os
import random
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eventing.job.moderation.rules import Rules, parse_rules
from eventing.job.moderation.window import WindowJudge

RULES = parse_rules(
    [
        {"words": ["ass", "project x", "über uns"]},
        {"regex": "(?i)password: .*"},
        {"personal_data": ["card", "iban", "email", "phone", "us_ssn", "secret"]},
    ]
)
FORBIDDEN = (
    "ass",
    "Project X",
    "password: hunter two",
    "4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00",
    "someone@mail.example.org",
    "+49 89 1234567",
    "078-05-1120",
    f"sk-{'a1B2' * 12}",
)
STREAMS = int(os.environ.get("TORPOR_TEST_STREAMS", "600"))
"""10,000 in the long form."""


def shown(pieces: Sequence[str], rules: Rules = RULES) -> tuple[str, bool]:
    """What a reader has seen at the end, one token a piece, and whether the answer was stopped."""
    judge, seen, upto = WindowJudge(rules), "", 0
    for position, piece in enumerate(pieces, 1):
        if judge.feed([{"index": 0, "delta": {"content": piece}}], position):
            return seen, True
        seen, upto = seen + "".join(pieces[upto : judge.mark]), judge.mark
    if judge.finish():
        return seen, True
    return "".join(pieces), False


def cut(text: str, draw: random.Random) -> list[str]:
    """The text in pieces of one to six characters."""
    pieces, at = [], 0
    while at < len(text):
        size = draw.randint(1, 6)
        pieces.append(text[at : at + size])
        at += size
    return pieces


def test_no_part_of_a_forbidden_span_is_shown_wherever_tokens_are_cut() -> None:
    draw = random.Random(7)
    said = "the bird assisting a class 411 DE nectar über allem at 12 is passwords sk- night"
    words = said.split()
    for number in range(STREAMS):
        span = FORBIDDEN[number % len(FORBIDDEN)]
        before = " ".join(draw.choices(words, k=draw.randint(0, 60)))
        after = " ".join(draw.choices(words, k=draw.randint(0, 60)))
        text = f"{before} {span}\n{after}"
        seen, is_stopped = shown(cut(text, draw))

        assert is_stopped, text
        assert text.startswith(seen)
        assert len(seen) <= len(before) + 1, (span, seen)


def test_a_harmless_answer_is_shown_whole_and_at_most_a_window_late() -> None:
    text = "assisting every class is a passing thing. " * 40
    judge, pieces = WindowJudge(RULES), [text[at : at + 4] for at in range(0, len(text), 4)]
    for position, piece in enumerate(pieces, 1):
        assert judge.feed([{"index": 0, "delta": {"content": piece}}], position) is None
        assert position - judge.mark <= RULES.longest // 4 + 2
    assert judge.finish() is None


PIECES = st.lists(
    st.sampled_from(
        [
            *FORBIDDEN[:4],
            "as",
            "s",
            " ",
            "a",
            "\n",
            "pass",
            "word: ",
            "4111",
            "1111 ",
            ".",
            "@",
            "b.de",
        ]
    ),
    max_size=40,
)


@given(PIECES)
@example(["as", "s"])
@example(["as", "s", "a"])
def test_pieces_are_judged_as_the_whole_text_is(pieces: list[str]) -> None:
    whole = RULES.findings("".join(pieces))

    seen, is_stopped = shown(pieces)

    assert is_stopped == bool(whole)
    assert all(len(seen) <= each.start for each in whole)


def test_each_choice_and_each_kind_of_text_is_judged_for_itself() -> None:
    judge = WindowJudge(parse_rules([{"words": ["torpor"]}]))

    assert judge.feed([{"index": 0, "text": "tor"}, {"index": 1, "text": "por "}], 1) is None
    assert judge.feed([{"index": 0, "delta": {"reasoning_content": "por "}}], 2) is None
    assert judge.feed([{"index": 0, "text": "por "}], 3) is not None


@pytest.mark.parametrize("said", ["torpor", "\\u0074orpor"])
def test_arguments_of_a_tool_call_are_judged_at_the_end_and_shown_then(said: str) -> None:
    judge = WindowJudge(parse_rules([{"words": ["torpor"]}]))
    call = {"index": 0, "function": {"name": "f", "arguments": f'{{"q": "{said}"}}'}}

    assert judge.feed([{"index": 0, "delta": {"tool_calls": [call]}}], 1) is None
    assert judge.feed([], 2) is None
    assert judge.mark == 0
    assert judge.finish() is not None


def test_tokens_without_text_are_no_reason_to_hold_back() -> None:
    judge = WindowJudge(parse_rules([{"words": ["torpor"]}]))
    judge.feed([], 5)
    assert judge.mark == 0  # of a continued answer these may be tokens whose text is still to come

    judge.feed([{"index": 0, "delta": {"content": "a long and harmless text"}}], 6)
    judge.feed([], 9)
    judge.feed([{"index": 0, "delta": {"content": "another long and harmless text"}}], 10)
    assert judge.mark == 9


@pytest.mark.parametrize("made", range(1, 12))
def test_an_attempt_that_goes_on_shows_nothing_that_is_not_judged_yet(made: int) -> None:
    """Its tokens exist already, and it says its role, then their text, before it makes another."""
    pieces = ["my ", "card ", "is ", "41", "11 ", "11", "11 ", "1111 ", "11", "11", ", so "]
    said = "".join(pieces)
    judge = WindowJudge(RULES)

    assert judge.feed([{"index": 0, "delta": {"role": "assistant"}}], made) is None
    marks = [judge.mark]
    for place, piece in enumerate(pieces, 1):
        if judge.feed([{"index": 0, "delta": {"content": piece}}], max(made, place)):
            break
        marks.append(judge.mark)

    assert judge.finish() is not None
    assert len("".join(pieces[: max(marks)])) <= said.index("41")

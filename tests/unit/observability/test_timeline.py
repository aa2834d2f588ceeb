"""A job's life in words, as `torpor watch` ends it."""

from typing import Any

from torpor.cli.view.screen import attempt_lines


def attempt(number: int, **changes: Any) -> dict[str, Any]:
    fields = {"started_ms": 1000, "ended_ms": 3500, "outcome": "completed", "resumed_from": 0}
    return {"attempt": number, **fields, **changes}


def test_a_job_that_went_well_needs_no_words_about_attempts() -> None:
    assert attempt_lines({"attempts": [attempt(1)]}) == []


def test_each_attempt_says_how_it_ended_how_long_it_took_and_where_it_went_on() -> None:
    job = {"attempts": [attempt(1, outcome="lost"), attempt(2, resumed_from=40)]}

    assert attempt_lines(job) == [
        "attempt 1: lost, 2.50 s",
        "attempt 2: completed, 2.50 s, went on after 40 tokens",
    ]


def test_an_attempt_that_goes_on_says_so() -> None:
    job = {"attempts": [attempt(1, outcome="lost"), attempt(2, outcome=None, ended_ms=None)]}

    assert attempt_lines(job)[1] == "attempt 2: running, ?"

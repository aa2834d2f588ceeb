"""When a rule may serve: pure counts and one interval."""

import pytest

from eventing.job.job import new_job_id
from steps.semantic_cache.agreement import Verdict
from steps.semantic_cache.shadow import (
    Budget,
    answer_text,
    answers_agree,
    count_field,
    is_held_out,
    may_serve,
    upper_bound,
)


def counts(agreed: int, differed: int = 0, complained: int = 0) -> dict[str, int]:
    names = zip(("agreed", "differed", "complained"), (agreed, differed, complained), strict=True)
    return {count_field("m", Verdict.SAME, name): count for name, count in names}


@pytest.mark.parametrize(
    ("seen", "serves"),
    [
        (counts(0), False),
        (counts(199), False),
        (counts(200), True),
        (counts(200, differed=1), False),
        (counts(400, differed=1), True),
        (counts(400, complained=9), False),
    ],
    ids=["none", "few", "enough", "one error", "more", "complaints"],
)
def test_a_rule_serves_once_its_error_rate_is_surely_within_the_budget(
    seen: dict[str, int], serves: bool
) -> None:
    assert may_serve(seen, "m", Verdict.SAME, Budget()) is serves
    assert not may_serve(seen, "other", Verdict.SAME, Budget())
    assert not may_serve(seen, "m", Verdict.NEAR, Budget())


def test_the_interval_narrows_with_more_comparisons() -> None:
    bounds = [upper_bound(0, n) for n in (0, 10, 100, 1000)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] == 1.0


def test_a_fixed_share_of_jobs_is_held_out() -> None:
    ids = [new_job_id() for _ in range(2000)]
    held = [job_id for job_id in ids if is_held_out(job_id, 0.05)]
    assert 50 <= len(held) <= 160
    assert all(is_held_out(job_id, 0.05) for job_id in held)
    assert not any(is_held_out(job_id, 0) for job_id in ids)


@pytest.mark.parametrize(
    ("kept", "fresh", "cosine", "agrees"),
    [
        ("yes", "yes", 0.0, True),
        ("It costs 5 euros.", "The price is 5 euros.", 0.9, True),
        ("It costs 5 euros.", "The price is 6 euros.", 0.97, False),
        ("It opens at noon.", "It is closed.", 0.5, False),
    ],
    ids=["equal", "near", "number", "far"],
)
def test_two_answers_agree_if_they_are_near_and_share_their_numbers(
    kept: str, fresh: str, cosine: float, agrees: bool
) -> None:
    assert answers_agree(kept, fresh, cosine) is agrees


def test_a_tool_call_has_no_text_to_compare() -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}
    assert answer_text({"choices": [{"message": message}]}) == ""
    assert answer_text(None) == ""

"""What `torpor watch` says of a job's tools."""

from typing import Any

import pytest

from torpor.cli.view.screen import call_words

CALL: dict[str, Any] = {"turn": 1, "call": 0, "name": "web__fetch", "send": 1, "ms": None}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"status": "sent"}, "web.fetch runs"),
        ({"status": "sent", "send": 2}, "web.fetch runs (send 2)"),
        (
            {"status": "returned", "ms": 1_250, "output": "two\nlines"},
            "web.fetch returned after 1.25 s: two lines",
        ),
        ({"status": "returned", "is_error": True, "output": "no"}, "web.fetch failed: no"),
        (
            {"status": "awaiting_approval", "reason": "it writes"},
            "web.fetch waits for approval: it writes; torpor approvals list",
        ),
        (
            {"status": "denied", "reason": "denied", "output": "too dear"},
            "web.fetch denied: too dear",
        ),
        ({"status": "not_run", "reason": "the limit"}, "web.fetch not run: the limit"),
        (
            {"status": "sent", "progress": {"progress": 3, "total": 10, "message": "page 3"}},
            "web.fetch is at 3/10 page 3",
        ),
        (
            {"status": "accepted", "progress": {"progress": None, "total": None, "message": "so"}},
            "web.fetch says so",
        ),
        ({"status": "sent", "name": None}, "call 1.0 runs"),
    ],
)
def test_a_call_is_said_in_words(more: dict[str, Any], said: str) -> None:
    assert call_words(CALL | more) == said

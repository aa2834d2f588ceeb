"""The timeline that `torpor watch` prints at the end."""

from typing import Any

import pytest

from torpor.cli.view.timeline import full_timeline, timeline_lines

DELIVERY: dict[str, Any] = {
    "step": "delivery",
    "at_ms": 4000,
    "duration_ms": 30,
    "host": "hooks.example.com",
    "state": "delivered",
    "try": 1,
    "status": 204,
    "error": None,
    "next_ms": None,
}


class Api:
    """Answers `timelines`, one a call, the last one again and again."""

    def __init__(self, *timelines: dict[str, Any] | None) -> None:
        self._timelines = list(timelines)
        self.calls = 0

    async def call(self, *_: Any, **__: Any) -> Any:
        self.calls += 1
        first = self._timelines[0]
        if len(self._timelines) > 1:
            self._timelines.pop(0)
        return {"timeline": first} if first else {}


def test_every_step_stands_with_its_time_from_the_submit_and_its_length() -> None:
    steps: list[dict[str, Any]] = [
        {"step": "accepted", "at_ms": 1000, "duration_ms": None},
        {"step": "queued", "at_ms": 1000, "duration_ms": 1500},
        {"step": "waking", "phase": "weights", "at_ms": 1200, "duration_ms": 900},
        {
            "step": "attempt",
            "attempt": 2,
            "outcome": "completed",
            "resumed_from": 40,
            "at_ms": 2500,
            "duration_ms": 1250,
        },
        {"step": "tokens", "count": 60, "at_ms": 2600, "duration_ms": 1150},
        {"step": "completed", "at_ms": 3750, "duration_ms": 2750},
        DELIVERY,
    ]

    assert [" ".join(line.split()) for line in timeline_lines(steps)] == [
        "+0.00 s accepted",
        "+0.00 s queued 1.50 s",
        "+0.20 s waking: weights 0.90 s",
        "+1.50 s attempt 2: completed, goes on after 40 tokens 1.25 s",
        "+1.60 s tokens: 60 1.15 s",
        "+2.75 s completed (in all) 2.75 s",
        "+3.00 s webhook to hooks.example.com, try 1: 204 0.03 s",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param(
            {"status": 503, "next_ms": 9000}, "try 1: 503, again in 5 s", id="tried again"
        ),
        pytest.param(
            {"status": None, "error": "no answer in 15 s", "next_ms": 304_000},
            "try 1: no answer in 15 s, again in 5 min",
            id="no answer",
        ),
        pytest.param({"next_ms": 7_204_000}, "again in 2.0 h", id="in hours"),
        pytest.param({"try": 0, "state": "pending"}, "not tried yet", id="not tried"),
        pytest.param({"try": 0, "state": "dropped"}, ": dropped", id="nobody to send to"),
    ],
)
def test_a_delivery_says_what_came_of_it(changes: dict[str, Any], words: str) -> None:
    (line,) = timeline_lines([DELIVERY | changes])

    assert words in line


async def test_a_webhook_that_is_just_going_out_is_waited_for() -> None:
    api = Api({"steps": [], "is_whole": False}, {"steps": [DELIVERY], "is_whole": True})

    assert await full_timeline(api, "job_1") == [DELIVERY]
    assert api.calls == 2


async def test_without_a_timeline_in_the_answer_the_job_is_unchanged() -> None:
    assert await full_timeline(Api(None), "job_1") == []


def test_turns_and_calls_are_lines_of_their_own() -> None:
    steps: list[dict[str, Any]] = [
        {"step": "turn", "turn": 1, "count": 40, "at_ms": 1000, "duration_ms": None},
        {
            "step": "call",
            "name": "web.fetch",
            "outcome": "not_run",
            "sends": 2,
            "at_ms": 1000,
            "duration_ms": 250,
        },
    ]

    turn, call = timeline_lines(steps)

    assert turn.split("s  ")[1] == "turn 1: 40 tokens"
    assert " ".join(call.split()) == "+0.00 s call web.fetch: not run, 2 sends 0.25 s"


def test_a_turn_says_what_of_its_prompt_was_read_and_how_long_that_took() -> None:
    turn: dict[str, Any] = {"step": "turn", "turn": 2, "count": 8, "at_ms": 0, "duration_ms": None}
    read = {"prompt_tokens": 900, "read_tokens": 60, "first_token_ms": 340}
    unknown = dict.fromkeys(read)

    told, untold = timeline_lines([turn | read, turn | unknown])

    assert told.split("s  ")[1] == "turn 2: 8 tokens, read 60 of 900, first after 0.34 s"
    assert untold.split("s  ")[1] == "turn 2: 8 tokens"

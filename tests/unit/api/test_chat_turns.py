"""A chat completion of a model with tools: one message, whatever the turns behind it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest

from api.view.chunk import Chunker, Restarted
from api.view.outcome import answer_of, failure_of, still_running
from eventing.job.job import Job, JobError, JobId, JobRequest, JobState
from eventing.job.plan import TOOLS_STEP, Plan, PlannedStep
from eventing.job.stream import EntryKind, StreamEntry
from eventing.job.tools.call import CallState, ToolCall, Turn

OWN = {"type": "function", "function": {"name": "ask"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "web__fetch", "arguments": "{}"}}
ASKED = {"id": "c2", "type": "function", "function": {"name": "ask", "arguments": '{"q":1}'}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}


def job(*, calls: Sequence[dict[str, Any]] = (), ends: int = 0) -> Job:
    """A job that looked something up and answered, in its last turn with these calls of its caller's functions."""
    made = ToolCall(
        turn=1,
        place=0,
        call_id="c1",
        name="web__fetch",
        arguments="{}",
        state=CallState.RETURNED,
        server="web",
        tool="fetch",
        sends=1,
    )
    said = {"role": "assistant", "content": "I look.", "reasoning": "Hm.", "tool_calls": [CALL]}
    last = {"role": "assistant", "content": "So it is.", "reasoning": "Well."}
    body = {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {**last, **({"tool_calls": [*calls]} if calls else {})},
                "finish_reason": "tool_calls" if calls else "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
    }
    return Job(
        id=JobId("job_" + "a" * 24),
        state=JobState.COMPLETED,
        request=JobRequest(
            url="/v1/chat/completions", body={"model": "m", "messages": [], "tools": [OWN]}
        ),
        plan=Plan(steps=(PlannedStep(name=TOOLS_STEP),)),
        result=body,
        usage=USAGE,
        token_count=12,
        turns=(Turn(number=1, attempt=1, begin=0, end=4, message=said, calls=(made,), ends=ends),),
    )


def tokens(index: int, *choices: dict[str, Any]) -> StreamEntry:
    delta = orjson.dumps([{"index": 0, **each} for each in choices]).decode()
    return StreamEntry("1-0", EntryKind.TOKENS, 1, index, (1, 2), delta)


FIRST = (
    tokens(0, {"delta": {"reasoning_content": "Hm."}}, {"delta": {"content": "I look."}}),
    tokens(2, {"delta": {"tool_calls": [{"index": 0, **CALL}]}, "finish_reason": "tool_calls"}),
    StreamEntry("2-0", EntryKind.TURN, 1, 4, turn=1),
    StreamEntry("3-0", EntryKind.CALL, 0, turn=1, call_state=CallState.RETURNED),
    StreamEntry("4-0", EntryKind.ATTEMPT, 2, 4),
)
LAST = (
    tokens(4, {"delta": {"reasoning_content": "Well."}}, {"delta": {"content": "So it "}}),
    tokens(6, {"delta": {"content": "is."}, "finish_reason": "stop"}),
)


def streamed(job: Job, entries: Iterable[StreamEntry]) -> list[dict[str, Any]]:
    chunker = Chunker(job)
    frames = [frame for entry in entries for frame in chunker.chunks(entry)]
    return [orjson.loads(frame) for frame in (*frames, *chunker.unshown(job))]


def joined(chunks: Iterable[dict[str, Any]], name: str) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["delta"].get(name) or "" for choice in choices)


def test_a_stream_has_the_texts_of_all_turns_and_ends_once() -> None:
    chunks = streamed(job(), (*FIRST, *LAST))
    whole = answer_of(job())["choices"][0]["message"]

    assert joined(chunks, "content") == whole["content"] == "I look.\n\nSo it is."
    assert joined(chunks, "reasoning") == whole["reasoning"] == "Hm.\n\nWell."
    assert not any("tool_calls" in each["choices"][0]["delta"] for each in chunks)
    assert "tool_calls" not in whole
    reasons = [each["choices"][0]["finish_reason"] for each in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    called = chunks[-1]["torpor"]["tool_calls"]
    assert [(each["server"], each["tool"], each["state"]) for each in called] == [
        ("web", "fetch", "returned")
    ]


def test_usage_is_the_sum_of_the_turns() -> None:
    assert answer_of(job())["usage"] == USAGE


def test_a_restart_of_a_later_turn_ends_a_stream_only_where_that_turn_was_shown() -> None:
    again = StreamEntry("5-0", EntryKind.ATTEMPT, 3, 4, is_restart=True)

    chunks = streamed(job(), (*FIRST, again, *LAST))
    assert joined(chunks, "content") == "I look.\n\nSo it is."

    with pytest.raises(Restarted):
        streamed(job(), (*FIRST, LAST[0], again, *LAST))


def test_calls_of_the_callers_own_functions_are_shown_and_numbered_anew() -> None:
    ended = job(calls=[CALL, ASKED])
    calls = [{"index": number, **each} for number, each in enumerate((CALL, ASKED))]
    last = tokens(4, {"delta": {"tool_calls": calls}, "finish_reason": "tool_calls"})

    chunks = streamed(ended, (*FIRST, last))

    shown = [each["choices"][0]["delta"].get("tool_calls") for each in chunks]
    assert [each for each in shown if each] == [[{"index": 0, **ASKED}]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert answer_of(ended)["choices"][0]["message"]["tool_calls"] == [ASKED]


def test_a_turn_that_ends_its_job_is_not_told_twice() -> None:
    ended = replace(job(ends=1), result=None)
    said = ended.turns[0].message
    ended = replace(ended, result={"choices": [{"index": 0, "message": dict(said)}]})

    assert answer_of(ended)["choices"][0]["message"]["content"] == "I look."


def test_a_client_is_told_not_to_ask_again_for_what_has_called_a_tool() -> None:
    failed = replace(
        job(), state=JobState.FAILED, result=None, error=JobError(code="lost", message="lost")
    )
    failure, plain = failure_of(failed), failure_of(replace(failed, turns=()))

    assert failure is not None
    assert plain is not None
    assert (failure.headers, plain.headers) == ({"x-should-retry": "false"}, {})
    assert still_running(failed).headers == {"x-should-retry": "false"}
    assert still_running(replace(failed, plan=None)).headers == {}


def test_a_chat_whose_call_needs_an_approval_is_refused_and_not_broken() -> None:
    error = JobError(code="approval_required", message="the call of mail__send needs an approval")
    refusal = failure_of(replace(job(), state=JobState.FAILED, result=None, error=error))

    assert refusal is not None
    assert (refusal.status, refusal.code) == (400, "approval_required")

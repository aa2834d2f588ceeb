"""Turns and tool calls of a job as its caller sees them."""

from dataclasses import replace

import pytest

from api.view.job import job_view
from api.view.outlook import outlook_view, tool_outlook
from api.view.response import output_items
from api.view.timeline import timeline
from eventing.cloudevent.result_event import tools_used
from eventing.job.job import AttemptRecord, Job, JobId, JobRequest, JobState
from eventing.job.plan import TOOLS_STEP, Plan, PlannedStep
from eventing.job.tools.call import CallState, EffectClass, ToolCall, Turn

CALL = ToolCall(
    turn=1,
    place=0,
    call_id="c1",
    name="web__fetch",
    arguments='{"url": "' + "a" * 2_000 + '"}',
    state=CallState.RETURNED,
    server="web",
    tool="fetch",
    effect=EffectClass.READ,
    sends=2,
    queued_ms=2_000,
    sent_ms=2_500,
    ended_ms=3_000,
    output="r" * 2_000,
    output_bytes=90_000,
)
MAIL = replace(
    CALL,
    place=1,
    name="mail__send",
    server="mail",
    tool="send",
    effect=EffectClass.ONCE,
    state=CallState.AWAITING_APPROVAL,
    sends=0,
    sent_ms=0,
    ended_ms=0,
    output="",
    approval_id="mcpr_1",
    expires_ms=9_000,
)
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 0},
    "prefix": {"tokens": 15, "digest": "d"},
    "times": {"first_token_ms": 340, "start_ms": 9_000},
}
TURN = Turn(
    number=1,
    attempt=2,
    begin=0,
    end=5,
    message={"role": "assistant", "content": None},
    usage=USAGE,
    committed_ms=2_000,
    calls=(CALL, MAIL),
)
WAITING = Job(
    id=JobId("job_" + "a" * 24),
    state=JobState.IN_PROGRESS,
    request=JobRequest(url="/v1/chat/completions", body={"model": "m", "messages": []}),
    plan=Plan(steps=(PlannedStep(name=TOOLS_STEP),)),
    attempt=2,
    token_count=5,
    created_ms=1_000,
    history=(
        AttemptRecord(attempt=1, owner="p", started_ms=1_100, ended_ms=1_200, outcome="lost"),
        AttemptRecord(attempt=2, owner="p", started_ms=1_300, ended_ms=1_900, outcome="turn"),
    ),
    turns=(TURN,),
    turn_begin=5,
)
DONE = replace(
    WAITING,
    state=JobState.COMPLETED,
    attempt=3,
    token_count=12,
    finished_ms=5_000,
    history=(
        *WAITING.history,
        AttemptRecord(attempt=3, owner="p", started_ms=3_100, ended_ms=4_900, outcome="completed"),
    ),
    turns=(
        replace(TURN, stopped_by="calls", calls=(CALL, replace(MAIL, state=CallState.UNKNOWN))),
    ),
    result={"usage": {"prefix": {"tokens": 27, "digest": "e", "kept": True}}},
    usage={
        "prompt_tokens": 30,
        "completion_tokens": 12,
        "total_tokens": 42,
        "prompt_tokens_details": {"cached_tokens": 16},
        "extra": [
            {
                "kind": "turn",
                "model": "m",
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 0},
            }
        ],
    },
)


def test_a_turn_says_what_it_called_and_what_the_job_waits_for() -> None:
    view = job_view(WAITING)

    assert view["phase"] == "approval"
    (turn,) = view["turns"]
    assert (turn["turn"], turn["attempt"], turn["tokens"]) == (1, 2, 5)
    assert (turn["started_ms"], turn["ended_ms"], turn["cached_tokens"]) == (1_300, 1_900, 0)
    assert turn["prefix_kept"] is None
    assert (turn["read_tokens"], turn["first_token_ms"]) == (10, 340)
    assert not {"prefix", "times"} & (turn["usage"] or {}).keys()
    fetch, mail = turn["calls"]
    assert (fetch["state"], fetch["sends"], fetch["effect"]) == ("returned", 2, "read")
    assert (len(fetch["arguments"]), len(fetch["output"] or "")) == (1_000, 1_000)
    assert fetch["output_bytes"] == 90_000
    assert (mail["approval_id"], mail["expires_ms"], mail["output"]) == ("mcpr_1", 9_000, None)


def test_the_wait_between_two_turns_says_for_what() -> None:
    outlook = tool_outlook(WAITING)

    assert outlook is not None
    assert outlook_view(outlook) == {
        "phase": "approval",
        "phase_since_ms": 2_000,
        "reason": "a decision about mail.send",
    }
    assert tool_outlook(DONE) is None


def test_the_last_answer_is_a_turn_with_the_usage_that_is_left() -> None:
    view = job_view(DONE)

    assert "phase" not in view
    assert view["stopped_by"] == "calls"
    first, last = view["turns"]
    assert (last["turn"], last["attempt"], last["tokens"], last["calls"]) == (2, 3, 7, [])
    assert last["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 7,
        "total_tokens": 27,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    assert (last["cached_tokens"], last["prefix_kept"]) == (16, True)
    assert (last["read_tokens"], last["first_token_ms"]) == (4, None)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert (first["usage"] or {})[name] + (last["usage"] or {})[name] == DONE.usage[name]  # type: ignore[index]


def test_a_job_without_tools_has_no_turns() -> None:
    assert "turns" not in job_view(replace(DONE, plan=None, turns=(), turn_begin=0))
    assert "turns" not in job_view(DONE, with_turns=False)


def test_no_time_of_tokens_passes_while_a_person_is_awaited() -> None:
    shown = timeline(replace(WAITING, first_token_ms=1_400), (), (), 99_000)["steps"]
    assert [each["duration_ms"] for each in shown if each["step"] == "tokens"] == [500]


def test_a_timeline_has_turns_and_calls() -> None:
    steps = timeline(DONE, (), (), 9_000)["steps"]

    shown = [(each["step"], each["at_ms"]) for each in steps if each["step"] in ("turn", "call")]
    ended = DONE.history[-1].ended_ms
    assert shown == [("turn", 2_000), ("call", 2_000), ("call", 2_000), ("turn", ended)]
    turns = [each for each in steps if each["step"] == "turn"]
    assert [(each["prompt_tokens"], each["read_tokens"]) for each in turns] == [(10, 10), (20, 4)]
    assert [each["first_token_ms"] for each in turns] == [340, None]
    call = next(each for each in steps if each["step"] == "call")
    assert (call["name"], call["outcome"], call["duration_ms"]) == ("web.fetch", "returned", 1_000)


def test_a_result_event_counts_calls_that_may_have_happened() -> None:
    used = tools_used(DONE)

    assert (used["turns"], used["stopped_by"], used["calls_in_doubt"]) == (1, "calls", 1)
    assert [each["ms"] for each in used["calls"]] == [500, None]
    assert not any("arguments" in each or "output" in each for each in used["calls"])


def test_a_turn_that_an_earlier_job_left_shows_what_is_done_in_this_one() -> None:
    done = replace(CALL, carried=1, queued_ms=100, sent_ms=200, ended_ms=300)
    sent = replace(CALL, place=1, queued_ms=500, sent_ms=1_200, ended_ms=1_250)
    left = replace(TURN, attempt=0, begin=0, end=0, usage={}, carried=1, committed_ms=50)
    job = replace(DONE, turns=(replace(left, calls=(done, sent)),), turn_begin=0)

    first, last = job_view(job)["turns"]
    steps = timeline(job, (), (), 9_000)["steps"]

    assert (first["is_carried"], first["tokens"], first["started_ms"]) == (True, 0, None)
    assert (last["is_carried"], last["tokens"]) == (False, 12)
    shown = [(each["step"], each["at_ms"]) for each in steps if each["step"] in ("turn", "call")]
    assert shown == [("call", job.created_ms), ("turn", job.history[-1].ended_ms)]
    assert [each["place"] for each in tools_used(job)["calls"]] == [1]


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
def test_no_call_of_a_job_that_was_cancelled_or_failed_waits_or_runs(state: JobState) -> None:
    open_calls = [
        (CallState.PENDING, 0),
        (CallState.PENDING, 1),
        (CallState.SENT, 1),
        (CallState.ACCEPTED, 1),
        (CallState.AWAITING_APPROVAL, 0),
        (CallState.AWAITING_INPUT, 0),
        (CallState.IN_DOUBT, 1),
        (CallState.RETURNED, 1),
        (CallState.DENIED, 0),
    ]
    calls = tuple(
        replace(CALL, place=place, state=each, sends=sends, output="", ended_ms=0)
        for place, (each, sends) in enumerate(open_calls)
    )
    plan = Plan(steps=(PlannedStep(name=TOOLS_STEP),))
    request = JobRequest(url="/v1/chat/completions", body={"model": "m"})
    turn = replace(TURN, calls=calls)
    ended = Job(id=JobId("job_1"), state=state, request=request, plan=plan, turns=(turn,))
    told = [
        *("not_run", "unknown", "unknown", "unknown", "not_run", "not_run", "unknown"),
        *("returned", "denied"),
    ]

    (view,) = job_view(ended)["turns"]
    assert [each["state"] for each in view["calls"]] == told
    assert "may have happened" in str(view["calls"][2]["reason"])
    assert "before it was sent" in str(view["calls"][0]["reason"])
    steps = timeline(ended, (), (), 9_000)["steps"]
    outcomes = [each["outcome"] for each in steps if each["step"] == "call"]
    assert outcomes == told
    used = tools_used(ended)
    assert ([each["state"] for each in used["calls"]], used["calls_in_doubt"]) == (told, 4)
    items = [each for each in output_items(ended) if each["type"] == "mcp_call"]
    assert [each["status"] for each in items] == [*["incomplete"] * 7, "completed", "failed"]
    assert "may have happened" in items[2]["error"]["message"]
    running = replace(ended, state=JobState.IN_PROGRESS)
    assert [each.state for each in running.told_turns[0].calls] == [each for each, _ in open_calls]

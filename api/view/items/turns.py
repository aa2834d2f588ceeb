"""The turns of a job and the tool calls in them, as callers see them. Pure.

Called by `api.view.job` and `api.view.timeline`. Long arguments and results are cut: the whole arguments are in the
token stream, and the whole result was for the model.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from typing_extensions import TypedDict

from api.http.described import described
from eventing.job.call.usage import TIMES, own_usage, times_of
from eventing.job.job import AttemptRecord, Job
from eventing.job.plan import TOOLS_STEP
from eventing.job.tools.call import CallState, EffectClass, ToolCall, Turn
from eventing.job.tools.progress import progress_of

_SHOWN_CHARS: Final = 1_000
_PREFIX: Final = "prefix"
_MEASURED: Final = (_PREFIX, TIMES)
"""Of a turn's usage, as the predictor noted it."""


class ProgressView(TypedDict):
    """What a running call says of how far it is."""

    progress: float | None
    total: float | None
    message: str | None
    at_ms: int


@described
class CallView(TypedDict):
    """A call of a tool."""

    place: int
    """Its place in its turn"""
    name: str
    """The function as the model called it"""
    server: str | None
    """The tool's server; null for a function of yours"""
    tool: str | None
    state: CallState
    effect: EffectClass | None
    """What a second send can do"""
    sends: int
    """How often it may have reached the tool"""
    queued_ms: int | None
    sent_ms: int | None
    """The newest send"""
    ended_ms: int | None
    arguments: str
    """As the model wrote them, the first thousand characters"""
    progress: ProgressView | None
    """What it last said of how far it is"""
    output: str | None
    """What the model was told, the first thousand characters"""
    output_bytes: int
    """Of the whole result"""
    is_error: bool
    """The tool said that it failed"""
    reason: str | None
    """Why it waits, was not run, was denied, or is in doubt"""
    approval_id: str | None
    """Of the decision that was asked for"""
    approver: str | None
    """Who decided"""
    expires_ms: int | None
    """When a decision comes too late"""


@described
class UnusedResultView(TypedDict):
    """A result of a call that came too late: after another send, a decision, or the end. It was not used."""

    turn: int
    place: int
    send: int
    """The number of the lease that it came under"""
    state: str
    """What it would have made of the call"""
    output: str
    """The first thousand bytes"""
    at_ms: int


@described
class TurnView(TypedDict):
    """One answer of the model: it asked for tools, or it is the last."""

    turn: int
    attempt: int
    """The attempt that made it"""
    started_ms: int | None
    ended_ms: int | None
    """When it was whole"""
    tokens: int
    usage: Mapping[str, Any] | None
    """Of this turn alone; null until it is known"""
    cached_tokens: int | None
    """Tokens of its prompt that the engine had from before; null where it does not say"""
    read_tokens: int | None
    """Tokens of its prompt that the engine had to read; null where it does not say"""
    first_token_ms: int | None
    """From the start of its last attempt to the first token: what reading the prompt took; null where not measured"""
    prefix_kept: bool | None
    """Its prompt began with the tokens of the turn before, prompt and answer; null where that is not known"""
    is_carried: bool
    """An earlier job left it, and shows its text: its calls go on in this one"""
    calls: list[CallView]


def unused_result_views(job: Job) -> list[UnusedResultView]:
    """The results that came too late, as far as they are noted."""
    return [
        {
            "turn": each["turn"],
            "place": each["place"],
            "send": each["send"],
            "state": each["state"],
            "output": each["output"],
            "at_ms": each["at_ms"],
        }
        for each in job.late_results
    ]


def turn_views(job: Job) -> list[TurnView] | None:
    """The turns of a job with tools, the present one too; None for one without."""
    if not job.turns and (job.plan is None or job.plan.step(TOOLS_STEP) is None):
        return None
    attempts = {record.attempt: record for record in job.history}
    views = [_turn_view(turn, attempts.get(turn.attempt)) for turn in job.told_turns]
    before = job.turns[-1].attempt if job.turns else 0
    if (last := job.history[-1] if job.history else None) and last.attempt > before:
        views.append(_last_view(job, last))
    return views


def _turn_view(turn: Turn, made: AttemptRecord | None) -> TurnView:
    return {
        "turn": turn.number,
        "attempt": turn.attempt,
        "started_ms": (made and made.started_ms) or None,
        "ended_ms": (made and made.ended_ms) or None,
        "tokens": turn.end - turn.begin,
        "usage": {n: each for n, each in turn.usage.items() if n not in _MEASURED} or None,
        "cached_tokens": _cached(turn.usage),
        "read_tokens": _read(turn.usage),
        "first_token_ms": _first_token_ms(turn.usage),
        "prefix_kept": _kept(turn.usage),
        "is_carried": bool(turn.carried),
        "calls": [_call_view(call) for call in turn.calls],
    }


def _last_view(job: Job, made: AttemptRecord) -> TurnView:
    """The answer that is made now, or was the job's end; its usage is what is left of the job's."""
    usage = own_usage(job.usage) if job.usage else None
    return {
        "turn": len(job.turns) + 1,
        "attempt": made.attempt,
        "started_ms": made.started_ms,
        "ended_ms": made.ended_ms or None,
        "tokens": job.token_count - job.turn_begin,
        "usage": usage,
        "cached_tokens": _cached(usage or {}),
        "read_tokens": _read(usage or {}),
        "first_token_ms": _first_token_ms((job.result or {}).get("usage")),
        "prefix_kept": _kept((job.result or {}).get("usage")),
        "is_carried": False,
        "calls": [],
    }


def _cached(usage: Mapping[str, Any]) -> int | None:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return cached if isinstance(cached, int) else None


def _read(usage: Mapping[str, Any]) -> int | None:
    prompt, cached = usage.get("prompt_tokens"), _cached(usage)
    return max(0, prompt - cached) if isinstance(prompt, int) and cached is not None else None


def _first_token_ms(usage: Any) -> int | None:
    times = times_of(usage) if isinstance(usage, Mapping) else None
    return times[0] if times else None


def _kept(usage: Any) -> bool | None:
    prefix = usage.get(_PREFIX) if isinstance(usage, Mapping) else None
    kept = prefix.get("kept") if isinstance(prefix, Mapping) else None
    return kept if isinstance(kept, bool) else None


def _call_view(call: ToolCall) -> CallView:
    return {
        "place": call.place,
        "name": call.name,
        "server": call.server or None,
        "tool": call.tool or None,
        "state": call.state,
        "effect": call.effect if call.server else None,
        "sends": call.sends,
        "queued_ms": call.queued_ms or None,
        "sent_ms": call.sent_ms or None,
        "ended_ms": call.ended_ms or None,
        "arguments": call.arguments[:_SHOWN_CHARS],
        "progress": _progress(call),
        "output": call.output[:_SHOWN_CHARS] if call.state.is_final else None,
        "output_bytes": call.output_bytes,
        "is_error": bool(call.is_error),
        "reason": call.reason or None,
        "approval_id": call.approval_id or None,
        "approver": call.approver or None,
        "expires_ms": call.expires_ms or None,
    }


def _progress(call: ToolCall) -> ProgressView | None:
    said = progress_of(call.progress)
    if said is None:
        return None
    return {
        "progress": said["progress"],
        "total": said["total"],
        "message": said["message"],
        "at_ms": call.progress_ms,
    }


def turn_steps(job: Job) -> Iterator[dict[str, Any]]:
    """The turns and calls as steps of a timeline, the last answer too once the job has ended; a running call has no
    `duration_ms` yet.
    """
    views = {view["turn"]: view for view in turn_views(job) or ()}
    for turn in job.told_turns:
        if not turn.carried:
            yield _turn_step(views[turn.number], turn.committed_ms)
        for call in turn.calls:
            if turn.carried and call.carried:
                continue  # it ran in the job that left it
            begun_ms = max(job.created_ms, call.queued_ms or turn.committed_ms)
            yield {
                "step": "call",
                "at_ms": begun_ms,
                "duration_ms": max(0, call.ended_ms - begun_ms) if call.ended_ms else None,
                "turn": turn.number,
                "place": call.place,
                "name": f"{call.server}.{call.tool}" if call.server else call.name,
                "outcome": str(call.state),
                "sends": call.sends,
                "arguments": call.arguments[:_SHOWN_CHARS],
                "output": call.output[:_SHOWN_CHARS] if call.state.is_final else None,
            }
    last = views.get(len(job.turns) + 1)
    if job.turns and last and last["ended_ms"]:
        yield _turn_step(last, last["ended_ms"])


def _turn_step(turn: TurnView, at_ms: int) -> dict[str, Any]:
    step: dict[str, Any] = {"step": "turn", "at_ms": at_ms, "duration_ms": None}
    usage = turn["usage"] or {}
    return step | {
        "turn": turn["turn"],
        "count": turn["tokens"],
        "prompt_tokens": usage.get("prompt_tokens"),
        "read_tokens": turn["read_tokens"],
        "first_token_ms": turn["first_token_ms"],
    }

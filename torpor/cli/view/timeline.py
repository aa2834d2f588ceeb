"""A job's timeline as lines for a terminal.

Called by `watch`. Pure but for the api call; must not know how a screen is drawn.
"""

import asyncio
from typing import Any, Final, Protocol

_PATIENCE_S: Final = 3.0
_PAUSE_S: Final = 0.1
_OUTCOMES: Final = ("completed", "failed", "cancelled", "incomplete")


class _Caller(Protocol):
    async def call(
        self, method: str, path: str, *, body: Any = None, query: dict[str, str] | None = None
    ) -> Any: ...


async def full_timeline(api: _Caller, job_id: str) -> list[dict[str, Any]]:
    """The steps of an ended job. Webhooks are sent just after the end, so they are waited for a moment; a failing
    one is retried for days.
    """
    deadline_s = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        job = await api.call("GET", f"/v1/jobs/{job_id}", query={"include": "timeline"})
        timeline = job.get("timeline") or {
            "steps": [],
            "is_whole": True,
        }  # an older api tells of none
        if timeline["is_whole"] or asyncio.get_running_loop().time() > deadline_s:
            steps: list[dict[str, Any]] = timeline["steps"]
            return steps
        await asyncio.sleep(_PAUSE_S)


def timeline_lines(steps: list[dict[str, Any]]) -> list[str]:
    """One line a step: time since the submit, name, duration."""
    start_ms = steps[0]["at_ms"] if steps else 0
    return [
        f"{(step['at_ms'] - start_ms) / 1000:+8.2f} s  {_words(step):<44} {_long(step)}".rstrip()
        for step in steps
    ]


def _long(step: dict[str, Any]) -> str:
    took_ms = step["duration_ms"]
    return "" if took_ms is None else f"{took_ms / 1000:8.2f} s"


def _words(step: dict[str, Any]) -> str:
    match step["step"]:
        case "cache":
            return " ".join(["cache:", str(step["outcome"]), *filter(None, [step.get("kind")])])
        case "waking":
            return f"waking: {step['phase']}"
        case "step":
            return f"step {step['name']}: {step['outcome']}"
        case "attempt":
            since = f", goes on after {step['resumed_from']} tokens" if step["resumed_from"] else ""
            return f"attempt {step['attempt']}: {step['outcome'] or 'running'}{since}"
        case "tokens":
            return f"tokens: {step['count']}"
        case "turn":
            return f"turn {step['turn']}: {step['count']} tokens{_reading(step)}"
        case "call":
            again = f", {step['sends']} sends" if step["sends"] > 1 else ""
            return f"call {step['name']}: {step['outcome'].replace('_', ' ')}{again}"
        case "delivery":
            return _delivery(step)
        case name:
            return f"{name} (in all)" if name in _OUTCOMES else str(name)


def _reading(step: dict[str, Any]) -> str:
    """What of the turn's prompt was read, and until when its first token came."""
    read, first_ms = step.get("read_tokens"), step.get("first_token_ms")
    known = "" if read is None else f", read {read} of {step['prompt_tokens']}"
    return known if first_ms is None else f"{known}, first after {first_ms / 1000:.2f} s"


def _delivery(step: dict[str, Any]) -> str:
    where = f"webhook to {step['host']}"
    if not step["try"]:
        return f"{where}: {step['state'] if step['state'] != 'pending' else 'not tried yet'}"
    said = step["status"] or step["error"]
    again = f", again in {_span(step)}" if step["next_ms"] else ""
    return f"{where}, try {step['try']}: {said}{again}"


def _span(step: dict[str, Any]) -> str:
    seconds = (step["next_ms"] - step["at_ms"]) / 1000
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

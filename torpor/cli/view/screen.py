"""The live view of a job on a terminal: states, starting predictors, tokens, end.

Called by `submit --wait`, `watch`, `chat` and `demo`. Output to be piped (answers, JSON) goes to standard output,
everything else to standard error.
"""

import json
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from rich.status import Status
from rich.text import Text

from torpor.cli.view.table import state
from torpor.cli.view.terminal import Terminal
from torpor.client import JobEvent

stdout = Terminal()
stderr = Terminal(stderr=True)
_LINE_CHARS: Final = 100
_ENDED: Final = ("completed", "failed", "cancelled")


def step(text: str) -> None:
    """Print a line about the current step."""
    stderr.print(Text.assemble(("·", "dim"), " ", text))


def print_json(value: Any, *, indent: int | None = None) -> None:
    """JSON on standard output, on one line unless it is for people."""
    stdout.print(json.dumps(value, ensure_ascii=False, indent=indent))


def call_words(data: dict[str, Any]) -> str:
    """What became of a call of a tool."""
    name = _tool_name(data)
    reason = f": {_short(data['reason'])}" if data.get("reason") else ""
    match data["status"]:
        case "sent" | "accepted" if data.get("progress"):
            return f"{name} {_progress_words(data['progress'])}"
        case "sent":
            again = f" (send {data['send']})" if (data.get("send") or 1) > 1 else ""
            return f"{name} runs{again}"
        case "returned":
            took = f" after {data['ms'] / 1000:.2f} s" if data.get("ms") else ""
            failed = "failed" if data.get("is_error") else "returned"
            return f"{name} {failed}{took}: {_short(data.get('output') or '')}".rstrip(": ")
        case "denied" if data.get("output"):
            return f"{name} denied: {_short(data['output'])}"
        case "awaiting_approval" | "awaiting_input" | "in_doubt":
            waits = _WAITS[data["status"]]
            return f"{name} {waits}{reason}; torpor approvals list"
        case status:
            return f"{name} {str(status or 'changed').replace('_', ' ')}{reason}"


def _progress_words(said: dict[str, Any]) -> str:
    """How far a call says it is."""
    done, total, message = said["progress"], said["total"], said["message"]
    of = f"/{total:g}" if total is not None else ""
    return " ".join(filter(None, [f"is at {done:g}{of}" if done is not None else "says", message]))


_WAITS: Final = {
    "awaiting_approval": "waits for approval",
    "awaiting_input": "asks its user",
    "in_doubt": "may have happened: say what is to be done",
}


def _tool_name(call: dict[str, Any]) -> str:
    """A tool as a person reads it."""
    if call.get("server"):
        return f"{call['server']}.{call['tool']}"
    plain = f"call {call.get('turn', '')}.{call.get('call', call.get('place', ''))}"
    return str(call.get("name") or plain).replace("__", ".", 1)


def _short(text: str) -> str:
    """The start of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _LINE_CHARS else f"{line[:_LINE_CHARS]} …"


class JobScreen:
    """Draws one job from its events. `result` has the last event once it has come."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}
        self._started = time.monotonic()
        self._status: Status | None = None
        self._waking = ""
        self._is_mid_line = False
        self._held: list[Text] = []

    async def follow(self, events: AsyncIterator[JobEvent]) -> dict[str, Any]:
        """Draw until the end; gives the ended job."""
        try:
            async for event in events:
                self._draw(event.name, event.data)
        finally:
            self._quiet()
        return self.result

    def _draw(self, name: str, data: Any) -> None:
        match name:
            case "state" if data["state"] in _ENDED:
                pass  # one that had ended before: its story comes first, the result says the end
            case "state":
                self.line(data["state"])
            case "waking":
                self._draw_waking(data)
            case "step" if data["status"] != "in_progress":
                took = f" after {data['ms']} ms" if data.get("ms") else ""
                self.line(f"step {data['name']}: {data['status']}{took}")
            case "attempt":
                again = " (starts over)" if data.get("is_restart") else ""
                since = f", goes on after {data['index']} tokens" if data.get("index") else ""
                self.line(f"in_progress, attempt {data['attempt']}{since}{again}")
            case "turn" | "call":
                self._draw_tools(data)
            case "tokens":
                self._quiet()
                stdout.print(text_of(data["delta"]), end="")
                self._is_mid_line = True
            case "gap":
                self.line("tokens are missing here; the result has the whole answer")
            case "result":
                self.result = data
                self._draw_result(data)

    def _draw_tools(self, data: dict[str, Any]) -> None:
        """A turn with its calls, or what became of one."""
        if "calls" not in data:
            self.line(call_words(data))
            return
        for call in data["calls"]:
            name = _tool_name(call)
            self.line(f"turn {data['turn']}: calls {name} {_short(call['arguments'])}".rstrip())
            if call.get("state") == "awaiting_approval":
                self.line(f"{name} waits for approval: torpor approvals list")

    def _draw_waking(self, data: dict[str, Any]) -> None:
        text = waking_words(data)
        if text and text != self._waking:
            self._waking = text
            self.line(f"queued: {text}")
            self._spin(text)

    def _draw_result(self, job: dict[str, Any]) -> None:
        usage = job.get("usage") or {}
        timings = job.get("timings") or {}
        facts = [f"{usage['completion_tokens']} tokens"] if "completion_tokens" in usage else []
        facts += [f"{name.removesuffix('_ms')} {ms / 1000:.2f} s" for name, ms in timings.items()]
        for line in attempt_lines(job):
            self.line(line)
        reason = f": {job['error']['message']}" if job.get("error") else ""
        more = f" ({', '.join(facts)})" if facts else ""
        self._print(Text.assemble(state(job["state"]), reason, more))

    def line(self, text: str) -> None:
        """A line of progress with the time since the start."""
        self._print(Text(text))

    def remark(self, text: Text) -> None:
        """A line that may wait until the answer's current line has ended."""
        if self._is_mid_line:
            self._held.append(text)
        else:
            self._quiet()
            stderr.print(text)

    def _print(self, text: Text) -> None:
        self._quiet()
        if self._is_mid_line:
            stdout.print()
            self._is_mid_line = False
        for held in self._held:
            stderr.print(held)
        self._held = []
        since = f"{time.monotonic() - self._started:6.2f} s"
        stderr.print(Text.assemble((since, "dim"), "  ", text))

    def life(self, lines: list[str]) -> None:
        """Print the whole timeline after the end."""
        self._quiet()
        for line in lines:
            stderr.print(line, style="dim")

    def _spin(self, text: str) -> None:
        if stderr.is_terminal:
            self._status = stderr.status(Text(text))
            self._status.start()

    def _quiet(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def waking_words(data: dict[str, Any]) -> str:
    """What a job waits for, in words."""
    words = []
    if (position := data.get("position")) is not None:
        words.append("next in line" if position == 0 else f"{position} ahead")
    if wait := data.get("expected_wait_s"):
        words.append(f"about {wait:.0f} s to wait")
    match data.get("phase"):
        case None:
            pass
        case "asleep":
            words.append("no predictor is running")
        case "failed":
            words.append("no predictor starts")
        case phase:
            words.append(f"a predictor is waking: {phase}")
    if reason := data.get("reason"):
        words.append(str(reason))
    return ", ".join(words)


def attempt_lines(job: dict[str, Any]) -> list[str]:
    """The outcome of each attempt, in words; empty for a job with one attempt."""
    attempts = job.get("attempts") or []
    if len(attempts) < 2:
        return []
    lines = []
    for one in attempts:
        took = f"{(one['ended_ms'] - one['started_ms']) / 1000:.2f} s" if one["ended_ms"] else "?"
        since = f", went on after {one['resumed_from']} tokens" if one["resumed_from"] else ""
        lines.append(f"attempt {one['attempt']}: {one['outcome'] or 'running'}, {took}{since}")
    return lines


def text_of(delta: Any) -> str:
    """The text in a list of OpenAI choice deltas, reasoning included."""
    parts = []
    for choice in delta or []:
        inner = choice.get("delta") or {}
        thought = inner.get("reasoning_content") or inner.get("reasoning")
        parts += [thought, inner.get("content"), choice.get("text")]
    return "".join(part for part in parts if part)

"""How a job looks on a terminal: its states, what wakes for it, its tokens as they come, its end.

Called by `submit --wait`, `watch` and `demo`. Output that is meant to be piped (answers, JSON) goes
to standard output, everything else to standard error.
"""

import time
from collections.abc import AsyncIterator
from typing import Any

from rich.status import Status
from rich.text import Text

from torpor.cli.view.terminal import Terminal

stdout = Terminal()
stderr = Terminal(stderr=True)


def step(text: str) -> None:
    """A line that says what is being done."""
    stderr.print(Text.assemble(("·", "dim"), " ", text))


class JobScreen:
    """Draws one job from its events. `result` holds the last one once it has come."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}
        self._started = time.monotonic()
        self._status: Status | None = None
        self._waking = ""
        self._is_mid_line = False

    async def follow(self, events: AsyncIterator[tuple[str, Any]]) -> dict[str, Any]:
        """Draw until the end; the job as it ended."""
        try:
            async for name, data in events:
                self._draw(name, data)
        finally:
            self._quiet()
        return self.result

    def _draw(self, name: str, data: Any) -> None:
        match name:
            case "state":
                self.line(data["state"])
            case "waking":
                self._draw_waking(data)
            case "attempt":
                again = " (starts over)" if data.get("is_restart") else ""
                since = f", goes on after {data['index']} tokens" if data.get("index") else ""
                self.line(f"in_progress, attempt {data['attempt']}{since}{again}")
            case "tokens":
                self._quiet()
                stdout.print(text_of(data["delta"]), end="")
                self._is_mid_line = True
            case "gap":
                self.line("tokens are missing here; the result has the whole answer")
            case "result":
                self.result = data
                self._draw_result(data)

    def _draw_waking(self, data: dict[str, Any]) -> None:
        words = []
        if (position := data.get("position")) is not None:
            words.append("next in line" if position == 0 else f"{position} ahead")
        if wait := data.get("expected_wait_s"):
            words.append(f"about {wait:.0f} s to wait")
        match data.get("phase"):
            case None:
                pass
            case "asleep":
                words.append("no predictor is awake")
            case phase:
                words.append(f"a predictor is waking: {phase}")
        text = ", ".join(words)
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
        self.line(
            f"{job['state']}{reason} ({', '.join(facts)})" if facts else f"{job['state']}{reason}"
        )

    def line(self, text: str) -> None:
        """A line of progress with the time since the start."""
        self._quiet()
        if self._is_mid_line:
            stdout.print()
            self._is_mid_line = False
        since = f"{time.monotonic() - self._started:6.2f} s"
        stderr.print(Text.assemble((since, "dim"), "  ", text))

    def life(self, lines: list[str]) -> None:
        """The whole life, once it is over."""
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


def attempt_lines(job: dict[str, Any]) -> list[str]:
    """What became of each attempt, in words; empty for a job whose first one did it."""
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
    """The text in a list of OpenAI choice deltas, thinking included."""
    parts = []
    for choice in delta or []:
        inner = choice.get("delta") or {}
        parts += [inner.get("reasoning_content"), inner.get("content"), choice.get("text")]
    return "".join(part for part in parts if part)

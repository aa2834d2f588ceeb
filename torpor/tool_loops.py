"""What it costs to keep a predictor between the turns of tool loops, and what to let it sleep. Pure.

Called by `torpor plan`, with jobs as the api shows them (`GET /v1/jobs/{id}`): turns, calls and tokens are those that
were measured. Between two turns a predictor does nothing for the job:

    held      the seconds in tools
    asleep    cold start + tokens read again / reading speed; the job waits as long
    expected  held up to H, asleep after it; H = min(2 x median of the tool, cold start + prompt / reading speed)

Tokens that are read again are those of the turn before, prompt and answer: the rest of the next prompt is new to any
engine. A turn in which a person was asked is left out, since no predictor is held for one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson

Shown = Mapping[str, Any]
"""A job as the api shows it."""
_LEAST_READ: Final = 256
"""Tokens of a prompt whose time to the first token is a measure of reading, and not of all else."""


class JobsError(ValueError):
    """The file has no jobs: its text names the line."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The time between two turns: what tools took, the tools' names, and the prompts around it."""

    tool_s: float
    tools: tuple[str, ...]
    again_tokens: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Loops:
    """What jobs measured. `tokens_per_s` is the speed at which prompts were read; None where no turn says it."""

    jobs: int
    turns: int
    prompt_tokens: int
    cached_tokens: int
    gaps: tuple[Gap, ...]
    tools_s: Mapping[str, float]
    """The median of each tool."""
    tokens_per_s: float | None

    @property
    def tool_s(self) -> float:
        return sum(gap.tool_s for gap in self.gaps)


@dataclass(frozen=True, slots=True)
class Between:
    """GPU-seconds between turns, and seconds by which answers come later; of all jobs together."""

    gpu_s: float
    later_s: float


def read_jobs(path: Path) -> list[Shown]:
    """The jobs in a file of JSON lines. Raises `JobsError`."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise JobsError(f"cannot read {path}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            job = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise JobsError(f"{path}:{number}: {error}") from error
        if not isinstance(job, Mapping) or "state" not in job:
            raise JobsError(f"{path}:{number}: no job as GET /v1/jobs/ID shows it")
        found.append(job)
    return found


def measured(jobs: Iterable[Shown]) -> Loops:
    """What the jobs say of themselves; a job without turns counts its tokens alone."""
    count = turns = prompt = cached = 0
    gaps: list[Gap] = []
    took: dict[str, list[float]] = defaultdict(list)
    read_tokens, read_s = 0, 0.0
    for job in jobs:
        usage = job.get("usage") or {}
        prompt += usage.get("prompt_tokens") or 0
        cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        own = job.get("turns") or []
        count, turns = count + bool(own), turns + len(own)
        gaps += _gaps(own)
        for turn in own:
            if (turn.get("read_tokens") or 0) >= _LEAST_READ and turn.get("first_token_ms"):
                read_tokens += turn["read_tokens"]
                read_s += turn["first_token_ms"] / 1000
            for call in turn["calls"]:
                if call["sent_ms"] and call["ended_ms"]:
                    took[_name(call)].append((call["ended_ms"] - call["sent_ms"]) / 1000)
    medians = {name: median(times) for name, times in took.items()}
    speed = read_tokens / read_s if read_s else None
    return Loops(count, turns, prompt, cached, tuple(gaps), medians, speed)


def _gaps(turns: Sequence[Shown]) -> list[Gap]:
    found = []
    for before, after in pairwise(turns):
        calls, usage, following = before["calls"], before["usage"], after["usage"]
        ends = [call["ended_ms"] for call in calls if call["ended_ms"]]
        asked = any(call["approval_id"] for call in calls)
        if asked or not (ends and before["ended_ms"] and usage and following):
            continue
        again = _count(usage, "prompt_tokens") + _count(usage, "completion_tokens")
        names = tuple(_name(call) for call in calls if call["sent_ms"])
        tool_s = max(0.0, (max(ends) - before["ended_ms"]) / 1000)
        prompt = _count(following, "prompt_tokens")
        found.append(Gap(tool_s, names, min(again, prompt), prompt))
    return found


def _count(usage: Shown, name: str) -> int:
    return int(usage.get(name) or 0)


def _name(call: Shown) -> str:
    return f"{call['server']}.{call['tool']}"


def held(loops: Loops) -> Between:
    """The predictor stays up between the turns."""
    return Between(loops.tool_s, 0.0)


def asleep(loops: Loops, cold_start_s: float, tokens_per_s: float) -> Between:
    """The predictor is scaled to zero at once, and wakes for each turn."""
    waking = sum(cold_start_s + gap.again_tokens / tokens_per_s for gap in loops.gaps)
    return Between(waking, waking)


def expected(loops: Loops, cold_start_s: float, tokens_per_s: float) -> Between:
    """The predictor stays up for as long as the tool is expected back (docs/adr/0389)."""
    gpu_s = later_s = 0.0
    for gap in loops.gaps:
        most_s = cold_start_s + gap.prompt_tokens / tokens_per_s
        usual_s = max((loops.tools_s[name] for name in gap.tools), default=most_s)
        hold_s = min(2 * usual_s, most_s)
        gpu_s += min(gap.tool_s, hold_s)
        if gap.tool_s > hold_s:
            waking_s = cold_start_s + gap.again_tokens / tokens_per_s
            gpu_s, later_s = gpu_s + waking_s, later_s + waking_s
    return Between(gpu_s, later_s)


def loop_notes(
    loops: Loops, cold_start_s: float, assumed_tokens_per_s: float, price_per_gpu_hour: float
) -> list[str]:
    """The costs as lines of text; where no turn gives a reading speed, the assumed one counts."""
    speed = loops.tokens_per_s or assumed_tokens_per_s
    source = "measured" if loops.tokens_per_s else "the engine's, as no turn says it"
    share = 100 * loops.cached_tokens / max(loops.prompt_tokens, 1)
    lines = [
        f"cached: {loops.cached_tokens:,} of {loops.prompt_tokens:,} prompt tokens ({share:.1f} %), which would have "
        f"taken {loops.cached_tokens / speed:.1f} s to read at {speed:,.0f} tokens/s ({source})"
    ]
    if not loops.gaps:
        return [*lines, "no job has a turn after tools"]
    again = sum(gap.again_tokens for gap in loops.gaps)
    lines.append(
        f"{loops.jobs:,} jobs with {loops.turns:,} turns, {loops.tool_s:.1f} s in tools; without its predictor "
        f"{again:,} tokens are read again; cold start {cold_start_s:g} s"
    )
    ways = {
        "held through all tools": held(loops),
        "asleep between all turns": asleep(loops, cold_start_s, speed),
        "held as long as a tool is expected": expected(loops, cold_start_s, speed),
    }
    for name, way in ways.items():
        cost = way.gpu_s / 3600 * price_per_gpu_hour
        each = way.later_s / loops.jobs
        lines.append(
            f"{name}: {way.gpu_s:.1f} GPU-seconds between turns, cost {cost:.4f}, a job {each:.1f} s later"
        )
    return lines

"""What bounds a job's tool loop, so that it always ends with an answer or a named reason. Pure.

Called by the step that commits turns, and by what reads limits: plans, the tools file, requests. The least value holds,
of the model's plan, its tenant's and the request's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from eventing.errors import BadRequest
from eventing.job.tools.call import CallState, Turn


class StoppedBy(StrEnum):
    """The limit that ended a tool loop: the model was told, tools were off, and it answered."""

    TURNS = "turns"
    CALLS = "calls"
    TOKENS = "tokens"
    COST = "cost"
    TIME = "time"
    REPEAT = "repeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """The limits of one job's tool loop."""

    max_turns: int = 16
    max_calls: int = 64
    parallel: int = 8  #: calls of one turn at once
    argument_bytes: int = 64 * 1024  #: of one call
    max_tools: int = 128
    definition_bytes: int = 64 * 1024  #: of all definitions together, some 16 thousand tokens
    result_bytes: int = 10 * 1024 * 1024  #: of one result that is read; the rest is not
    shown_bytes: int = 32 * 1024  #: of one result that the model is shown, some 8 thousand tokens
    max_output_tokens: int = 0  #: of all turns; 0 for no limit, here and below
    max_cost: float = 0.0  #: of all turns, by the prices of GPU time and of providers
    tool_ms: int = 0  #: of all calls together; else the job's deadline alone
    approval_ttl_ms: int = 7 * 24 * 3600 * 1000
    repeats_noted: int = 3  #: the equal call at which the model is told
    repeats_stopped: int = 4  #: the equal call at which tools go off

    def capped(self, asked: Mapping[str, Any]) -> "ToolLimits":
        """These limits, lowered by those of `asked` that are less."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in own.keys() & asked.keys():
            if _is_limit(name, asked[name]):
                own[name] = min(own[name], asked[name]) if own[name] else asked[name]
        return ToolLimits(**own)


DEFAULT_LIMITS: Final = ToolLimits()
ASKED: Final = ("max_turns", "max_calls", "max_output_tokens", "max_cost", "tool_ms")
"""Limits that a request can lower, in its `tool_limits`."""
NAMES: Final = tuple(each.name for each in fields(ToolLimits))


def check_limits(given: Any, where: str, names: Sequence[str] = NAMES) -> dict[str, Any]:
    """The limits in an object. Raises `BadRequest` naming what is wrong with it."""
    if not isinstance(given, Mapping):
        raise BadRequest("must be an object", where)
    for name, value in given.items():
        if name not in names:
            raise BadRequest("is not supported", f"{where}.{name:.60}")
        if not _is_limit(name, value):
            least = "a number above 0, and" if name == _COST else "a whole number from 1,"
            words = f"{least} at most {_MOST}"
            raise BadRequest(f"must be {words}", f"{where}.{name}")
    return dict(given)


_COST: Final = "max_cost"
_MOST: Final = 2**53


def _is_limit(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) if name == _COST else isinstance(value, int)
    return is_number and not isinstance(value, bool) and 0 < value <= _MOST


def calls_so_far(turns: Sequence[Turn]) -> int:
    """The calls of all turns that were to run here, and were not refused at once."""
    calls = (call for turn in turns for call in turn.calls)
    return sum(bool(call.server) and call.state is not CallState.NOT_RUN for call in calls)


def output_tokens(turns: Sequence[Turn]) -> int:
    """The tokens of all turns' answers."""
    return sum(answer_tokens(turn.usage) for turn in turns)


def answer_tokens(usage: Mapping[str, Any]) -> int:
    """The tokens of the answer in a usage, which an engine wrote."""
    count = usage.get("completion_tokens")
    return count if isinstance(count, int) and count > 0 else 0


def tool_time_ms(turns: Sequence[Turn]) -> int:
    """The time in tools, of all calls together."""
    calls = (call for turn in turns for call in turn.calls if call.sent_ms)
    return sum(max(0, call.ended_ms - call.sent_ms) for call in calls)


def most_equal(turns: Sequence[Turn], digests: Sequence[str]) -> int:
    """How often the most frequent of `digests` was called, this turn included."""
    counts = Counter(call.digest for turn in turns for call in turn.calls if call.server)
    counts.update(digests)
    return max((counts[each] for each in digests), default=0)

"""What bounds a job's tool loop, so that it always ends with an answer or a named reason. Pure.

Called by the step that commits turns. An operator's or a tenant's value caps the request's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from eventing.job.tools.call import CallState, Turn


class StoppedBy(StrEnum):
    """The limit that ended a tool loop: the model was told, tools were off, and it answered."""

    TURNS = "turns"
    CALLS = "calls"
    TIME = "time"
    REPEAT = "repeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """Of one job."""

    max_turns: int = 16
    max_calls: int = 64
    parallel: int = 8  #: calls of one turn at once
    argument_bytes: int = 64 * 1024  #: of one call
    max_tools: int = 128
    definition_bytes: int = 64 * 1024  #: of all definitions together, some 16 thousand tokens
    result_bytes: int = 10 * 1024 * 1024  #: of one result that is read; the rest is not
    shown_bytes: int = 32 * 1024  #: of one result that the model is shown, some 8 thousand tokens
    tool_ms: int = 0  #: in tools, of all turns; 0 for no limit but the job's deadline
    approval_ttl_ms: int = 7 * 24 * 3600 * 1000
    repeats_noted: int = 3  #: the equal call at which the model is told
    repeats_stopped: int = 4  #: the equal call at which tools go off

    def capped(self, asked: Mapping[str, Any]) -> "ToolLimits":
        """With what a request asks for, where that is less."""
        own = {
            each.name: min(getattr(self, each.name), int(asked[each.name]))
            for each in fields(self)
            if isinstance(asked.get(each.name), int) and asked[each.name] > 0
        }
        return ToolLimits(**{each.name: getattr(self, each.name) for each in fields(self)} | own)


DEFAULT_LIMITS: Final = ToolLimits()


def calls_so_far(turns: Sequence[Turn]) -> int:
    """The calls of all turns that were to run here, and were not refused at once."""
    calls = (call for turn in turns for call in turn.calls)
    return sum(bool(call.server) and call.state is not CallState.NOT_RUN for call in calls)


def most_equal(turns: Sequence[Turn], digests: Sequence[str]) -> int:
    """How often the most frequent of `digests` was called, this turn included."""
    counts = Counter(call.digest for turn in turns for call in turn.calls if call.server)
    counts.update(digests)
    return max((counts[each] for each in digests), default=0)

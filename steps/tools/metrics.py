"""Metrics of tool calls. Labels are those of the configuration: no name that a server or a request chose."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)

CALLS: Final = Counter(
    "torpor_tool_calls_total",
    "Sends of tool calls, by server, effect class and how they ended.",
    ["server", "effect", "outcome"],
)
CALL_SECONDS: Final = Histogram(
    "torpor_tool_call_seconds",
    "How long sends of tool calls took.",
    ["server"],
    buckets=_SECONDS,
)
IN_FLIGHT: Final = Gauge("torpor_tool_calls_in_flight", "Tool calls under way in this process.")
TURNS: Final = Counter(
    "torpor_tool_turns_total",
    "Answers that asked for tools, by the limit that ended the loop with them (empty for none).",
    ["stopped_by"],
)

"""Metrics of tool calls. Labels are those of the configuration: no name that a server or a request chose."""

from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from eventing.job.tools.server import ToolServer
from eventing.telemetry.metric.series import labelled

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
LIST_CHANGES: Final = Counter(
    "torpor_tool_list_changes_total",
    "Uses of a tool server that were refused since its tools are not those that were pinned, by when that was seen: "
    "job, when a job listed them, or call, before a call of one.",
    ["server", "seen"],
)
TOOL_CHANGED: Final = "tool_changed"
"""The reason of such a refusal."""
AT_JOB: Final = "job"
AT_CALL: Final = "call"


def count_change(reason: str, server: str, seen: str) -> None:
    """Count a refusal, if it is since tools changed."""
    if reason.startswith(TOOL_CHANGED):
        labelled(LIST_CHANGES, server, seen).inc()


def begin_series(servers: Iterable[ToolServer]) -> None:
    """Let the series that alerts watch begin at 0: an increase from nothing to 1 is none for Prometheus."""
    for server in servers:
        for seen in (AT_JOB, AT_CALL):
            labelled(LIST_CHANGES, server.label, seen)
        for effect in {server.effect, *server.effects.values()}:
            labelled(CALLS, server.label, effect, "in_doubt")

"""The row of the dashboard about tools that models call. Pure."""

from typing import Final

from knative.monitoring.panel import Panel, Row, percentiles

TOOLS: Final[Row] = (
    "Tools",
    (
        Panel(
            "Sends of calls a second",
            "ops",
            (
                (
                    "sum by (server, outcome) (rate(torpor_tool_calls_total[5m]))",
                    "{{server}} {{outcome}}",
                ),
            ),
            "By the server that was called and how each send ended.",
        ),
        Panel(
            "How long a send takes",
            "s",
            percentiles("torpor_tool_call_seconds", "server"),
            "From the mark «sent» until the result is stored.",
        ),
        Panel(
            "Calls in the queue of a server",
            "short",
            (('max by (queue) (torpor_queue_events{queue=~"tool-.+"})', "{{queue}}"),),
            "That wait, or are under way: what scales a tool that is deployed.",
        ),
        Panel(
            "Calls in doubt an hour, by effect class",
            "short",
            (
                (
                    'sum by (server, effect) (increase(torpor_tool_calls_total{outcome="in_doubt"}[1h]))',
                    "{{server}} {{effect}}",
                ),
            ),
            "Calls that may have happened, and are not sent again before a person has decided.",
        ),
        Panel(
            "Refusals an hour since tools changed",
            "short",
            (
                (
                    "sum by (server, seen) (increase(torpor_tool_list_changes_total[1h]))",
                    "{{server}} at a {{seen}}",
                ),
            ),
            "Of servers whose tools are not those that were pinned; torpor tools list says what changed.",
        ),
        Panel(
            "Turns an hour, by what stopped a loop",
            "short",
            (
                (
                    "sum by (stopped_by) (increase(torpor_tool_turns_total[1h]))",
                    "stopped by {{stopped_by}}",
                ),
            ),
            "Answers that asked for tools; a limit that turned tools off is named.",
        ),
        Panel(
            "Later turns that kept their prefix",
            "percentunit",
            (
                (
                    'sum(rate(torpor_turn_prefixes_total{kept="true"}[15m])) '
                    "/ sum(rate(torpor_turn_prefixes_total[15m]))",
                    "kept",
                ),
            ),
            "Whose prompt began with the tokens of the turn before: an engine that still has them computes none again.",
        ),
    ),
)

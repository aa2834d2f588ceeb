"""The Grafana dashboard: waits at the top, cost at the bottom. Pure.

Called by `python -m knative.monitoring`, by the renderer, and by the test that runs every query on a real
Prometheus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from knative.monitoring import query
from knative.monitoring.query import once, quantile

_WIDTH, _HEIGHT = 8, 7
_IN_A_ROW: Final = 3


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: title, unit as Grafana names it, and (query, legend) pairs."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def _percentiles(name: str, by: str = "model") -> tuple[tuple[str, str], ...]:
    return tuple(
        (quantile(share, name, by), f"{{{{{by}}}}} p{share * 100:g}") for share in (0.5, 0.95, 0.99)
    )


ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "What users wait for",
        (
            Panel("Waiting", "short", ((query.WAITING, "{{model}} {{lane}}"),)),
            Panel("Oldest waiting job", "s", ((query.OLDEST, "{{model}} {{lane}}"),)),
            Panel("Expected wait", "s", ((query.EXPECTED_WAIT, "{{model}} {{lane}}"),)),
            Panel("Queue wait", "s", _percentiles("torpor_queue_wait_seconds")),
            Panel("Time to the first token", "s", _percentiles("torpor_ttft_seconds")),
            Panel("Total time", "s", _percentiles("torpor_job_seconds")),
            Panel(
                "Time per output token",
                "s",
                _percentiles("torpor_job_time_per_output_token_seconds"),
            ),
            Panel(
                "Jobs ended a second",
                "ops",
                (
                    (
                        "sum by (model, state) (rate(torpor_jobs_ended_total[5m]))",
                        "{{model}} {{state}}",
                    ),
                ),
            ),
            Panel(
                "Answers of the api by status",
                "ops",
                (("sum by (status) (rate(torpor_api_requests_total[5m]))", "{{status}}"),),
            ),
        ),
    ),
    (
        "What works on it",
        (
            Panel(
                "Replicas and jobs",
                "short",
                (
                    (query.RUNNING, "{{model}} jobs in flight"),
                    (query.READY, "{{model}} ready"),
                    (query.WAKING, "{{model}} waking"),
                ),
            ),
            Panel(
                "Wake by phase, p95",
                "s",
                ((quantile(0.95, "torpor_wake_seconds", "model, phase", "1h"), "{{phase}}"),),
            ),
            Panel(
                "Tokens a second",
                "ops",
                ((once("torpor_tokens_total", "model, kind", "1m"), "{{model}} {{kind}}"),),
            ),
            Panel(
                "Attempts a second",
                "ops",
                (
                    (
                        "sum by (model, outcome) (rate(torpor_job_attempts_total[5m]))",
                        "{{model}} {{outcome}}",
                    ),
                ),
            ),
            Panel(
                "Retries, lost leases, refused writes an hour",
                "short",
                (
                    (
                        "sum by (model) (increase(torpor_job_retries_total[1h]))",
                        "{{model}} retries",
                    ),
                    ("sum by (model) (increase(torpor_lease_losses_total[1h]))", "{{model}} lost"),
                    (
                        "sum by (model) (increase(torpor_refused_writes_total[1h]))",
                        "{{model}} refused",
                    ),
                ),
            ),
            Panel(
                "Deliveries a second",
                "ops",
                (
                    (
                        "sum by (trigger, outcome) (rate(torpor_deliveries_total[5m]))",
                        "{{trigger}} {{outcome}}",
                    ),
                ),
            ),
            Panel(
                "Dead letters an hour",
                "short",
                (("sum by (trigger) (increase(torpor_dead_letters_total[1h]))", "{{trigger}}"),),
            ),
            Panel(
                "Retried events",
                "short",
                (("max by (queue) (torpor_queue_retrying)", "{{queue}}"),),
            ),
            Panel(
                "Store",
                "short",
                (
                    ("min(torpor_store_up)", "up"),
                    ("max(torpor_store_keys)", "keys"),
                    ("max(torpor_store_memory_bytes)", "bytes"),
                ),
            ),
        ),
    ),
    (
        "What it costs",
        (
            Panel(
                "GPUs by what they do",
                "short",
                (
                    (
                        query.gpus_by_state(),
                        "{{state}}",
                    ),
                ),
            ),
            Panel(
                "Cost an hour", "currencyUSD", ((query.cost_per_hour(window="15m"), "{{state}}"),)
            ),
            Panel(
                "Cost of 1,000 delivered tokens, everything in",
                "currencyUSD",
                ((query.cost_per_1k_tokens(), "all in"),),
            ),
            Panel("Wasted share of busy time", "percentunit", ((query.wasted_share(), "wasted"),)),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; its data source is asked for."""
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "torpor",
        "title": "Torpor",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [source]},
        "panels": _laid_out(),
    }


def queries() -> list[str]:
    """Every query on it."""
    return [text for _, panels in ROWS for panel in panels for text, _ in panel.queries]


def _laid_out() -> list[dict[str, Any]]:
    placed: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS:
        grid = {"h": 1, "w": 24, "x": 0, "y": y}
        placed.append({"id": len(placed) + 1, "type": "row", "title": title, "gridPos": grid})
        y += 1
        for number, panel in enumerate(panels):
            at = {"x": _WIDTH * (number % _IN_A_ROW), "y": y + _HEIGHT * (number // _IN_A_ROW)}
            placed.append(_graph(len(placed) + 1, panel, at))
        y += _HEIGHT * (-(-len(panels) // _IN_A_ROW))
    return placed


def _graph(number: int, panel: Panel, at: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, **at},
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": _targets(panel.queries),
    }


def _targets(asked: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"refId": chr(65 + index), "expr": text, "legendFormat": legend}
        for index, (text, legend) in enumerate(asked)
    ]

"""The Grafana dashboard: waits at the top, cost at the bottom. Pure.

Called by `python -m knative.monitoring`, by the renderer, and by the test that runs every query on a real
Prometheus.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from knative.monitoring import query
from knative.monitoring.query import once, quantile

_WIDTH, _HEIGHT = 8, 7
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: title, unit as Grafana names it, (query, legend) pairs, and what it tells. `is_stat` shows the last
    value alone.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    tells: str
    is_stat: bool = False


def _percentiles(name: str, by: str = "model") -> tuple[tuple[str, str], ...]:
    return tuple(
        (quantile(share, name, by), f"{{{{{by}}}}} p{share * 100:g}") for share in (0.5, 0.95, 0.99)
    )


def _stat(title: str, unit: str, text: str, tells: str) -> Panel:
    return Panel(title, unit, ((text, ""),), tells, is_stat=True)


_MONEY: Final = "currency:¤"
"""Money of the operator, who set the price: `TORPOR_GPU_PRICE_PER_HOUR` has no currency."""

ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "Now",
        (
            _stat("Waiting", "short", f"sum({query.WAITING})", "Jobs in the queue, all lanes."),
            _stat("Oldest", "s", f"max({query.OLDEST})", "How long the oldest has waited."),
            _stat("In flight", "short", f"sum({query.RUNNING})", "Jobs that predictors run."),
            _stat("Ready", "short", f"sum({query.READY})", "Replicas that can serve."),
            _stat(
                "First token, p95",
                "s",
                f"max({quantile(0.95, 'torpor_ttft_seconds', 'model')})",
                "From submit to first token, over five minutes; the slowest model.",
            ),
            _stat(
                "Dead letters, a day",
                "short",
                "sum(increase(torpor_dead_letters_total[1d]))",
                "Jobs that failed for good: look at each, and redrive or discard it.",
            ),
        ),
    ),
    (
        "What users wait for",
        (
            Panel(
                "Waiting",
                "short",
                ((query.WAITING, "{{model}} {{lane}}"),),
                "Jobs in the queue. Interactive ones are delivered first, batch ones last.",
            ),
            Panel(
                "Oldest waiting job",
                "s",
                ((query.OLDEST, "{{model}} {{lane}}"),),
                "Age of the oldest job in the queue; it grows while nothing is delivered.",
            ),
            Panel(
                "Expected wait",
                "s",
                ((query.EXPECTED_WAIT, "{{model}} {{lane}}"),),
                "Waiting jobs divided by the pace at which jobs end.",
            ),
            Panel(
                "Queue wait",
                "s",
                _percentiles("torpor_queue_wait_seconds"),
                "From submit to the beginning of the first attempt.",
            ),
            Panel(
                "Time to the first token",
                "s",
                _percentiles("torpor_ttft_seconds"),
                "From submit; a cold start is in it.",
            ),
            Panel("Total time", "s", _percentiles("torpor_job_seconds"), "From submit to end."),
            Panel(
                "Time per output token",
                "s",
                _percentiles("torpor_job_time_per_output_token_seconds"),
                "After the first token. It grows with the batch.",
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
                "By the state they ended in.",
            ),
            Panel(
                "Jobs answered by the cache, a second",
                "ops",
                (
                    (
                        'sum by (model, kind) (rate(torpor_cache_jobs_total{status="hit"}[5m]))',
                        "{{model}} {{kind}}",
                    ),
                    (
                        'sum by (model) (rate(torpor_cache_jobs_total{status="miss"}[5m]))',
                        "{{model}} misses",
                    ),
                ),
                "`exact`: answered before; `coalesced`: the same call was running.",
            ),
            Panel(
                "Tokens saved a second",
                "ops",
                (
                    (
                        "sum by (model, kind) (rate(torpor_cache_saved_tokens_total[5m]))",
                        "{{model}} {{kind}}",
                    ),
                ),
                "Of answers that were served again and not generated.",
            ),
            Panel(
                "Steps before the predictor, seconds",
                "s",
                (
                    (
                        "histogram_quantile(0.95, sum by (step, le) "
                        "(rate(torpor_step_run_seconds_bucket[5m])))",
                        "{{step}} p95 run",
                    ),
                    (
                        "histogram_quantile(0.95, sum by (step, le) "
                        "(rate(torpor_step_queue_seconds_bucket[5m])))",
                        "{{step}} p95 wait",
                    ),
                ),
                "A wait includes the start of the process from zero.",
            ),
            Panel(
                "Runs of steps a second",
                "ops",
                (
                    (
                        "sum by (step, outcome) (rate(torpor_step_runs_total[5m]))",
                        "{{step}} {{outcome}}",
                    ),
                ),
                "`unavailable` is given back without a try; `failed` costs one.",
            ),
            Panel(
                "Answers of the api by status",
                "ops",
                (("sum by (status) (rate(torpor_api_requests_total[5m]))", "{{status}}"),),
                "429 is a limit, 503 that store or broker are away; both say when to come again.",
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
                "What scaling follows: jobs in flight, replicas that serve, replicas that start.",
            ),
            Panel(
                "Wake by phase, p95",
                "s",
                ((quantile(0.95, "torpor_wake_seconds", "model, phase", "1h"), "{{phase}}"),),
                "Where the time of a cold start goes, over an hour.",
            ),
            Panel(
                "Tokens a second",
                "ops",
                ((once("torpor_tokens_total", "model, kind", "1m"), "{{model}} {{kind}}"),),
                "Delivered tokens were read by a client; the rest was discarded by a restart.",
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
                "By outcome. Several attempts a job mean that predictors are lost or handed over.",
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
                "A lost lease is a predictor that fell silent; a refused write is one that came back after that.",
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
                "Calls of the broker to predictors, by outcome.",
            ),
            Panel(
                "Dead letters an hour",
                "short",
                (("sum by (trigger) (increase(torpor_dead_letters_total[1h]))", "{{trigger}}"),),
                "Events that the broker gave up.",
            ),
            Panel(
                "Retried events",
                "short",
                (("max by (queue) (torpor_queue_retrying)", "{{queue}}"),),
                "Events that wait for their next delivery.",
            ),
            Panel(
                "Store",
                "short",
                (
                    ("min(torpor_store_up)", "up"),
                    ("max(torpor_store_keys)", "keys"),
                    ("max(torpor_store_memory_bytes)", "bytes"),
                ),
                "Whether Redis or Valkey answers, and what it holds.",
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
                "Every GPU that is paid for is busy, idle or waking.",
            ),
            Panel(
                "Cost an hour",
                _MONEY,
                ((query.cost_per_hour(window="15m"), "{{state}}"),),
                "By what the GPUs did. Without a price it is 0.",
            ),
            Panel(
                "Cost of 1,000 delivered tokens, everything in",
                _MONEY,
                ((query.cost_per_1k_tokens(), "all in"),),
                "Idle time, cold starts and wasted work included.",
            ),
            Panel(
                "Wasted share of busy time",
                "percentunit",
                ((query.wasted_share(), "wasted"),),
                "Busy GPU time whose tokens were discarded.",
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; its data source is asked for."""
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    model = {
        "name": "model",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": "label_values(torpor_queue_depth, model)", "refId": "model"},
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "refresh": 2,
        "sort": 1,
    }
    return {
        "uid": "torpor",
        "title": "Torpor",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [source, model]},
        "annotations": {
            "list": [
                _marks("Alerts", "red", 'ALERTS{alertname=~"Torpor.+",alertstate="firing"}'),
                _marks("Cold starts", "blue", _of_model(f"{query.WAKING} > 0")),
            ]
        },
        "panels": _laid_out(),
    }


def queries() -> list[str]:
    """Every query on it, for all models."""
    asked = [text for _, panels in ROWS for panel in panels for text, _ in panel.queries]
    return [_of_model(text).replace("$model", ".+") for text in asked]


def _of_model(text: str) -> str:
    """The query for the models that are chosen above the panels, where it tells models apart."""

    def chosen(found: re.Match[str]) -> str:
        matchers = [each for each in (found[2], 'model=~"$model"') if each]
        return f"{found[1]}{{{','.join(matchers)}}}"

    return re.sub(r"(torpor_\w+)(?:\{([^}]*)\})?", chosen, text) if "model" in text else text


def _marks(name: str, color: str, text: str) -> dict[str, Any]:
    """An annotation: marks on every panel where `text` has a value."""
    return {
        "name": name,
        "enable": True,
        "datasource": _SOURCE,
        "iconColor": color,
        "expr": text,
        "titleFormat": "{{alertname}} {{model}}",
    }


def _laid_out() -> list[dict[str, Any]]:
    placed: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS:
        grid = {"h": 1, "w": 24, "x": 0, "y": y}
        placed.append({"id": len(placed) + 1, "type": "row", "title": title, "gridPos": grid})
        y += 1
        width, height = (4, 4) if panels[0].is_stat else (_WIDTH, _HEIGHT)
        in_a_row = 24 // width
        for number, panel in enumerate(panels):
            at = {"x": width * (number % in_a_row), "y": y + height * (number // in_a_row)}
            placed.append(_graph(len(placed) + 1, panel, {"h": height, "w": width, **at}))
        y += height * (-(-len(panels) // in_a_row))
    return placed


def _graph(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "stat" if panel.is_stat else "timeseries",
        "title": panel.title,
        "description": panel.tells,
        "gridPos": place,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": _targets(panel.queries),
    }


def _targets(asked: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"refId": chr(65 + index), "expr": _of_model(text), "legendFormat": legend}
        for index, (text, legend) in enumerate(asked)
    ]

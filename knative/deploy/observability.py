"""ServiceMonitors, alerts and the dashboard.

Called by `tree`. Whatever wakes a predictor or pages a person is measured at the api and the
broker: a predictor at zero has no metrics.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from knative.deploy import parts
from knative.deploy.emit import Resource, because
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import Values

RUN_BOOK = "docs/operations.md#"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: when, how long, how bad, and what it says. Its run-book has its name."""

    name: str
    expression: str
    lasting: str
    severity: str
    summary: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph of the dashboard."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]  # (query, legend)


def _quantile(name: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile(0.95, sum by ({labels}) (rate({name}_bucket[5m])))"


def alerts(values: Values, times: Timeouts) -> list[Alert]:
    """Give the alerts; each threshold follows from the values."""
    late = times.initial_cooldown + values.p95_wait_seconds
    budget = values.gpu.price_per_hour * values.gpu.count * values.max_replicas
    return [
        Alert(
            "TorporApiDown",
            'absent(up{job="torpor-api"} == 1)',
            "2m",
            "page",
            "No api answers: nothing is accepted.",
        ),
        Alert(
            "TorporStoreDown",
            "min(torpor_store_up) == 0",
            "1m",
            "page",
            "Redis does not answer: submits get 503, running jobs retry.",
        ),
        Alert(
            "TorporQueueOld",
            f"max by (model) (torpor_queue_oldest_age_seconds) > {late}",
            "1m",
            "page",
            f"The oldest waiting job is older than the worst wake and the objective ({late} s).",
        ),
        Alert(
            "TorporWaitOverObjective",
            f"{_quantile('torpor_queue_wait_seconds', 'model')} > {values.p95_wait_seconds}",
            "15m",
            "ticket",
            f"p95 of the wait is over {values.p95_wait_seconds} s.",
        ),
        Alert(
            "TorporDeadLetters",
            "sum by (trigger) (increase(torpor_dead_letters_total[15m])) > 0",
            "0m",
            "ticket",
            "Jobs were set aside; look and redrive.",
        ),
        Alert(
            "TorporNoProgress",
            "sum(torpor_predictor_in_flight) > 0 and "
            "sum(rate(torpor_tokens_generated_total[10m])) == 0",
            f"{max(10, times.lease // 60 + 10)}m",
            "page",
            "Jobs are in progress and no token came for ten minutes.",
        ),
        Alert(
            "TorporStuckAtZero",
            "sum(torpor_queue_depth) > 0 unless sum(torpor_engine_up) > 0",
            f"{times.initial_cooldown // 60 + 5}m",
            "page",
            "Work waits and no predictor has woken: no GPU, image, quota or scaler.",
        ),
        Alert(
            "TorporColdStartSlow",
            f"max(sum by (pod) (torpor_cold_start_seconds)) > {values.cold_start_seconds}",
            "0m",
            "ticket",
            "A wake took longer than cold_start_seconds: raise it, or jobs will be cut.",
        ),
        Alert(
            "TorporCostBurn",
            f"sum(rate(torpor_gpu_cost_total[1h])) * 3600 > {budget * 0.8:.2f}",
            "2h",
            "ticket",
            "For two hours over 80 % of what all replicas together can cost.",
        ),
    ]


PANELS: tuple[Panel, ...] = (
    Panel("Queue depth", "short", (("sum by (model, lane) (torpor_queue_depth)", "{{lane}}"),)),
    Panel("Oldest in queue", "s", (("max by (model) (torpor_queue_oldest_age_seconds)", "age"),)),
    Panel("Wait, p95", "s", ((_quantile("torpor_queue_wait_seconds", "model"), "{{model}}"),)),
    Panel("First token, p95", "s", ((_quantile("torpor_time_to_first_token_seconds"), "p95"),)),
    Panel(
        "In flight and replicas",
        "short",
        (
            ("sum(torpor_predictor_in_flight)", "in flight"),
            ("sum(torpor_engine_up)", "replicas ready"),
        ),
    ),
    Panel(
        "Tokens",
        "ops",
        (
            ("sum(rate(torpor_tokens_generated_total[1m]))", "generated/s"),
            ("sum(rate(torpor_tokens_resumed_total[1m]))", "resumed/s"),
            ("sum(rate(torpor_tokens_lost_total[1m]))", "lost/s"),
        ),
    ),
    Panel(
        "Cold start by phase",
        "s",
        (("max by (phase) (torpor_cold_start_seconds)", "{{phase}}"),),
    ),
    Panel(
        "Deliveries",
        "ops",
        (
            (
                "sum by (trigger, outcome) (rate(torpor_deliveries_total[5m]))",
                "{{trigger}} {{outcome}}",
            ),
        ),
    ),
    Panel(
        "Dead letters",
        "short",
        (("sum by (trigger) (increase(torpor_dead_letters_total[1h]))", "{{trigger}}"),),
    ),
    Panel(
        "GPU cost",
        "currencyUSD",
        (("sum by (state) (rate(torpor_gpu_cost_total[1h])) * 3600", "{{state}} per hour"),),
    ),
)


def _monitor(kind: str, name: str, values: Values, spec: Resource) -> Resource:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": kind,
        "metadata": parts.metadata(name, "monitoring", values),
        "spec": spec,
    }


def monitors(values: Values) -> list[Resource]:
    """Give who is scraped: api and broker by their Services, predictors pod by pod."""
    endpoint = {"port": "http", "path": "/metrics", "interval": "15s"}
    # The api's door is open to everybody, its numbers are not.
    key = {"credentials": {"name": parts.KEYS_SECRET, "key": "metrics-key"}}
    locked = {**endpoint, "authorization": key}
    by_service = [
        _monitor(
            "ServiceMonitor",
            name,
            values,
            {"selector": {"matchLabels": parts.labels(component)}, "endpoints": [scraped]},
        )
        for name, component, scraped in (
            (parts.API, "api", locked),
            (parts.BROKER, "broker", endpoint),
        )
    ]
    predictors = {
        "selector": {"matchLabels": parts.labels("predictor")},
        "podMetricsEndpoints": [
            {
                "portNumber": because(
                    parts.PULL_PORT, "The container's own port: queue-proxy's 9091 is Knative's."
                ),
                "path": "/metrics",
                "interval": "15s",
            }
        ],
    }
    return [*by_service, _monitor("PodMonitor", parts.PREDICTOR, values, predictors)]


def rules(values: Values, times: Timeouts) -> Resource:
    """Give the PrometheusRule with one rule per alert, each with its run-book."""
    listed = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "runbook_url": RUN_BOOK + alert.name.lower(),
            },
        }
        for alert in alerts(values, times)
    ]
    return _monitor(
        "PrometheusRule", "torpor", values, {"groups": [{"name": "torpor", "rules": listed}]}
    )


def dashboard(values: Values) -> Resource:
    """Give the Grafana dashboard, in the ConfigMap that Grafana's sidecar looks for."""
    panels = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": panel.title,
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(65 + index), "expr": query, "legendFormat": legend}
                for index, (query, legend) in enumerate(panel.queries)
            ],
        }
        for number, panel in enumerate(PANELS)
    ]
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    content = {
        "uid": "torpor",
        "title": "Torpor",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }
    found = parts.config_map(
        "torpor-dashboard", "monitoring", values, {"torpor.json": json.dumps(content, indent=2)}
    )
    found["metadata"]["labels"]["grafana_dashboard"] = "1"
    return found

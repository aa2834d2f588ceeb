"""Who is scraped, and the alerts and dashboard of `knative.monitoring` as the cluster takes them.

Called by `component`. Whatever wakes a predictor or pages a person is measured at the api and the
broker: a predictor at zero has no metrics.
"""

from __future__ import annotations

import json

from knative.deploy.emit import Resource, because, plain
from knative.deploy.render import parts
from knative.deploy.render.tools import pods
from knative.deploy.values import Values
from knative.monitoring.dashboard import dashboard
from knative.monitoring.rule import Objective, rules

BUDGET_SHARE = 0.8  # of what all replicas together can cost; two hours over it is worth a look


def objective(values: Values) -> Objective:
    """Give what was promised, from the values; every alert's threshold follows from it."""
    replicas = sum(each.max_replicas for each in values.each_engine())
    most = values.gpu.price_per_hour * values.gpu.count * replicas
    return Objective(
        p95_wait_s=values.p95_wait_seconds,
        wake_s=values.cold_start_seconds,
        budget_per_hour=round(most * BUDGET_SHARE, 2),
    )


def _monitor(kind: str, name: str, values: Values, spec: Resource) -> Resource:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": kind,
        "metadata": parts.metadata(name, "monitoring", values),
        "spec": spec,
    }


def monitors(values: Values) -> list[Resource]:
    """Give who is scraped: api and broker by their Services, predictors and steps pod by pod."""
    endpoint = {"port": "http", "path": "/metrics", "interval": "15s"}
    # The api's port is open to every caller, its metrics are not.
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
    ports = (
        because(parts.PULL_PORT, "The container's own port: queue-proxy's 9091 is Knative's."),
        because(parts.PUMP_METRICS_PORT, "The pump beside it, where there is one."),
    )
    asked: dict[int, Resource] = {}
    if secret := values.platform.direct_token_secret:
        credentials = {"name": secret, "key": "token"}
        asked[parts.PULL_PORT] = {"authorization": {"credentials": credentials}}
    predictors = {
        "selector": {"matchLabels": parts.labels("predictor")},
        "podMetricsEndpoints": [
            {
                "portNumber": port,
                "path": "/metrics",
                "interval": "15s",
                **asked.get(plain(port), {}),
            }
            for port in ports
        ],
    }
    by_pod = {parts.PREDICTOR: predictors}
    if values.steps.max_replicas:
        scraped = {"portNumber": parts.STEPS_PORT, "path": "/metrics", "interval": "15s"}
        selector = {"matchLabels": parts.labels("steps")}
        by_pod[parts.STEPS] = {"selector": selector, "podMetricsEndpoints": [scraped]}
    if values.tool_config.deployed:
        found = [
            {"portNumber": port, "path": "/metrics", "interval": "15s"}
            for port in (parts.STEPS_PORT, parts.PUMP_METRICS_PORT)
        ]
        selector = {"matchLabels": parts.labels(pods.COMPONENT)}
        by_pod[pods.ACCOUNT] = {"selector": selector, "podMetricsEndpoints": found}
    return [
        *by_service,
        *(_monitor("PodMonitor", name, values, spec) for name, spec in by_pod.items()),
    ]


def alerts(values: Values) -> Resource:
    """Give the alerts of `knative.monitoring` as a PrometheusRule."""
    return _monitor("PrometheusRule", "torpor", values, rules(objective(values)))


def dashboard_config(values: Values) -> Resource:
    """Give the Grafana dashboard, in the ConfigMap that Grafana's sidecar looks for."""
    text = json.dumps(dashboard(), indent=2)
    found = parts.config_map(
        "torpor-dashboard", "monitoring", values, {"torpor-dashboard.json": text}
    )
    found["metadata"]["labels"]["grafana_dashboard"] = "1"
    return found

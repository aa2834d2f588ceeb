"""The alerts: condition, severity and run-book. Pure.

Called by `python -m knative.monitoring`, by the renderer, and by the tests, which fire each with `promtool`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from knative.monitoring import query

RUN_BOOKS: Final = "docs/runbooks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The service level objective, from which every threshold follows."""

    p95_wait_s: float = 60.0
    wake_s: float = 600.0
    budget_per_hour: float = 10.0


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. `page` is for at once, `ticket` for working hours."""

    name: str
    expression: str
    lasting: str
    summary: str
    severity: str

    @property
    def run_book(self) -> str:
        return f"{RUN_BOOKS}/{self.name}.md"


_page = partial(Alert, severity="page")
_ticket = partial(Alert, severity="ticket")


def alerts(objective: Objective) -> tuple[Alert, ...]:
    """Every alert for an objective."""
    return (*_paging(objective), *_late(objective), *_answers(), *_wasteful(objective))


def _paging(objective: Objective) -> tuple[Alert, ...]:
    late_s = objective.wake_s + objective.p95_wait_s
    tokens = query.once("torpor_tokens_total", "model", "10m", '{kind="output"}')
    wake_m = int(objective.wake_s // 60) + 5
    return (
        _page(
            "TorporApiDown",
            'absent(up{job="torpor-api"} == 1)',
            "2m",
            "No api answers: nothing is accepted.",
        ),
        _page(
            "TorporStoreDown",
            "min(torpor_store_up) == 0",
            "1m",
            "The store does not answer: submits get 503, running jobs wait for it.",
        ),
        _page(
            "TorporQueueOld",
            f"max by (model) ({query.OLDEST}) > {late_s:g}",
            "1m",
            f"A job has waited longer than the slowest wake and the objective ({late_s:g} s).",
        ),
        _page(
            "TorporStuckAtZero",
            f"sum by (model) ({query.WAITING}) > 0 and on (model) ({query.READY} == 0)",
            f"{wake_m}m",
            "Jobs wait and no predictor has become ready: no GPU, image, quota or scaler.",
        ),
        _page(
            "TorporNoProgress",
            f"({query.RUNNING} > 0) and on (model) ({tokens} == 0)",
            "5m",
            "Jobs run and no engine has made a token for ten minutes.",
        ),
    )


def _late(objective: Objective) -> tuple[Alert, ...]:
    """Tickets about jobs that wait long or fail."""
    wait = query.quantile(0.95, "torpor_queue_wait_seconds", "model")
    wake = query.quantile(0.95, "torpor_wake_seconds", "model", "1h", '{phase="total"}')
    return (
        _ticket(
            "TorporWaitOverObjective",
            f"{wait} > {objective.p95_wait_s:g}",
            "15m",
            f"p95 of the wait is over {objective.p95_wait_s:g} s.",
        ),
        _ticket(
            "TorporDeadLetters",
            "sum by (trigger) (increase(torpor_dead_letters_total[15m])) > 0",
            "0m",
            "Jobs or events were set aside; look at them and redrive.",
        ),
        _ticket(
            "TorporRetrying",
            "max by (queue) (torpor_queue_retrying) > 0",
            "30m",
            "Deliveries of a queue have been failing for half an hour.",
        ),
        _ticket(
            "TorporQueueAbandoned",
            "max by (queue) (torpor_queue_abandoned_events) > 0",
            "15m",
            "Jobs wait in a queue that no trigger names, and no other queue wants them.",
        ),
        _ticket(
            "TorporLeaseLosses",
            "sum by (model) (increase(torpor_lease_losses_total[15m])) > 3",
            "0m",
            "Predictors die or freeze with jobs in flight.",
        ),
        _ticket(
            "TorporWakeSlow",
            f"{wake} > {objective.wake_s:g}",
            "0m",
            f"A wake took over {objective.wake_s:g} s, which every timeout is rendered from.",
        ),
    )


def _answers() -> tuple[Alert, ...]:
    """Tickets about who answers, and answers that are not shown."""
    return (
        _ticket(
            "TorporProviderOpen",
            f"{query.BREAKER_OPEN} == 1",
            "15m",
            "Calls are kept from a provider for a quarter of an hour: it fails, or cannot be reached.",
        ),
        _ticket(
            "TorporChecksDown",
            'sum by (model) (increase(torpor_withheld_jobs_total{by="unavailable"}[15m])) > 0',
            "0m",
            "Answers were withheld since a check was down until their deadline.",
        ),
        _ticket(
            "TorporCallsInDoubt",
            'sum by (server) (increase(torpor_tool_calls_total{outcome="in_doubt"}[15m])) > 0',
            "0m",
            "Calls of a tool may have happened, and wait for a person's decision.",
        ),
        _ticket(
            "TorporToolsChanged",
            "sum by (server) (increase(torpor_tool_list_changes_total[15m])) > 0",
            "0m",
            "A tool server is not used: its tools are not those that were pinned. A person must look at them.",
        ),
    )


def _wasteful(objective: Objective) -> tuple[Alert, ...]:
    """Tickets about cost."""
    cost = f"3600 * sum({query.once('torpor_gpu_cost_total', 'model, state', '1h')})"
    return (
        _ticket(
            "TorporWaste",
            f"{query.wasted_share()} > 0.2",
            "1h",
            "Over a fifth of the busy GPU time made nothing that was kept.",
        ),
        _ticket(
            "TorporCostBurn",
            f"{cost} > {objective.budget_per_hour:g}",
            "2h",
            f"For two hours over the budget of {objective.budget_per_hour:g} an hour.",
        ),
    )


def rules(objective: Objective) -> dict[str, Any]:
    """A Prometheus rule file; under `spec` it is a PrometheusRule."""
    listed = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "runbook_url": alert.run_book},
        }
        for alert in alerts(objective)
    ]
    return {"groups": [{"name": "torpor", "rules": listed}]}

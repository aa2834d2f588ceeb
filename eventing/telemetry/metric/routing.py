"""Prometheus metrics of who answered ended jobs: tiers by reason, stand-ins, and answers that were withheld.

Called by `eventing.telemetry.metric.job` with a job's record. Every label is a model that is served or a word from
here: reasons in a record may have a caller's numbers, or a provider's text, in them.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from prometheus_client import Counter

from eventing.job.job import CONTENT_FILTER, CONTENT_FILTER_UNAVAILABLE, REJECTED, Job
from eventing.job.pipelines.fallback import NOT_STARTING
from eventing.job.plan import ROUTE_STEP, STEPS_AFTER, StepStatus
from eventing.telemetry.metric.series import labelled

_routed = Counter(
    "torpor_routed_jobs_total",
    "Ended jobs that a step sent to a model, by the rule that decided.",
    ["model", "answered", "reason"],
)
_stood_in = Counter(
    "torpor_fallback_jobs_total",
    "Ended jobs that another model or endpoint than their first answered, by why.",
    ["model", "reason"],
)
_withheld = Counter(
    "torpor_withheld_jobs_total",
    "Ended jobs whose answer no caller was shown, by who withheld it.",
    ["model", "by"],
)

TIER_RULES: Final = (
    *("plain", "words", "answer_tokens", "tools", "format", "code", "maths"),
    *("effort", "holdout"),
)
"""What decides a tier, as `detail.rules` of the step `route` names it."""
_SEVERAL: Final = "several"
_CASCADE: Final = "cascade"
_OTHER: Final = "other"
FALLBACK_REASONS: Final = (
    *("breaker_open", "upstream_failed", "upstream_unavailable", "upstream_key_refused", "late"),
    NOT_STARTING,
)
_WITHHOLDERS: Final = (*STEPS_AFTER, "predictor", "unavailable")


def start_at_zero(model: str) -> None:
    """Create the series that a rate is asked of before their first job."""
    for reason in (*FALLBACK_REASONS, _OTHER):
        _stood_in.labels(model, reason)
    for by in (*_WITHHOLDERS, _OTHER):
        _withheld.labels(model, by)


def observe(job: Job, model: str, models: Collection[str]) -> None:
    """Count who answered an ended job, or that its answer was withheld."""
    if (chosen := _choice(job)) is not None:
        answered = chosen["answered"] if chosen["answered"] in models else _OTHER
        labelled(_routed, model, answered, _tier_reason(chosen)).inc()
    if (stood_in := _stand_in(job)) is not None:
        first = str(stood_in.get("reason", "")).partition(",")[0]
        labelled(_stood_in, model, first if first in FALLBACK_REASONS else _OTHER).inc()
    if (by := _withholder(job)) is not None:
        labelled(_withheld, model, by).inc()


def measures(job: Job) -> dict[str, int]:
    """What the ledger keeps of it: answers of a stand-in, withheld ones, and those that were asked again."""
    counts = {
        "stood_in": _stand_in(job) is not None,
        "withheld": _withholder(job) is not None,
        "asked_again": sum(each.outcome == REJECTED for each in job.history),
    }
    return {name: int(count) for name, count in counts.items() if count}


def _stand_in(job: Job) -> Mapping[str, Any] | None:
    """Who answered in place of the first that was to; None where that one did."""
    told = (job.result or {}).get("routing")
    return told if isinstance(told, Mapping) else job.routing


def _choice(job: Job) -> Mapping[str, Any] | None:
    """What the last step that chose a model says of it."""
    details = [each.detail for each in job.pipeline if each.step in (ROUTE_STEP, *STEPS_AFTER)]
    return next((each for each in reversed(details) if "answered" in each), None)


def _tier_reason(chosen: Mapping[str, Any]) -> str:
    rules = chosen.get("rules")
    if not isinstance(rules, list):
        return _CASCADE
    if len(rules) > 1:
        return _SEVERAL
    return rules[0] if rules and rules[0] in TIER_RULES else _OTHER


def _withholder(job: Job) -> str | None:
    """Who kept the answer from its readers; None where it was shown."""
    if job.incomplete == CONTENT_FILTER_UNAVAILABLE:
        return "unavailable"
    if job.incomplete != CONTENT_FILTER:
        return None
    after = [
        each
        for each in job.pipeline
        if job.plan and (step := job.plan.step(each.step)) and step.is_after
    ]
    judged = [each.step for each in after if each.status is StepStatus.COMPLETED]
    if not judged:
        return "predictor"  # its rules stopped the engine
    return judged[-1] if judged[-1] in STEPS_AFTER else _OTHER

"""What a rule over tiers costs: outcomes of jobs that it sent to a cheaper model, beside those of its holdout.

Called by `eventing.telemetry.metric.job` with a job's record. A share of the jobs under a public name goes to the best
tier whatever the rule says, drawn by the job's id; the rest is as it was, so that the two differ by nothing else. The
regret of a tier is its share of bad outcomes less that of the holdout's jobs that the rule would have sent there. An
outcome is bad where the job failed, its answer was withheld or asked again, or a check says that it is not valid or
cites what there is not. Where no check follows the thought, that is failures only. Labels are models that are served.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from prometheus_client import Counter

from eventing.job.job import REJECTED, Job, JobState
from eventing.job.plan import ROUTE_STEP, STEPS_AFTER
from eventing.telemetry.metric.series import labelled

_outcomes = Counter(
    "torpor_tier_outcomes_total",
    "Ended jobs under a public name, by the tier that its rule chose, and whether the outcome was bad.",
    ["model", "tier", "group", "outcome"],
)
_OTHER: Final = "other"
_EFFORT: Final = "effort"


def observe(job: Job, model: str, models: Collection[str]) -> None:
    """Count the outcome of a job that a tier was chosen for; not one whose caller chose by an effort, or ended it."""
    chosen = next((each.detail for each in job.pipeline if each.step == ROUTE_STEP), {})
    is_drawn = "answered" in chosen and _EFFORT not in (chosen.get("rules") or ())
    if not is_drawn or job.state is JobState.CANCELLED:
        return
    instead_of = chosen.get("instead_of")
    tier = instead_of or chosen["answered"]
    labelled(
        _outcomes,
        model,
        tier if tier in models else _OTHER,
        "holdout" if instead_of else "chosen",
        "bad" if is_bad(job) else "good",
    ).inc()


def is_bad(job: Job) -> bool:
    """True for an outcome that the caller did not want."""
    if job.state is JobState.FAILED or job.incomplete:
        return True
    if any(each.outcome == REJECTED for each in job.history):
        return True
    return any(_says_bad(each.detail) for each in job.pipeline if each.step in STEPS_AFTER)


def _says_bad(detail: Mapping[str, Any]) -> bool:
    grounding = detail.get("grounding")
    is_cited = grounding.get("citations_ok") if isinstance(grounding, Mapping) else None
    return detail.get("valid") is False or is_cited is False

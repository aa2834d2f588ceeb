"""The error budget of the wait objective: which jobs may wait longer than the 95th percentile allows.

Called by `work.py`. Must not know engines, replicas or queues, only how long jobs have waited.

A p95 objective lets five jobs in a hundred wait longer. Each such job saves most of a cold start if it is one for
which alone a replica would be started. So every arriving job adds its share to the budget, and the oldest waiting
job may be deferred when the budget covers a whole job and deferring it delays the start for long. A deferred job is
served with the next one, and no job waits longer than `longest_s`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

# The largest budget, so that a quiet night does not save up for a bad day.
_MOST = 20.0
# Shares add up to a whole job only within rounding.
_ROUNDING = 1e-9
# Deferring a job must delay the start by this multiple of the usual delay ...
_WORTH = 1.5
# ... which is a moving average over about the last ten.
_MEMORY = 0.1
_ENOUGH = 0.75


@dataclass(frozen=True, slots=True)
class WaitObjective:
    """The wait objective: `allowed_s` for all but `late_share` of the jobs, `longest_s` for every job.

    A replica must be requested `lead_s` before a job's limit.
    """

    allowed_s: float
    longest_s: float
    late_share: float
    lead_s: float


@dataclass(frozen=True, slots=True)
class ErrorBudget:
    """The budget in whole late jobs; `deferred` of the oldest waiting ones are deferred.

    `usual_gain_s` is by how long deferring a job usually delays the start.
    """

    left: float = 0.0
    deferred: int = 0
    usual_gain_s: float | None = None
    debited_at: float = 0.0


def credited(objective: WaitObjective, budget: ErrorBudget) -> ErrorBudget:
    """The budget after a job arrived."""
    return replace(budget, left=min(budget.left + objective.late_share, _MOST))


def debited(
    objective: WaitObjective, budget: ErrorBudget, waits_s: Sequence[float], now: float
) -> ErrorBudget:
    """The budget after the jobs that became late since the last check; it may become negative."""
    since = now - budget.debited_at
    late = sum(objective.allowed_s < wait <= objective.allowed_s + since for wait in waits_s)
    return replace(budget, left=budget.left - late, debited_at=now)


def must_start(
    objective: WaitObjective, budget: ErrorBudget, waits_s: Sequence[float]
) -> tuple[ErrorBudget, bool]:
    """Whether a replica must be started for the waiting jobs (oldest first), when none runs."""
    if waits_s and waits_s[0] >= max(objective.longest_s, objective.allowed_s) - objective.lead_s:
        return replace(budget, deferred=0), True
    budget = replace(budget, deferred=min(budget.deferred, len(waits_s)))
    while budget.deferred < len(waits_s):
        if waits_s[budget.deferred] < objective.allowed_s - objective.lead_s:
            return budget, False
        budget, is_deferred = _deferred(objective, budget, waits_s)
        if not is_deferred:
            return replace(budget, deferred=0), True
    return budget, False


def _deferred(
    objective: WaitObjective, budget: ErrorBudget, waits_s: Sequence[float]
) -> tuple[ErrorBudget, bool]:
    """Whether the oldest job that is not deferred yet is deferred for the one behind it."""
    slack_s = max(0.0, objective.allowed_s - objective.lead_s)
    mine, behind = budget.deferred, budget.deferred + 1
    gain_s = slack_s  # the least gain: no job is behind it, and the next one has its whole slack
    if behind < len(waits_s):
        gain_s = min(slack_s, waits_s[mine] - waits_s[behind])
    usual_s = gain_s if budget.usual_gain_s is None else budget.usual_gain_s
    promised = mine - sum(wait > objective.allowed_s for wait in waits_s[:mine])
    can_afford = budget.left - promised >= 1 - _ROUNDING
    is_worth_it = gain_s >= min(_ENOUGH * slack_s, _WORTH * usual_s)
    budget = replace(budget, usual_gain_s=usual_s + _MEMORY * (gain_s - usual_s))
    if not (can_afford and is_worth_it):
        return budget, False
    return replace(budget, deferred=behind), True

"""The share of jobs that a percentile leaves: an account that fills with jobs and pays for late
ones.

Called by `work.py`. It must not know engines, replicas or queues: only how long jobs have waited.

A p95 says nothing about five jobs in a hundred. Spent by accident they are worth nothing; spent on
the job for whom alone a replica would be woken, each saves most of a cold start. So every job that
comes pays in its share, and the oldest waiting job may be passed over when the account holds a
whole job and the wake-up can be put off for long. Whoever is passed over is served with the next,
and nobody waits longer than `longest_s`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

# A quiet night must not save up for a bad day: after so many jobs' worth the account is full.
_MOST = 20.0
# Shares add up to a whole job only within rounding.
_ROUNDING = 1e-9
# Passing over a job must put the wake-up off for so many times as long as it usually does ...
_WORTH = 1.5
# ... and the usual is what about the last ten would have given.
_MEMORY = 0.1
_ENOUGH = 0.75


@dataclass(frozen=True, slots=True)
class Patience:
    """What jobs allow: `allowed_s` for all but `late_share` of them, `longest_s` for everybody.

    `lead_s` is how long before its time is up a job must be acted for.
    """

    allowed_s: float
    longest_s: float
    late_share: float
    lead_s: float


@dataclass(frozen=True, slots=True)
class Account:
    """Whole late jobs that are left; `passed_over` of the oldest waiting ones are promised some.

    `usual_gain_s` is how long passing somebody over lately would have put a wake-up off.
    """

    left: float = 0.0
    passed_over: int = 0
    usual_gain_s: float | None = None
    charged_at: float = 0.0


def paid_in(patience: Patience, account: Account) -> Account:
    """The account after a job came."""
    return replace(account, left=min(account.left + patience.late_share, _MOST))


def charged(patience: Patience, account: Account, waits_s: Sequence[float], now: float) -> Account:
    """The account after those who became late since the last look; it may go below zero."""
    since = now - account.charged_at
    late = sum(patience.allowed_s < wait <= patience.allowed_s + since for wait in waits_s)
    return replace(account, left=account.left - late, charged_at=now)


def is_time(patience: Patience, account: Account, waits_s: Sequence[float]) -> tuple[Account, bool]:
    """Whether somebody must be woken for the waiting jobs (oldest first), with nobody up yet."""
    if waits_s and waits_s[0] >= max(patience.longest_s, patience.allowed_s) - patience.lead_s:
        return replace(account, passed_over=0), True
    account = replace(account, passed_over=min(account.passed_over, len(waits_s)))
    while account.passed_over < len(waits_s):
        if waits_s[account.passed_over] < patience.allowed_s - patience.lead_s:
            return account, False
        account, is_passed_over = _considered(patience, account, waits_s)
        if not is_passed_over:
            return replace(account, passed_over=0), True
    return account, False


def _considered(
    patience: Patience, account: Account, waits_s: Sequence[float]
) -> tuple[Account, bool]:
    """Whether the oldest job that has no promise yet is passed over for the one behind it."""
    slack_s = max(0.0, patience.allowed_s - patience.lead_s)
    mine, behind = account.passed_over, account.passed_over + 1
    gain_s = slack_s  # at least: nobody is behind, and who comes next has all his slack
    if behind < len(waits_s):
        gain_s = min(slack_s, waits_s[mine] - waits_s[behind])
    usual_s = gain_s if account.usual_gain_s is None else account.usual_gain_s
    promised = mine - sum(wait > patience.allowed_s for wait in waits_s[:mine])
    can_afford = account.left - promised >= 1 - _ROUNDING
    is_worth_it = gain_s >= min(_ENOUGH * slack_s, _WORTH * usual_s)
    account = replace(account, usual_gain_s=usual_s + _MEMORY * (gain_s - usual_s))
    if not (can_afford and is_worth_it):
        return account, False
    return replace(account, passed_over=behind), True

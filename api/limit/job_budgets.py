"""Holds what a job may cost against the budgets that pay for it, and tells when a soft budget is passed.

Called by `api.limit.gate` for every job that is admitted and every end, and by `api.routes.tenant`. Must not know the
store.
"""

from collections.abc import Mapping
from typing import Final

import structlog
from prometheus_client import Counter
from typing_extensions import TypedDict

from api.auth.principal import Principal
from api.http.described import described
from api.limit.budget import Account, Budgets, BudgetUse
from api.limit.budget_notice import BudgetNotices
from api.limit.cost import cost_of
from api.limit.limit import limits_of, prompt_tokens, tokens_asked
from api.settings import ApiSettings
from eventing.errors import BadRequest
from eventing.job.job import KEY, KEY_BUDGET, Job
from eventing.job.store import NewJob

_warned = Counter(
    "torpor_api_budget_warnings_total", "Jobs admitted by a budget that is almost spent.", ["of"]
)
_passed = Counter(
    "torpor_api_soft_budgets_passed_total", "Soft budgets that were passed, once a month.", ["of"]
)
for _of in ("tenant", "key"):  # at zero before the first: a rate takes that for its start
    _warned.labels(_of)
    _passed.labels(_of)
_PLACES: Final = 6
_log = structlog.get_logger()


@described
class BudgetView(TypedDict):
    """A budget of the month (UTC)."""

    of: str
    """`tenant`, or `key`: the one that calls"""
    period: str
    """The month, as `2026-11`"""
    budget: float | None
    """Beyond it calls are refused; null for none"""
    soft_budget: float | None
    """When it is passed, the event `budget.soft.passed` is sent, once"""
    spent: float
    """What ended jobs cost"""
    held: float
    """The most that jobs which have not ended may cost yet"""
    left: float | None
    """Of the budget"""
    currency: str
    resets_s: float
    """Until the next month"""


class JobBudgets:
    """The budgets of tenants and keys, of all jobs."""

    def __init__(self, settings: ApiSettings, budgets: Budgets, notices: BudgetNotices) -> None:
        self._settings = settings
        self._budgets = budgets
        self._notices = notices
        self._prices = settings.prices
        self._context_tokens = {card.name: card.context_tokens for card in settings.cards}

    def accounts(
        self, tenant: str, metadata: Mapping[str, str], principal: Principal | None = None
    ) -> list[Account]:
        """The accounts that pay for a job: of its tenant, and of the key that submitted it."""
        found = [account] if (account := self._of_tenant(tenant)) else []
        if KEY_BUDGET in metadata:
            key_id = metadata.get(KEY, "")
            if principal is None:
                found.append(Account(of="key", name=key_id))
            elif principal.key_id == key_id and principal.budget_per_month:
                found.append(self._of_key(principal))
        return found

    async def take(self, new: NewJob, accounts: list[Account]) -> dict[str, str]:
        """Hold the most that the job may cost; gives the headers of its answer. Raises `BudgetSpent`."""
        uses = await self._budgets.take(accounts, new.id, self._most(new))
        passed = [use for use in uses if use.is_soft_passed]
        for use in passed:
            _warned.labels(use.account.of).inc()
        return {"torpor-budget": ", ".join(map(_header, passed))} if passed else {}

    async def give_back(self, new: NewJob) -> None:
        """Return what was held for a job that was not recorded."""
        if accounts := self.accounts(new.tenant, new.metadata):
            await self._budgets.settle(accounts, new.id, 0.0)

    async def pay(self, job: Job) -> None:
        """Charge an ended job. Idempotent. Raises `Unavailable` while the owner of a passed soft budget cannot be
        notified; the call must then be repeated.
        """
        accounts = self.accounts(job.tenant, job.metadata)
        if not accounts:
            return
        cost = cost_of(job, self._prices)
        for passed in await self._budgets.settle(accounts, job.id, cost):
            try:
                await self._notices.soft_budget_passed(passed, job.tenant)
            except BadRequest as error:  # no broker will ever take it
                _log.error("not told", action="budget", reason=error.code)
            await self._budgets.mark_notified(passed)
            _passed.labels(passed.account.of).inc()

    async def look(self, principal: Principal) -> list[BudgetView]:
        """The budgets of a caller, and what is left of them."""
        accounts = [account] if (account := self._of_tenant(principal.tenant)) else []
        if principal.budget_per_month:
            accounts.append(self._of_key(principal))
        if not accounts:
            return []
        month, left_s, uses = await self._budgets.look(accounts)
        return [self._view(use, month, left_s) for use in uses]

    def _view(self, use: BudgetUse, month: str, left_s: float) -> BudgetView:
        budget = use.account.per_month
        left = max(budget - use.spent - use.held, 0.0)
        return {
            "of": use.account.of,
            "period": month,
            "budget": budget or None,
            "soft_budget": use.account.soft or None,
            "spent": use.spent,
            "held": use.held,
            "left": round(left, _PLACES) if budget else None,
            "currency": self._settings.currency,
            "resets_s": left_s,
        }

    def _of_tenant(self, tenant: str) -> Account | None:
        limits = limits_of(self._settings, tenant)
        hard, soft = limits.budget_per_month, limits.soft_budget_per_month
        if not hard and not soft:
            return None
        soft = soft or hard * self._settings.budget_warn_share
        return Account(of="tenant", name=tenant, per_month=hard, soft=soft)

    def _of_key(self, principal: Principal) -> Account:
        hard = principal.budget_per_month
        soft = hard * self._settings.budget_warn_share
        return Account(of="key", name=principal.key_id, per_month=hard, soft=soft)

    def _most(self, new: NewJob) -> float:
        """What a job's tokens may cost at most; 0 for a model whose tokens have no price."""
        price = self._prices.tokens.get(new.request.model)
        if price is None:
            return 0.0
        asked = tokens_asked(new.request, self._context_tokens.get(new.request.model, 0))
        prompt = prompt_tokens(new.request)
        return price.of(prompt, max(asked - prompt, 0))


def _header(use: BudgetUse) -> str:
    account = use.account
    budget = f"; budget={account.per_month:g}" if account.per_month else ""
    return (
        f"{account.of}; spent={use.spent:.4f}; held={use.held:.4f}{budget}; soft={account.soft:g}"
    )

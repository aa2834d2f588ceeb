"""Budgets in money, of tenants and of API keys: what their jobs cost in a month, counted in the store.

Called by `api.limit.gate`. A job holds what it may cost at most until it ends; then what it did cost is spent. All
processes share the accounts, and the month is that of store time, in UTC. Must not know how a cost is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from redis.asyncio import Redis

from eventing.errors import Unavailable
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import Argument, run
from eventing.telemetry.cost import MICRO, UNPRICED, Price

_TELLING_MS: Final = 10_000
"""How long a process that tells has the word to itself; less than the time after which an end is told again."""


class BudgetSpent(Unavailable):
    """The budget of the month is spent, or the call may cost more than is left of it."""

    status = 429
    code = "insufficient_quota"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The budget of a tenant or of an API key; 0 for none, or where only what was held is settled."""

    of: str  #: `tenant` or `key`
    name: str
    per_month: float = 0.0
    soft: float = 0.0  #: when so much is spent, its owner is told

    @property
    def key(self) -> str:
        return keys.budget(self.of, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetUse:
    """How much of an account's budget is spent, and held for jobs that have not ended."""

    account: Account
    spent: float
    held: float

    @property
    def is_soft_passed(self) -> bool:
        """True when it is, or will be if the jobs that run cost the most that they may."""
        return 0 < self.account.soft <= self.spent + self.held


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedBudget:
    """An account whose soft budget of the month is passed, of which its owner has not been notified yet."""

    account: Account
    month: str
    spent: float


class Budgets:
    """The accounts; every method raises `StoreUnavailable`. The client belongs to the caller."""

    def __init__(self, redis: Redis, gpu_price: Price = UNPRICED) -> None:
        """`gpu_price` is that of GPU time which is charged after its job has ended."""
        self._redis = redis
        self._price = repr(gpu_price.of(0.001) * MICRO)

    async def take(
        self, accounts: Sequence[Account], job_id: JobId, cost: float
    ) -> list[BudgetUse]:
        """Hold `cost` in every account. Raises `BudgetSpent` naming the first that has less left."""
        args: list[Argument] = [
            job_id,
            _micro(cost),
            self._price,
            *(_micro(amount) for each in accounts for amount in (each.per_month, each.soft)),
        ]
        async with failures_named():
            answer = await run(self._redis, "budget_take", [each.key for each in accounts], args)
        refusing, left_ms, *amounts = answer
        uses = [
            BudgetUse(account=each, spent=amounts[2 * i] / MICRO, held=amounts[2 * i + 1] / MICRO)
            for i, each in enumerate(accounts)
        ]
        if refusing:
            raise _spent(uses[refusing - 1], cost, left_ms / 1000)
        return uses

    async def settle(
        self, accounts: Sequence[Account], job_id: JobId, cost: float
    ) -> list[PassedBudget]:
        """Charge an ended job. Only the first call counts. Gives the accounts whose owners are to be notified of
        a passed soft budget; for some seconds no other caller is given them.
        """
        args: list[Argument] = [job_id, _micro(cost), _TELLING_MS, self._price]
        async with failures_named():
            month, *rows = await run(
                self._redis, "budget_settle", [each.key for each in accounts], args
            )
        return [
            PassedBudget(
                account=replace(account, per_month=int(hard) / MICRO, soft=int(soft) / MICRO),
                month=month.decode(),
                spent=spent / MICRO,
            )
            for account, (is_due, spent, hard, soft) in zip(accounts, rows, strict=True)
            if is_due
        ]

    async def mark_notified(self, passed: PassedBudget) -> None:
        """Record that the owner has been notified, for this month."""
        async with failures_named():
            await self._redis.hset(passed.account.key, "told", passed.month)

    async def look(self, accounts: Sequence[Account]) -> tuple[str, float, list[BudgetUse]]:
        """The month, the seconds until the next one, and what is spent and held."""
        async with failures_named():
            month, left_ms, *amounts = await run(
                self._redis, "budget_look", [each.key for each in accounts], [self._price]
            )
        uses = [
            BudgetUse(account=each, spent=amounts[2 * i] / MICRO, held=amounts[2 * i + 1] / MICRO)
            for i, each in enumerate(accounts)
        ]
        return month.decode(), left_ms / 1000, uses


def _micro(money: float) -> int:
    return round(money * MICRO)


def _spent(use: BudgetUse, cost: float, wait_s: float) -> BudgetSpent:
    account = use.account
    held = f", {use.held:.4f} held for jobs that have not ended" if use.held else ""
    asked = f", and this call may cost {cost:.4f}" if cost else ""
    return BudgetSpent(
        f"the {account.of}'s budget is {account.per_month:g} a month: {use.spent:.4f} is spent{held}{asked}; "
        f"the next month begins in {wait_s / 86400:.1f} days (UTC)",
        wait_s,
    )

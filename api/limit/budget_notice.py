"""Tells a tenant that a soft budget is passed: by webhook, and by an event to the broker.

Called by `api.limit.job_budgets`, once a month and budget; a repeated call sends the same message. Must not know how
it is counted.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from api.limit.budget import PassedBudget
from api.webhook.webhook import EventType, Message
from eventing.clock import Clock
from eventing.cloudevent.budget_event import soft_budget_passed
from eventing.cloudevent.publisher import Publisher


@dataclass(frozen=True, slots=True)
class BudgetNotices:
    """Publisher and webhooks belong to the caller."""

    publisher: Publisher
    notify: Callable[[Message], Awaitable[None]]
    clock: Clock
    currency: str

    async def soft_budget_passed(self, passed: PassedBudget, tenant: str) -> None:
        """Raises `Unavailable` while store or broker are, and `EventRefused`."""
        account, now_ms = passed.account, self.clock.wall_ms()
        event = soft_budget_passed(
            tenant=tenant,
            of=account.of,
            name=account.name,
            period=passed.month,
            budget=account.per_month or None,
            soft_budget=account.soft,
            spent=passed.spent,
            currency=self.currency,
            at_ms=now_ms,
        )
        message = Message(
            tenant=tenant,
            type=EventType.BUDGET_SOFT_PASSED,
            subject=event.subject,
            key=event.id,
            created_s=now_ms // 1000,
        )
        await self.notify(message)
        await self.publisher.publish(event)

"""The event that tells that a soft budget is passed. Pure; its JSON Schema is in `docs/schemas`.

Called by the api.
"""

from datetime import UTC, datetime
from typing import Final

import orjson

from eventing.cloudevent.event import Event
from eventing.job.job import OUR_SOURCES

SOFT_BUDGET_PASSED: Final = "dev.torpor.budget.soft.passed.v1"
BUDGET_SOURCE: Final = f"{OUR_SOURCES}budgets"


def soft_budget_passed(
    *,
    tenant: str,
    of: str,
    name: str,
    period: str,
    budget: float | None,
    soft_budget: float,
    spent: float,
    currency: str,
    at_ms: int,
) -> Event:
    """The event of one budget (of the tenant, or of its key `name`) and month: always of the same identity."""
    subject = of if of == "tenant" else f"{of}/{name}"
    data = {
        "of": of,
        "id": name,
        "period": period,
        "budget": budget,
        "soft_budget": soft_budget,
        "spent": spent,
        "currency": currency,
    }
    return Event(
        id=f"{of}:{name}:{period}",
        source=BUDGET_SOURCE,
        type=SOFT_BUDGET_PASSED,
        subject=subject,
        time=datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        datacontenttype="application/json",
        extensions={"tenant": tenant},
        data=orjson.dumps(data),
    )

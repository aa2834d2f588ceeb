"""`/v1/tenant`: who calls, its limits and how much of them is used, and its own usage over time.

Called by `api.wiring`. `/v1/usage` shows every tenant and needs another scope. Must not know how limits are counted.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.principal import Principal, Scope
from api.http.described import described
from api.limit.job_budgets import BudgetView, JobBudgets
from api.limit.limit import LimitUse
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.routes.usage import SINCE, STEP, TenantSpend, tenant_view, total_of
from eventing.telemetry.cost import Price, overhead, spend_of
from eventing.telemetry.metric.ledger import Ledger, Rows, by_name, merged


class LimitReader(Protocol):
    """Reads how much of its limits a caller uses (`api.limit.gate.LimitGate`)."""

    async def look(self, principal: Principal) -> dict[str, LimitUse]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDeps:
    """The dependencies of `/v1/tenant`."""

    limits: LimitReader
    budgets: JobBudgets
    ledger: Ledger
    price: Price
    file_bytes_of: Callable[[str], Awaitable[int]]
    file_limit_of: Callable[[str], int]


@described
class TenantView(TypedDict):
    """The caller: its tenant, its credential, its limits."""

    object: Literal["tenant"]
    id: str
    key_id: str | None
    """Of the API key that calls"""
    scopes: list[str]
    limits: dict[str, LimitUse]
    """By name; those of the key itself begin with `key_`. A limit of 0 is none"""
    budgets: list[BudgetView]
    """In money, of the tenant and of the key that calls; those that are set"""


@described
class TenantSlice(TenantSpend):
    """What was used in a step of time."""

    at_ms: int
    """When it begins"""


class TenantUsageView(TypedDict):
    """What the tenant used."""

    object: Literal["tenant.usage"]
    since_s: int
    price_per_gpu_hour: float
    total: TenantSpend
    series: list[TenantSlice]


routes: Routes[TenantDeps] = Routes("tenant")

_FILES: Final = "file_bytes"


@routes.operation("GET", "/v1/tenant", Scope.JOBS_READ, answers=TenantView)
async def get_tenant(call: Call[TenantDeps]) -> Response:
    """Get your tenant: scopes of the credential, limits, and how much of them is used."""
    principal, deps = call.principal, call.deps
    limits = await deps.limits.look(principal)
    limits[_FILES] = {
        "limit": deps.file_limit_of(principal.tenant),
        "used": await deps.file_bytes_of(principal.tenant),
        "reset_s": None,
    }
    return json_response(
        {
            "object": "tenant",
            "id": principal.tenant,
            "key_id": principal.key_id or None,
            "scopes": sorted(principal.scopes),
            "limits": limits,
            "budgets": await deps.budgets.look(principal),
        }
    )


@routes.operation(
    "GET", "/v1/tenant/usage", Scope.JOBS_READ, parameters=(SINCE, STEP), answers=TenantUsageView
)
async def get_tenant_usage(call: Call[TenantDeps]) -> Response:
    """Get what your tenant used: jobs, tokens, GPU time and cost of a period, in all and by steps of time."""
    query, deps, tenant = call.request.query_params, call.deps, call.principal.tenant
    since_s = SINCE.of(query)
    slices = await deps.ledger.series(since_s, STEP.of(query))
    everything = merged(rows for _, rows in slices)
    factor = overhead(spend_of(total_of(by_name(everything, "model"))))
    series = [
        {"at_ms": at_s * 1000, **_of_tenant(rows, tenant, deps.price, factor)}
        for at_s, rows in slices
    ]
    return json_response(
        {
            "object": "tenant.usage",
            "since_s": since_s,
            "price_per_gpu_hour": deps.price.per_gpu_hour,
            "total": _of_tenant(everything, tenant, deps.price, factor),
            "series": series,
        }
    )


def _of_tenant(rows: Rows, tenant: str, price: Price, factor: float | None) -> TenantSpend:
    return tenant_view(by_name(rows, "tenant").get(tenant, {}), price, factor)

"""`/v1/usage`: GPU time and cost of a period, by model and by tenant.

Called by `api.wiring` and `torpor usage`. It shows every tenant, so it needs the scope for metrics, not that of a
tenant's admin; the figures come from the ledger that predictors write. Must not know how time is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NotRequired

from starlette.responses import Response
from typing_extensions import TypedDict

from api.audit.figures import AuditFigures, CriticFigures
from api.auth.principal import Scope
from api.http.described import described
from api.http.parameter import Whole
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from eventing.telemetry.cost import MICRO, BillView, Price, Spend, bill, overhead, spend_of
from eventing.telemetry.metric.ledger import (
    KEEP_SLICES_S,
    SLICE_S,
    Ledger,
    Measures,
    Rows,
    by_name,
    merged,
)
from eventing.telemetry.metric.service import SERVICE
from eventing.telemetry.usage import DAY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageDeps:
    """The dependencies of `/v1/usage`."""

    ledger: Ledger
    price: Price
    cpu_price_per_hour: float = 0.0
    audits: AuditFigures | None = None


routes: Routes[UsageDeps] = Routes("usage")

_PLACES: Final = 6
SINCE: Final = Whole(
    "since_s",
    f"How far back, in seconds; known to {SLICE_S} s",
    least=SLICE_S,
    most=KEEP_SLICES_S,
    default=DAY_S,
)


STEP: Final = Whole(
    "step_s",
    f"Length of a step of the series, in seconds; whole steps of {SLICE_S} s",
    least=SLICE_S,
    most=DAY_S,
    default=3600,
)


class GpuSeconds(TypedDict):
    """What GPUs did with the time. `kept` and `wasted` are parts of `busy`: whose tokens were kept, and not."""

    waking: float
    idle: float
    busy: float
    kept: float
    wasted: float


@described
class SpendView(TypedDict):
    """What a model, or all of them, used and cost."""

    jobs: int
    input_tokens: int
    output_tokens: int
    cache_hits: int
    """Jobs answered with a kept answer"""
    saved_tokens: int
    """Tokens of those answers, which were not generated again"""
    stood_in: int
    """Jobs that another than the model's first endpoint answered"""
    withheld: int
    """Jobs whose answer no caller was shown"""
    asked_again: int
    """Answers that were not valid, and were asked again"""
    gpu_seconds: GpuSeconds
    cost: BillView


@described
class TenantSpend(TypedDict):
    """What a tenant used and cost."""

    jobs: int
    input_tokens: int
    output_tokens: int
    cache_hits: int
    saved_tokens: int
    gpu_seconds: float
    cost: float
    """Of its own GPU time"""
    cost_all_in: float | None
    """Including its part of idle time, starts and waste"""


@described
class UsageSlice(TypedDict):
    """What all models used in a step of time."""

    at_ms: int
    """When it begins"""
    jobs: int
    input_tokens: int
    output_tokens: int
    gpu_seconds: GpuSeconds
    cost: float


@described
class AuditedRate(TypedDict):
    """How often a model's answers say what their passages do not, by its critic."""

    critic: str
    kappa: float
    """Agreement of the critic with its golden set"""
    audited_jobs: int
    rate: float | None
    """Corrected for the critic's errors; null while the critic is not good enough"""
    low: float | None
    """Lower end of the 95 % interval"""
    high: float | None


@described
class ServicesView(TypedDict):
    """What api and store took beside the GPUs."""

    api_cpu_seconds: float
    """Of all processes of the api"""
    store_cpu_seconds: float
    store_commands: int
    """Those inside scripts counted"""
    cost: float
    """CPU time at `TORPOR_CPU_PRICE_PER_HOUR`"""


@described
class TokenCostView(TypedDict):
    """What 1,000 delivered tokens cost, by who is paid; null without tokens."""

    gpu: float | None
    """Idle time, starts and discarded work included"""
    providers: float | None
    services: float | None
    """Api and store"""
    total: float | None


@described
class UsageView(TypedDict):
    """Seconds, tokens and cost by model and by tenant."""

    object: Literal["usage"]
    since_s: int
    price_per_gpu_hour: float
    """In the operator's currency"""
    gpus_per_replica: int
    total: SpendView
    models: dict[str, SpendView]
    tenants: dict[str, TenantSpend]
    services: ServicesView
    providers_cost: float
    """What providers take for the tokens of their models"""
    cost_per_1k_output_tokens: TokenCostView
    series: list[UsageSlice]
    """By steps of time"""
    audits: NotRequired[dict[str, AuditedRate]]
    """By audited model, over days, whatever the period is"""


@routes.operation(
    "GET", "/v1/usage", Scope.METRICS_READ, parameters=(SINCE, STEP), answers=UsageView
)
async def usage(call: Call[UsageDeps]) -> Response:
    """Get the cost of a period.

    Cost per 1,000 delivered tokens includes idle time, starts and discarded work. A tenant's `cost_all_in` is its
    own GPU time at that full rate.
    """
    query = call.request.query_params
    span_s = SINCE.of(query)
    slices = await call.deps.ledger.series(span_s, STEP.of(query))
    shown = usage_view(slices, call.deps.price, span_s, call.deps.cpu_price_per_hour)
    if call.deps.audits is not None:
        shown["audits"] = audited_rates(await call.deps.audits.critics())
    return json_response(shown)


def audited_rates(critics: Mapping[str, CriticFigures]) -> dict[str, AuditedRate]:
    """What critics found, by model."""
    found: dict[str, AuditedRate] = {}
    for critic, figures in critics.items():
        for model, counts in figures.models.items():
            rate = figures.rate(model)
            found[model] = {
                "critic": critic,
                "kappa": round(figures.golden.kappa, 4),
                "audited_jobs": counts.jobs,
                "rate": round(rate.rate, 4) if rate else None,
                "low": round(rate.low, 4) if rate else None,
                "high": round(rate.high, 4) if rate else None,
            }
    return found


def usage_view(
    slices: Sequence[tuple[int, Rows]], price: Price, span_s: int, cpu_price_per_hour: float = 0.0
) -> UsageView:
    """The ledger's rows by time (seconds) as JSON."""
    rows = merged(each for _, each in slices)
    models = by_name(rows, "model")
    everything = total_of(models)
    factor = overhead(spend_of(everything))
    services = _services_view(by_name(rows, SERVICE), cpu_price_per_hour)
    providers_cost = everything.get("provider_cost", 0) / MICRO
    return {
        "object": "usage",
        "since_s": span_s,
        "price_per_gpu_hour": price.per_gpu_hour,
        "gpus_per_replica": price.gpus,
        "total": _spend_view(everything, price),
        "models": {name: _spend_view(measures, price) for name, measures in models.items()},
        "tenants": {
            name: tenant_view(measures, price, factor)
            for name, measures in by_name(rows, "tenant").items()
        },
        "services": services,
        "providers_cost": providers_cost,
        "cost_per_1k_output_tokens": _token_cost_view(
            spend_of(everything), price, providers_cost, services["cost"]
        ),
        "series": [_slice_view(at_s, each, price) for at_s, each in slices],
    }


def total_of(models: Mapping[str, Measures]) -> Measures:
    """The sums over all models."""
    total: Measures = {}
    for measures in models.values():
        for name, amount in measures.items():
            total[name] = total.get(name, 0) + amount
    return total


def _services_view(rows: Mapping[str, Measures], cpu_price_per_hour: float) -> ServicesView:
    api, store = rows.get("api", {}), rows.get("store", {})
    cpu_ms = api.get("cpu_ms", 0) + store.get("cpu_ms", 0)
    return {
        "api_cpu_seconds": api.get("cpu_ms", 0) / 1000,
        "store_cpu_seconds": store.get("cpu_ms", 0) / 1000,
        "store_commands": store.get("commands", 0),
        "cost": round(Price(per_gpu_hour=cpu_price_per_hour).of(cpu_ms / 1000), _PLACES),
    }


def _token_cost_view(
    spend: Spend, price: Price, providers: float, services: float
) -> TokenCostView:
    """What each is paid for 1,000 delivered tokens."""

    def each(cost: float) -> float | None:
        tokens = spend.output_tokens
        return round(1000 * cost / tokens, _PLACES) if tokens else None

    gpu = price.of(spend.paid_s)
    return {
        "gpu": each(gpu),
        "providers": each(providers),
        "services": each(services),
        "total": each(gpu + providers + services),
    }


def _slice_view(at_s: int, rows: Rows, price: Price) -> UsageSlice:
    spend = _spend_view(total_of(by_name(rows, "model")), price)
    return {
        "at_ms": at_s * 1000,
        "jobs": spend["jobs"],
        "input_tokens": spend["input_tokens"],
        "output_tokens": spend["output_tokens"],
        "gpu_seconds": spend["gpu_seconds"],
        "cost": spend["cost"]["total"],
    }


def _spend_view(measures: Mapping[str, int], price: Price) -> SpendView:
    spend = spend_of(measures)
    return {
        "jobs": spend.jobs,
        "input_tokens": spend.input_tokens,
        "output_tokens": spend.output_tokens,
        "cache_hits": measures.get("cache_hits", 0),
        "saved_tokens": measures.get("saved_tokens", 0),
        "stood_in": measures.get("stood_in", 0),
        "withheld": measures.get("withheld", 0),
        "asked_again": measures.get("asked_again", 0),
        "gpu_seconds": {
            "waking": round(spend.waking_s * price.gpus, 3),
            "idle": round(spend.idle_s * price.gpus, 3),
            "busy": round(spend.busy_s * price.gpus, 3),
            "kept": round(spend.kept_s * price.gpus, 3),
            "wasted": round(spend.wasted_s * price.gpus, 3),
        },
        "cost": bill(spend, price).to_dict(),
    }


def tenant_view(measures: Mapping[str, int], price: Price, factor: float | None) -> TenantSpend:
    """What a tenant used; `factor` is the paid seconds for each second whose tokens were kept."""
    own_s = measures.get("gpu_ms", 0) / 1000
    return {
        "jobs": measures.get("jobs", 0),
        "input_tokens": measures.get("input_tokens", 0),
        "output_tokens": measures.get("delivered_tokens", 0),
        "cache_hits": measures.get("cache_hits", 0),
        "saved_tokens": measures.get("saved_tokens", 0),
        "gpu_seconds": round(own_s * price.gpus, 3),
        "cost": round(price.of(own_s), 6),
        "cost_all_in": None if factor is None else round(price.of(own_s * factor), 6),
    }

"""`/v1/usage`: what a span of time cost, by model and by tenant.

Called by `api.wiring` and `torpor report`. It shows every tenant, so it is for those who read metrics,
not for a tenant's own admin; the figures come from the ledger that predictors keep. Must not know
how time was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

from api.auth.principal import Scope
from api.openapi import operation as docs
from api.openapi.doc import Doc
from api.openapi.examples import USAGE
from api.routes.jobs import json_response, whole_number
from api.routes.route import Call, Routes
from eventing.telemetry.cost import Price, bill, overhead, spend_of
from eventing.telemetry.metric.ledger import KEEP_SLICES_S, SLICE_S, Ledger, Rows, by_name


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageDeps:
    """What `/v1/usage` needs."""

    ledger: Ledger
    price: Price


routes: Routes[UsageDeps] = Routes()

_DAY_S: Final = 24 * 3600
_USAGE: Final = Doc(
    tag="usage",
    parameters=(
        docs.parameter(
            "since_s",
            {"type": "integer", "minimum": SLICE_S, "maximum": KEEP_SLICES_S, "default": _DAY_S},
            f"how far back, in seconds; known to {SLICE_S} s",
        ),
    ),
    answers={
        200: docs.answer("seconds, tokens and cost by model and by tenant", None, USAGE),
        **docs.problems(400, 401, 403, 503),
    },
)


@routes.operation("GET", "/v1/usage", scope=Scope.METRICS_READ, doc=_USAGE)
async def usage(call: Call[UsageDeps]) -> Response:
    """See what a span of time cost.

    Cost per 1,000 delivered tokens is given with everything in it: idle time, wakes and work that
    was thrown away. A tenant's `cost_all_in` is its own GPU time times what all GPU time cost.
    """
    query = call.request.query_params
    span_s = whole_number(query, "since_s", default=_DAY_S, least=SLICE_S, most=KEEP_SLICES_S)
    rows = await call.deps.ledger.since(span_s)
    view = usage_view(rows, call.deps.price)
    return json_response({"object": "usage", "since_s": span_s, **view})


def usage_view(rows: Rows, price: Price) -> dict[str, Any]:
    """The ledger's rows as shown."""
    models = by_name(rows, "model")
    everything: dict[str, int] = {}
    for measures in models.values():
        for name, amount in measures.items():
            everything[name] = everything.get(name, 0) + amount
    factor = overhead(spend_of(everything))
    return {
        "price_per_gpu_hour": price.per_gpu_hour,
        "gpus_per_replica": price.gpus,
        "total": _spend_view(everything, price),
        "models": {name: _spend_view(measures, price) for name, measures in models.items()},
        "tenants": {
            name: _tenant_view(measures, price, factor)
            for name, measures in by_name(rows, "tenant").items()
        },
    }


def _spend_view(measures: Mapping[str, int], price: Price) -> dict[str, Any]:
    spend = spend_of(measures)
    seconds = {
        "waking": spend.waking_s,
        "idle": spend.idle_s,
        "busy": spend.busy_s,
        "kept": spend.kept_s,
        "wasted": spend.wasted_s,
    }
    return {
        "jobs": spend.jobs,
        "input_tokens": spend.input_tokens,
        "output_tokens": spend.output_tokens,
        "gpu_seconds": {name: round(s * price.gpus, 3) for name, s in seconds.items()},
        "cost": bill(spend, price).to_dict(),
    }


def _tenant_view(measures: Mapping[str, int], price: Price, factor: float | None) -> dict[str, Any]:
    own_s = measures.get("gpu_ms", 0) / 1000
    return {
        "jobs": measures.get("jobs", 0),
        "input_tokens": measures.get("input_tokens", 0),
        "output_tokens": measures.get("delivered_tokens", 0),
        "gpu_seconds": round(own_s * price.gpus, 3),
        "cost": round(price.of(own_s), 6),
        "cost_all_in": None if factor is None else round(price.of(own_s * factor), 6),
    }

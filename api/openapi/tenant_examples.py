"""Examples of `/v1/tenant`, `/v1/keys`, `/v1/organization` and `/v1/audits` in the OpenAPI document."""

from collections.abc import Mapping
from typing import Any, Final

_AT_S: Final = 1_764_000_000
_KEY: Final = {
    "id": "0123456789abcdef",
    "object": "key",
    "name": "nightly reports",
    "scopes": ["jobs:read", "jobs:write"],
    "created_at": _AT_S,
    "expires_at": None,
    "requests_per_minute": 600,
    "budget_per_month": 50.0,
    "models": ["small", "large"],
}
_AUDIT: Final = {
    "id": "audit_0123456789abcdef01234567",
    "object": "audit",
    "job": "job_0123456789abcdef01234567",
    "model": "thinker",
    "critic": "judge",
    "critic_version": "5f1c2b7a90de",
    "status": "completed",
    "verdict": "supported",
    "reason": None,
    "created_at": _AT_S,
    "completed_at": _AT_S + 40,
}
_SPENT: Final = {
    "jobs": 3,
    "input_tokens": 36,
    "output_tokens": 15,
    "cache_hits": 1,
    "saved_tokens": 17,
    "gpu_seconds": 4.2,
    "cost": 0.002917,
    "cost_all_in": 0.025208,
}
_DAY: Final = {"object": "bucket", "start_time": 1_763_942_400, "end_time": 1_764_028_800}
_USED: Final = {
    "api_key_id": _KEY["id"],
    "model": None,
    "object": "organization.usage.completions.result",
    "input_tokens": 36,
    "input_cached_tokens": 12,
    "output_tokens": 15,
    "num_model_requests": 4,
    "project_id": None,
    "user_id": None,
    "batch": None,
    "thought_tokens": 9,
    "ended": {"completed": 3, "incomplete": 0, "failed": 0, "cancelled": 1},
    "dead_letters": 0,
    "saved": {
        "exact": 1,
        "coalesced": 0,
        "semantic": 0,
        "input_tokens": 12,
        "output_tokens": 5,
        "cost": 0.0,
    },
    "spent_beside": {
        "hedged": {"tokens": 0, "cost": 0.0},
        "retried": {"tokens": 0, "cost": 0.0},
        "repaired": {"tokens": 17, "cost": 0.0008},
        "cascaded": {"tokens": 0, "cost": 0.0},
    },
    "gpu_seconds": 4.2,
    "cost": 0.002917,
}
_COST: Final = {
    "api_key_id": None,
    "model": None,
    "object": "organization.costs.result",
    "amount": {"value": 0.002917, "currency": "usd"},
    "line_item": None,
    "project_id": None,
}
_LAST_PAGE: Final = {"object": "page", "has_more": False, "next_page": None}

TENANT_EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "Audit": _AUDIT,
    "AuditList": {
        "object": "list",
        "data": [_AUDIT],
        "first_id": _AUDIT["id"],
        "last_id": _AUDIT["id"],
        "has_more": False,
    },
    "Key": _KEY,
    "KeyList": {"object": "list", "data": [_KEY]},
    "KeyRequest": {"name": _KEY["name"], "scopes": _KEY["scopes"], "budget_per_month": 50},
    "KeyRotation": {"overlap_s": 3600},
    "Tenant": {
        "object": "tenant",
        "id": "acme",
        "key_id": _KEY["id"],
        "scopes": _KEY["scopes"],
        "limits": {
            "requests_per_minute": {"limit": 1000, "used": 12, "reset_s": 71.5},
            "jobs_in_flight": {"limit": 0, "used": 3, "reset_s": None},
            "file_bytes": {"limit": 10_000_000_000, "used": 1234, "reset_s": None},
        },
        "budgets": [
            {
                "of": "tenant",
                "period": "2026-11",
                "budget": 500.0,
                "soft_budget": 400.0,
                "spent": 112.5,
                "held": 0.75,
                "left": 386.75,
                "currency": "usd",
                "resets_s": 432_000.0,
            }
        ],
    },
    "UsagePage": {**_LAST_PAGE, "data": [{**_DAY, "results": [_USED]}]},
    "CostPage": {**_LAST_PAGE, "data": [{**_DAY, "results": [_COST]}]},
    "TenantUsage": {
        "object": "tenant.usage",
        "since_s": 86_400,
        "price_per_gpu_hour": 2.5,
        "total": _SPENT,
        "series": [{"at_ms": _AT_S * 1000, **_SPENT}],
    },
}

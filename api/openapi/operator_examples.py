"""Examples of `/v1/overview` and `/v1/usage` in the OpenAPI document."""

from collections.abc import Mapping
from typing import Any, Final

_MODEL: Final = "smollm2-135m-instruct"
_AT_MS: Final = 1_764_000_000_000
_OVERVIEW: Final = {
    "object": "overview",
    "now_ms": _AT_MS,
    "models": [
        {
            "model": _MODEL,
            "queue": {
                "waiting": {"interactive": 1, "default": 0, "batch": 40},
                "in_delivery": 2,
                "retrying": 0,
                "settled_per_minute": 12.5,
                "expected_wait_s": 196.8,
                "oldest_ms": _AT_MS - 900,
            },
            "replicas": [],
            "providers": [
                {
                    "model": _MODEL,
                    "endpoint": "large-4 at api.provider.example",
                    "breaker": "closed",
                    "pause_s": 0.0,
                    "requests": {"per_minute": 500.0, "left": 420.0},
                    "tokens": None,
                }
            ],
        }
    ],
}
_BILL: Final = {
    **{"total": 0.025208, "busy": 0.002917, "idle": 0.020833, "waking": 0.001458, "wasted": 0.0},
    "per_job": 0.008403,
    "per_1k_output_tokens": 1.680556,
    "per_1k_output_tokens_busy_only": 0.194444,
}
_SPENT: Final = {
    "jobs": 3,
    "input_tokens": 36,
    "output_tokens": 15,
    "cache_hits": 1,
    "saved_tokens": 17,
    "stood_in": 1,
    "withheld": 0,
    "asked_again": 0,
    "gpu_seconds": {"waking": 2.1, "idle": 30.0, "busy": 4.2, "kept": 4.2, "wasted": 0.0},
    "cost": _BILL,
}
_USAGE_REPORT: Final = {
    "object": "usage",
    "since_s": 86_400,
    "price_per_gpu_hour": 2.5,
    "gpus_per_replica": 1,
    "total": _SPENT,
    "models": {_MODEL: _SPENT},
    "services": {
        "api_cpu_seconds": 41.2,
        "store_cpu_seconds": 12.9,
        "store_commands": 184_203,
        "cost": 0.000751,
    },
    "providers_cost": 0.42,
    "cost_per_1k_output_tokens": {
        "gpu": 1.680556,
        "providers": 28.0,
        "services": 0.050067,
        "total": 29.730623,
    },
    "audits": {
        _MODEL: {
            "critic": "judge",
            "kappa": 0.81,
            "audited_jobs": 412,
            "rate": 0.094,
            "low": 0.031,
            "high": 0.158,
        }
    },
    "tenants": {
        "acme": {
            "jobs": 3,
            "input_tokens": 36,
            "output_tokens": 15,
            "cache_hits": 1,
            "saved_tokens": 17,
            "gpu_seconds": 4.2,
            "cost": 0.002917,
            "cost_all_in": 0.025208,
        }
    },
    "series": [
        {
            "at_ms": _AT_MS,
            "jobs": 3,
            "input_tokens": 36,
            "output_tokens": 15,
            "gpu_seconds": _SPENT["gpu_seconds"],
            "cost": _BILL["total"],
        }
    ],
}

OPERATOR_EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "Overview": _OVERVIEW,
    "Usage": _USAGE_REPORT,
}

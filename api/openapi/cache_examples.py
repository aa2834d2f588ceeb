"""Examples of `/v1/cache` in the OpenAPI document."""

from collections.abc import Mapping
from typing import Any, Final

CACHE_EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "CacheInvalidation": {"dry_run": False, "model": "smollm2-135m-instruct"},
    "Invalidated": {
        "object": "cache.invalidation",
        "dry_run": False,
        "model": "smollm2-135m-instruct",
        "entries": 12,
    },
    "Forgotten": {
        "id": "cache_0123456789abcdef0123456789abcdef0123456789abcdef",
        "object": "cache.entry",
        "deleted": True,
    },
}

"""Metrics of the semantic cache, summed over tenants; a tenant's shadow phase is in the store. What it saves is counted
with the other caches (`torpor_cache_saved_tokens_total`).
"""

from typing import Final

from prometheus_client import Counter

LOOKUPS: Final = Counter(
    "torpor_semantic_cache_lookups_total",
    "Look-ups of the semantic cache, by what became of them and the rule that matched.",
    ["outcome", "rule"],
)
COMPLAINTS: Final = Counter(
    "torpor_semantic_cache_complaints_total",
    "Answers of the semantic cache that their caller refused within a minute.",
    ["model"],
)
COMPARED: Final = Counter(
    "torpor_semantic_cache_compared_total",
    "Answers that the semantic cache would have given, compared with fresh ones.",
    ["rule", "result"],
)

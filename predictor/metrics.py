"""Prometheus metrics of a predictor; vLLM's own are in the same registry.

Called by the modules where the events happen. Names contain their units. Labels never contain a job, a tenant or
text.
"""

from collections.abc import Mapping
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2)

COLD_START: Final = Gauge(
    "torpor_cold_start_seconds", "How long each phase of this start took.", ["phase"]
)
DELIVERIES: Final = Counter(
    "torpor_predictor_deliveries_total", "Deliveries received, by outcome.", ["outcome"]
)
ATTEMPTS: Final = Counter(
    "torpor_attempts_total", "Attempts that ended here, by outcome.", ["outcome"]
)
IN_FLIGHT: Final = Gauge("torpor_predictor_in_flight", "Slots of the batch that are taken.")
TOKENS_MADE: Final = Counter(
    "torpor_tokens_generated_total", "Tokens that the engine generated for jobs."
)
TOKENS_RESUMED: Final = Counter(
    "torpor_tokens_resumed_total", "Tokens of earlier attempts that were not generated again."
)
TURN_PREFIXES: Final = Counter(
    "torpor_turn_prefixes_total",
    "Later turns of a tool loop, by whether their prompt began with the ids of the turn before.",
    ["kept"],
)
TOKENS_LOST: Final = Counter(
    "torpor_tokens_lost_total", "Tokens generated here that were never checkpointed."
)
TOKENS_REGENERATED: Final = Counter(
    "torpor_tokens_regenerated_total",
    "Checkpointed tokens generated again, since their request cannot be continued.",
)
FENCED_WRITES: Final = Counter(
    "torpor_fenced_writes_total",
    "Writes that the store refused: the job had ended or has another attempt.",
)
FIRST_TOKEN: Final = Histogram(
    "torpor_time_to_first_token_seconds",
    "From the start of an attempt to its first new token.",
    buckets=_SECONDS,
)
PER_TOKEN: Final = Histogram(
    "torpor_time_per_output_token_seconds",
    "Mean gap between the new tokens of an attempt.",
    buckets=_TOKEN_SECONDS,
)
FLUSH: Final = Histogram(
    "torpor_checkpoint_seconds", "How long one write of tokens took.", buckets=_SECONDS
)
ENGINE_UP: Final = Gauge("torpor_engine_up", "1 while the engine can serve.")
UPSTREAM_CALLS: Final = Counter(
    "torpor_upstream_calls_total", "Calls to providers, by how they went.", ["result"]
)
UPSTREAM_HEDGES: Final = Counter(
    "torpor_upstream_hedges_total", "Second calls that were sent beside a late one."
)
UPSTREAM_DENIED: Final = Counter(
    "torpor_upstream_denied_total",
    "Calls that were not sent to a provider: its limit is used up, or its breaker open.",
    ["reason"],
)

_KEPT: Final = {
    "output_tokens": TOKENS_MADE,
    "resumed_tokens": TOKENS_RESUMED,
    "lost_tokens": TOKENS_LOST,
    "regenerated_tokens": TOKENS_REGENERATED,
}


def kept_counters() -> Mapping[str, int]:
    """Counters of this process that the ledger keeps after its end, by their names there."""
    return {name: _value_of(counter) for name, counter in _KEPT.items()}


def _value_of(counter: Counter) -> int:
    """Read from the counter itself: the registry would collect all families, vLLM's too."""
    (family,) = counter.collect()
    return int(family.samples[0].value)

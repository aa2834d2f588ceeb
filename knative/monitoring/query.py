"""Queries that dashboard and rules share, so that an alert is about the figures on the dashboard. Pure."""

from typing import Final

WAITING: Final = "max by (model, lane) (torpor_queue_depth)"
OLDEST: Final = "max by (model, lane) (torpor_queue_oldest_age_seconds)"
EXPECTED_WAIT: Final = "max by (model, lane) (torpor_queue_expected_wait_seconds)"
RUNNING: Final = "max by (model) (torpor_jobs_in_flight)"
READY: Final = "max by (model) (torpor_replicas_ready)"
BREAKER_OPEN: Final = "max by (model, endpoint) (torpor_provider_breaker_open)"
WAKING: Final = "max by (model) (torpor_replicas_waking)"


def quantile(share: float, name: str, by: str, window: str = "5m", matching: str = "") -> str:
    """A percentile of a histogram, over all processes that count it."""
    rate = f"rate({name}_bucket{matching}[{window}])"
    return f"histogram_quantile({share}, sum by (le, {by}) ({rate}))"


def once(name: str, by: str, window: str, matching: str = "") -> str:
    """The rate of a counter that every instance shows alike."""
    return f"max by ({by}) (rate({name}{matching}[{window}]))"


def cost_per_hour(by: str = "state", window: str = "1h") -> str:
    """Money an hour."""
    return f"3600 * sum by ({by}) ({once('torpor_gpu_cost_total', 'model, state', window)})"


def cost_per_1k_tokens(window: str = "1h") -> str:
    """Money for 1,000 delivered tokens, idle time, wakes and waste included."""
    cost = f"sum({once('torpor_gpu_cost_total', 'model, state', window)})"
    tokens = once("torpor_tokens_total", "model", window, '{kind="delivered"}')
    return f"1000 * {cost} / sum({tokens})"


def wasted_share(window: str = "1h") -> str:
    """The share of busy GPU time without kept tokens."""
    busy = once("torpor_gpu_seconds_total", "model", window, '{state="busy"}')
    kept = once("torpor_gpu_work_seconds_total", "model", window, '{kind="kept"}')
    return f"clamp_min(1 - sum({kept}) / sum({busy}), 0)"


def gpus_by_state(window: str = "5m") -> str:
    """How many GPUs were busy, idle and waking."""
    return f"sum by (state) ({once('torpor_gpu_seconds_total', 'model, state', window)})"

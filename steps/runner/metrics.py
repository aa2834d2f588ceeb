"""Metrics of the steps process. The time that a step waits for its process is in its queue's metrics as well."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

RUNS: Final = Counter(
    "torpor_step_runs_total",
    "Runs of steps before the predictor, by how they ended.",
    ["step", "outcome"],
)
QUEUE_SECONDS: Final = Histogram(
    "torpor_step_queue_seconds",
    "How long a step waited since it was next, until its first run began.",
    ["step"],
    buckets=_SECONDS,
)
RUN_SECONDS: Final = Histogram(
    "torpor_step_run_seconds",
    "How long runs of steps took, by how they ended.",
    ["step", "outcome"],
    buckets=_SECONDS,
)
IN_FLIGHT: Final = Gauge("torpor_step_runs_in_flight", "Runs of steps under way.")

"""What the dashboard shows: rows of panels, waits at the top, cost at the bottom. Pure.

Called by `knative.monitoring.dashboard`, which lays them out.
"""

from typing import Final

from knative.monitoring import query
from knative.monitoring.answer_row import ANSWERS
from knative.monitoring.panel import MONEY, Panel, Row, percentiles, stat
from knative.monitoring.query import once, quantile
from knative.monitoring.tool_row import TOOLS

ROWS: Final[tuple[Row, ...]] = (
    (
        "Now",
        (
            stat("Waiting", "short", f"sum({query.WAITING})", "Jobs in the queue, all lanes."),
            stat("Oldest", "s", f"max({query.OLDEST})", "How long the oldest has waited."),
            stat("In flight", "short", f"sum({query.RUNNING})", "Jobs that predictors run."),
            stat("Ready", "short", f"sum({query.READY})", "Replicas that can serve."),
            stat(
                "First token, p95",
                "s",
                f"max({quantile(0.95, 'torpor_ttft_seconds', 'model')})",
                "From submit to first token, over five minutes; the slowest model.",
            ),
            stat(
                "Dead letters, a day",
                "short",
                "sum(increase(torpor_dead_letters_total[1d]))",
                "Jobs that failed for good: look at each, and redrive or discard it.",
            ),
        ),
    ),
    (
        "What users wait for",
        (
            Panel(
                "Waiting",
                "short",
                ((query.WAITING, "{{model}} {{lane}}"),),
                "Jobs in the queue. Interactive ones are delivered first, batch ones last.",
            ),
            Panel(
                "Oldest waiting job",
                "s",
                ((query.OLDEST, "{{model}} {{lane}}"),),
                "Age of the oldest job in the queue; it grows while nothing is delivered.",
            ),
            Panel(
                "Expected wait",
                "s",
                ((query.EXPECTED_WAIT, "{{model}} {{lane}}"),),
                "Waiting jobs divided by the pace at which jobs end.",
            ),
            Panel(
                "Queue wait",
                "s",
                percentiles("torpor_queue_wait_seconds"),
                "From submit to the beginning of the first attempt.",
            ),
            Panel(
                "Time to the first token",
                "s",
                percentiles("torpor_ttft_seconds"),
                "From submit; a cold start is in it.",
            ),
            Panel("Total time", "s", percentiles("torpor_job_seconds"), "From submit to end."),
            Panel(
                "Time per output token",
                "s",
                percentiles("torpor_job_time_per_output_token_seconds"),
                "After the first token. It grows with the batch.",
            ),
            Panel(
                "Jobs ended a second",
                "ops",
                (
                    (
                        "sum by (model, state) (rate(torpor_jobs_ended_total[5m]))",
                        "{{model}} {{state}}",
                    ),
                ),
                "By the state they ended in.",
            ),
            Panel(
                "Jobs answered by the cache, a second",
                "ops",
                (
                    (
                        'sum by (model, kind) (rate(torpor_cache_jobs_total{status="hit"}[5m]))',
                        "{{model}} {{kind}}",
                    ),
                    (
                        'sum by (model) (rate(torpor_cache_jobs_total{status="miss"}[5m]))',
                        "{{model}} misses",
                    ),
                ),
                "`exact`: answered before; `coalesced`: the same call was running.",
            ),
            Panel(
                "Tokens saved a second",
                "ops",
                (
                    (
                        "sum by (model, kind) (rate(torpor_cache_saved_tokens_total[5m]))",
                        "{{model}} {{kind}}",
                    ),
                ),
                "Of answers that were served again and not generated.",
            ),
            Panel(
                "Steps before the predictor, seconds",
                "s",
                (
                    (
                        "histogram_quantile(0.95, sum by (step, le) "
                        "(rate(torpor_step_run_seconds_bucket[5m])))",
                        "{{step}} p95 run",
                    ),
                    (
                        "histogram_quantile(0.95, sum by (step, le) "
                        "(rate(torpor_step_queue_seconds_bucket[5m])))",
                        "{{step}} p95 wait",
                    ),
                ),
                "A wait includes the start of the process from zero.",
            ),
            Panel(
                "Runs of steps a second",
                "ops",
                (
                    (
                        "sum by (step, outcome) (rate(torpor_step_runs_total[5m]))",
                        "{{step}} {{outcome}}",
                    ),
                ),
                "`unavailable` is given back without a try; `failed` costs one.",
            ),
            Panel(
                "Answers of the api by status",
                "ops",
                (("sum by (status) (rate(torpor_api_requests_total[5m]))", "{{status}}"),),
                "429 is a limit, 503 that store or broker are away; both say when to come again.",
            ),
        ),
    ),
    (
        "What works on it",
        (
            Panel(
                "Replicas and jobs",
                "short",
                (
                    (query.RUNNING, "{{model}} jobs in flight"),
                    (query.READY, "{{model}} ready"),
                    (query.WAKING, "{{model}} waking"),
                ),
                "What scaling follows: jobs in flight, replicas that serve, replicas that start.",
            ),
            Panel(
                "Wake by phase, p95",
                "s",
                ((quantile(0.95, "torpor_wake_seconds", "model, phase", "1h"), "{{phase}}"),),
                "Where the time of a cold start goes, over an hour.",
            ),
            Panel(
                "Tokens a second",
                "ops",
                ((once("torpor_tokens_total", "model, kind", "1m"), "{{model}} {{kind}}"),),
                "Delivered tokens were read by a client; the rest was discarded by a restart.",
            ),
            Panel(
                "Attempts a second",
                "ops",
                (
                    (
                        "sum by (model, outcome) (rate(torpor_job_attempts_total[5m]))",
                        "{{model}} {{outcome}}",
                    ),
                ),
                "By outcome. Several attempts a job mean that predictors are lost or handed over.",
            ),
            Panel(
                "Retries, lost leases, refused writes an hour",
                "short",
                (
                    (
                        "sum by (model) (increase(torpor_job_retries_total[1h]))",
                        "{{model}} retries",
                    ),
                    ("sum by (model) (increase(torpor_lease_losses_total[1h]))", "{{model}} lost"),
                    (
                        "sum by (model) (increase(torpor_refused_writes_total[1h]))",
                        "{{model}} refused",
                    ),
                ),
                "A lost lease is a predictor that fell silent; a refused write is one that came back after that.",
            ),
            Panel(
                "Deliveries a second",
                "ops",
                (
                    (
                        "sum by (trigger, outcome) (rate(torpor_deliveries_total[5m]))",
                        "{{trigger}} {{outcome}}",
                    ),
                ),
                "Calls of the broker to predictors, by outcome.",
            ),
            Panel(
                "Prompts that share a start",
                "ops",
                (
                    (
                        "sum by (trigger, result) (rate(torpor_prefix_claims_total[5m]))",
                        "{{trigger}} {{result}}",
                    ),
                    (
                        "sum by (trigger) (rate(torpor_claim_passes_total[5m]))",
                        "{{trigger}} passed over",
                    ),
                    (
                        "sum by (trigger, taken_by) (rate(torpor_left_jobs_total[5m]))",
                        "{{trigger}} left, taken by {{taken_by}}",
                    ),
                ),
                "Claims by whether the engine had seen the start of the prompt; jobs passed over or left for it.",
            ),
            Panel(
                "Dead letters an hour",
                "short",
                (("sum by (trigger) (increase(torpor_dead_letters_total[1h]))", "{{trigger}}"),),
                "Events that the broker gave up.",
            ),
            Panel(
                "Retried events",
                "short",
                (("max by (queue) (torpor_queue_retrying)", "{{queue}}"),),
                "Events that wait for their next delivery.",
            ),
            Panel(
                "Store",
                "short",
                (
                    ("min(torpor_store_up)", "up"),
                    ("max(torpor_store_keys)", "keys"),
                    ("max(torpor_store_memory_bytes)", "bytes"),
                ),
                "Whether Redis or Valkey answers, and what it holds.",
            ),
        ),
    ),
    ANSWERS,
    TOOLS,
    (
        "What it costs",
        (
            Panel(
                "GPUs by what they do",
                "short",
                (
                    (
                        query.gpus_by_state(),
                        "{{state}}",
                    ),
                ),
                "Every GPU that is paid for is busy, idle or waking.",
            ),
            Panel(
                "Cost an hour",
                MONEY,
                ((query.cost_per_hour(window="15m"), "{{state}}"),),
                "By what the GPUs did. Without a price it is 0.",
            ),
            Panel(
                "Cost of 1,000 delivered tokens, everything in",
                MONEY,
                ((query.cost_per_1k_tokens(), "all in"),),
                "Idle time, cold starts and wasted work included.",
            ),
            Panel(
                "What jobs cost an hour, by what was paid for",
                MONEY,
                (("3600 * sum by (kind) (rate(torpor_cost_total[15m]))", "{{kind}}"),),
                "Of ended jobs: answers, and what was spent beside them: second calls, answers that broke off, or "
                "were made again.",
            ),
            Panel(
                "Wasted share of busy time",
                "percentunit",
                ((query.wasted_share(), "wasted"),),
                "Busy GPU time whose tokens were discarded.",
            ),
        ),
    ),
)

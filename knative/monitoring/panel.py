"""What the dashboard shows: rows of panels, waits at the top, cost at the bottom. Pure.

Called by `knative.monitoring.dashboard`, which lays them out.
"""

from dataclasses import dataclass
from typing import Final

from knative.monitoring import query
from knative.monitoring.query import once, quantile


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: title, unit as Grafana names it, (query, legend) pairs, and what it tells. `is_stat` shows the last
    value alone.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    tells: str
    is_stat: bool = False


def _percentiles(name: str, by: str = "model") -> tuple[tuple[str, str], ...]:
    return tuple(
        (quantile(share, name, by), f"{{{{{by}}}}} p{share * 100:g}") for share in (0.5, 0.95, 0.99)
    )


def _stat(title: str, unit: str, text: str, tells: str) -> Panel:
    return Panel(title, unit, ((text, ""),), tells, is_stat=True)


_MONEY: Final = "currency:¤"
"""Money of the operator, who set the price: `TORPOR_GPU_PRICE_PER_HOUR` has no currency."""

ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "Now",
        (
            _stat("Waiting", "short", f"sum({query.WAITING})", "Jobs in the queue, all lanes."),
            _stat("Oldest", "s", f"max({query.OLDEST})", "How long the oldest has waited."),
            _stat("In flight", "short", f"sum({query.RUNNING})", "Jobs that predictors run."),
            _stat("Ready", "short", f"sum({query.READY})", "Replicas that can serve."),
            _stat(
                "First token, p95",
                "s",
                f"max({quantile(0.95, 'torpor_ttft_seconds', 'model')})",
                "From submit to first token, over five minutes; the slowest model.",
            ),
            _stat(
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
                _percentiles("torpor_queue_wait_seconds"),
                "From submit to the beginning of the first attempt.",
            ),
            Panel(
                "Time to the first token",
                "s",
                _percentiles("torpor_ttft_seconds"),
                "From submit; a cold start is in it.",
            ),
            Panel("Total time", "s", _percentiles("torpor_job_seconds"), "From submit to end."),
            Panel(
                "Time per output token",
                "s",
                _percentiles("torpor_job_time_per_output_token_seconds"),
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
    (
        "Who answers, and what is shown",
        (
            Panel(
                "Providers kept from calls",
                "short",
                ((query.BREAKER_OPEN, "{{model}}: {{endpoint}}"),),
                "1 while a circuit breaker is open, or half open: its calls go to what stands in.",
            ),
            Panel(
                "Left of the providers' limits",
                "percentunit",
                (
                    (
                        "max by (model, endpoint, of) (torpor_provider_left) / "
                        "max by (model, endpoint, of) (torpor_provider_limit_per_minute)",
                        "{{endpoint}} {{of}}",
                    ),
                ),
                "At 0 jobs wait in the queue for the provider, batch first.",
            ),
            Panel(
                "Pause that a provider asked for",
                "s",
                (
                    (
                        "max by (model, endpoint) (torpor_provider_throttled_seconds)",
                        "{{model}}: {{endpoint}}",
                    ),
                ),
                "From a 429 with a time to come again.",
            ),
            Panel(
                "Calls to providers a second",
                "ops",
                (
                    ("sum by (result) (rate(torpor_upstream_calls_total[5m]))", "{{result}}"),
                    (
                        "sum by (reason) (rate(torpor_upstream_denied_total[5m]))",
                        "not sent: {{reason}}",
                    ),
                    ("sum(rate(torpor_upstream_hedges_total[5m]))", "hedges"),
                ),
                "Of the predictors that run. A hedge is a second call beside a late one.",
            ),
            Panel(
                "Answers of a stand-in a second",
                "ops",
                (
                    (
                        "sum by (model, reason) (rate(torpor_fallback_jobs_total[5m]))",
                        "{{model}} {{reason}}",
                    ),
                ),
                "Why another endpoint than the first one answered; `late` is a hedge that won.",
            ),
            Panel(
                "Tiers by reason, a second",
                "ops",
                (
                    (
                        "sum by (model, answered, reason) (rate(torpor_routed_jobs_total[5m]))",
                        "{{model}} to {{answered}}: {{reason}}",
                    ),
                ),
                "The model that a public name's rule chose; `holdout` measures what the rule costs.",
            ),
            Panel(
                "Regret of the tiers' rule",
                "percentunit",
                (
                    (
                        'sum by (model, tier) (increase(torpor_tier_outcomes_total{group="chosen",outcome="bad"}[1d]))'
                        ' / sum by (model, tier) (increase(torpor_tier_outcomes_total{group="chosen"}[1d])) - '
                        'sum by (model, tier) (increase(torpor_tier_outcomes_total{group="holdout",outcome="bad"}[1d]))'
                        ' / sum by (model, tier) (increase(torpor_tier_outcomes_total{group="holdout"}[1d]))',
                        "{{model}}: {{tier}}",
                    ),
                ),
                "Bad outcomes at the tier that was chosen, less those of the holdout at the best one. Of a few hundred "
                "jobs it is mostly chance.",
            ),
            Panel(
                "Answers withheld a second",
                "ops",
                (
                    (
                        "sum by (model, by) (rate(torpor_withheld_jobs_total[5m]))",
                        "{{model}}: {{by}}",
                    ),
                ),
                "No caller was shown them. `unavailable`: a check was down until the deadline.",
            ),
            Panel(
                "Answers asked again a second",
                "ops",
                (
                    (
                        'sum by (model) (rate(torpor_job_attempts_total{outcome="rejected"}[5m]))',
                        "{{model}}",
                    ),
                ),
                "Repair rounds: the answer was not valid, and the model was asked again.",
            ),
            Panel(
                "Refused by a limit, a second",
                "ops",
                (
                    ("sum by (limit) (rate(torpor_api_limited_total[5m]))", "{{limit}}"),
                    (
                        "sum by (of) (rate(torpor_api_budget_warnings_total[5m]))",
                        "budget of a {{of}} almost spent",
                    ),
                ),
                "`budget_per_month` is money: of a tenant or of a key.",
            ),
        ),
    ),
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
                _MONEY,
                ((query.cost_per_hour(window="15m"), "{{state}}"),),
                "By what the GPUs did. Without a price it is 0.",
            ),
            Panel(
                "Cost of 1,000 delivered tokens, everything in",
                _MONEY,
                ((query.cost_per_1k_tokens(), "all in"),),
                "Idle time, cold starts and wasted work included.",
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

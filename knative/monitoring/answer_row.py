"""The row of the dashboard about who answers, and what is shown of it. Pure."""

from typing import Final

from knative.monitoring import query
from knative.monitoring.panel import Panel, Row

ANSWERS: Final[Row] = (
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
            "Models that do not start",
            "short",
            (("max by (model) (torpor_model_not_starting)", "{{model}}"),),
            "1 while no attempt of a model begins and another stands in for it.",
        ),
        Panel(
            "Answers that their passages do not support",
            "percentunit",
            (
                ("max by (model) (torpor_hallucination_rate)", "{{model}}"),
                ("max by (model) (torpor_hallucination_rate_low)", "{{model}}, at least"),
                ("max by (model) (torpor_hallucination_rate_high)", "{{model}}, at most"),
            ),
            "By audits, corrected for the critic's errors; absent while the critic cannot be trusted.",
        ),
        Panel(
            "Audits",
            "short",
            (
                ("max by (critic) (torpor_audits_waiting)", "{{critic}} waiting"),
                ("max by (critic) (torpor_critic_kappa)", "{{critic}} kappa"),
                ("max(torpor_audit_gpu_share)", "share of GPU time"),
            ),
            "Kappa below 0.6: the critic and the golden set disagree, and no rate is given.",
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
)

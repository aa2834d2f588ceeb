"""Prometheus metrics of ended jobs: waits, time to the first token, tokens, attempts, dead letters.

Called by the api for every ended job (`eventing.live.ended`), whichever predictor ran it and whether that still
runs. Each job is counted once, from its record in store time. Labels are models, lanes, states and fixed strings;
never a tenant, a job or text.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Final

import structlog
from prometheus_client import Counter, Histogram

from eventing.errors import StoreUnavailable
from eventing.job.cache.cache import CacheKind, CacheStatus, CacheUse
from eventing.job.job import REJECTED, Job, JobId, JobState, Lane
from eventing.telemetry.cost import ANSWER, KINDS, MICRO, UNPRICED, Price, spent_tokens
from eventing.telemetry.metric import regret, routing
from eventing.telemetry.metric.family import DEAD_LETTERS
from eventing.telemetry.metric.ledger import Ledger
from eventing.telemetry.metric.series import labelled

_log = structlog.get_logger()

_WAITS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400)
_PACES: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2)

_ended = Counter("torpor_jobs_ended_total", "Jobs that ended.", ["model", "lane", "state"])
_wait = Histogram(
    "torpor_queue_wait_seconds",
    "From the submit to the start of the first attempt, of ended jobs.",
    ["model", "lane"],
    buckets=_WAITS,
)
_first = Histogram(
    "torpor_ttft_seconds",
    "From the submit to the first token, of ended jobs.",
    ["model", "lane"],
    buckets=_WAITS,
)
_pace = Histogram(
    "torpor_job_time_per_output_token_seconds",
    "Mean time between output tokens, from the first to the end of the job.",
    ["model"],
    buckets=_PACES,
)
_total = Histogram(
    "torpor_job_seconds",
    "From the submit to the end, of ended jobs.",
    ["model", "lane"],
    buckets=_WAITS,
)
_attempts = Counter(
    "torpor_job_attempts_total",
    "Attempts of ended jobs, by how they ended; `lost` is a lease that lapsed.",
    ["model", "outcome"],
)
_retries = Counter(
    "torpor_job_retries_total", "Attempts after the first, of ended jobs.", ["model"]
)
_lost = Counter(
    "torpor_lease_losses_total", "Leases that lapsed before their job had ended.", ["model"]
)
_refused = Counter(
    "torpor_refused_writes_total",
    "Writes of outdated attempts that the store refused (fencing), of ended jobs.",
    ["model"],
)
_cache = Counter(
    "torpor_cache_jobs_total",
    "Ended jobs that asked the exact or the semantic cache, by how it served them.",
    ["model", "status", "kind"],
)
_saved = Counter(
    "torpor_cache_saved_tokens_total",
    "Tokens of answers that were served again and not generated.",
    ["model", "kind"],
)

_cost = Counter(
    "torpor_cost_total",
    "What ended jobs cost, by what was paid for: the answer, or what was spent beside it.",
    ["model", "kind"],
)
_beside = Counter(
    "torpor_cost_beside_tokens_total",
    "Tokens of ended jobs that were spent beside their answers.",
    ["model", "kind"],
)

_OUTCOMES: Final = frozenset(
    {
        *("completed", "incomplete", "cancelled", "handover", "failure", "lost", "invalid"),
        *("expired", REJECTED),
    }
)
"""Attempt outcomes used as labels; every error code is counted as `failed`, since an engine could make up any
number of them.
"""
_REMEMBERED: Final = 1024
_CACHE_SERIES: Final = (
    *((CacheStatus.HIT, str(kind)) for kind in CacheKind),
    (CacheStatus.MISS, ""),
    (CacheStatus.BYPASS, ""),
)


class JobMetrics:
    """Listens for ended jobs (at least once each) and counts each once."""

    def __init__(
        self,
        models: Collection[str],
        ledger: Ledger | None = None,
        costs_of: Callable[[Job], Mapping[str, float]] | None = None,
        gpu_price: Price = UNPRICED,
    ) -> None:
        """`costs_of` gives what a job cost, by what was paid for, its GPU time at `gpu_price` included."""
        self._gpu_price = gpu_price
        self._models = frozenset(models)
        self._costs_of = costs_of
        self._ledger = ledger
        self._seen: OrderedDict[tuple[JobId, int, int], None] = OrderedDict()
        for model in self._models:
            start_at_zero(model)

    async def ended(self, job: Job) -> None:
        """Count the job. Never delays the result: with the store unavailable, the ledger misses one entry."""
        key = (job.id, job.attempt, job.finished_ms)
        if key in self._seen:
            return
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        # An event may name any model; only configured ones become labels.
        model = job.request.model if job.request.model in self._models else "other"
        observe(job, model)
        routing.observe(job, model, self._models)
        costs = self._costs_of(job) if self._costs_of else {}
        _observe_cost(job, model, costs)
        regret.observe(job, model, self._models)
        if self._ledger is not None:
            await self._post(self._ledger, job, model, self._provider_cost(job, costs))

    def _provider_cost(self, job: Job, costs: Mapping[str, float]) -> int:
        """What providers take for the job's tokens, in millionths."""
        cost = sum(costs.values())
        return round((cost - self._gpu_price.of(job.gpu_ms / 1000)) * MICRO) if cost else 0

    async def _post(self, ledger: Ledger, job: Job, model: str, provider_cost: int) -> None:
        measures = {
            "jobs": 1,
            "input_tokens": _usage(job, "prompt_tokens"),
            "delivered_tokens": _usage(job, "completion_tokens"),
            **routing.measures(job),
        }
        if job.cache is not None and job.cache.is_hit:
            measures |= {"cache_hits": 1, "saved_tokens": _saved_tokens(job.cache)}
        if provider_cost:
            measures["provider_cost"] = provider_cost
        try:
            await ledger.post({("model", model): measures, ("tenant", job.tenant): measures})
        except StoreUnavailable as error:
            _log.warning("not posted", action="ledger", job_id=job.id, reason=error.code)


def _observe_cost(job: Job, model: str, costs: Mapping[str, float]) -> None:
    for kind, amount in costs.items():
        labelled(_cost, model, kind).inc(amount)
    for spent in spent_tokens(job.usage, job.to_run.model)[1:]:
        labelled(_beside, model, spent.kind).inc(spent.input_tokens + spent.output_tokens)


def start_at_zero(model: str) -> None:
    """Create the series at zero before the first job: Prometheus takes the first sample of a series for its start,
    and would otherwise miss the first dead letter and the first wait for a start.
    """
    DEAD_LETTERS.labels(f"requests-{model}")
    for counter in (_retries, _lost, _refused):
        counter.labels(model)
    for lane in Lane:
        for state in JobState:
            if state.is_terminal:
                _ended.labels(model, lane, str(state))
        for times in (_wait, _first, _total):
            times.labels(model, lane)
    _pace.labels(model)
    for kind in KINDS:
        _cost.labels(model, kind)
        if kind != ANSWER:
            _beside.labels(model, kind)
    _attempts.labels(model, REJECTED)
    routing.start_at_zero(model)
    for status, kind in _CACHE_SERIES:
        _cache.labels(model, status, kind)
        if kind:
            _saved.labels(model, kind)


def observe(job: Job, model: str) -> None:
    """Count an ended job in this process."""
    lane = str(job.lane)
    labelled(_ended, model, lane, str(job.state)).inc()
    if job.cache is not None:
        kind = str(job.cache.kind or "")
        labelled(_cache, model, str(job.cache.status), kind).inc()
        labelled(_saved, model, kind).inc(_saved_tokens(job.cache))
    if job.cache is None or not job.cache.is_hit:  # a hit waits for no predictor
        _observe_times(job, model, lane)
    for record in job.history:
        outcome = record.outcome if record.outcome in _OUTCOMES else "failed"
        labelled(_attempts, model, outcome).inc()
        if record.outcome == "lost":
            labelled(_lost, model).inc()
    if len(job.history) > 1:
        labelled(_retries, model).inc(len(job.history) - 1)
    if job.refused_writes:
        labelled(_refused, model).inc(job.refused_writes)
    if job.is_dead_letter:
        labelled(DEAD_LETTERS, f"requests-{model}").inc()


def _observe_times(job: Job, model: str, lane: str) -> None:
    if job.started_ms:
        labelled(_wait, model, lane).observe((job.started_ms - job.created_ms) / 1000)
    if job.first_token_ms:
        labelled(_first, model, lane).observe((job.first_token_ms - job.created_ms) / 1000)
        tokens = _usage(job, "completion_tokens")
        if tokens > 1:
            spent_s = (job.finished_ms - job.first_token_ms) / 1000
            labelled(_pace, model).observe(spent_s / (tokens - 1))
    labelled(_total, model, lane).observe((job.finished_ms - job.created_ms) / 1000)


def _saved_tokens(use: CacheUse) -> int:
    value = (use.saved_usage or {}).get("total_tokens")
    return value if isinstance(value, int) else 0


def _usage(job: Job, name: str) -> int:
    value = (job.usage or {}).get(name)
    return value if isinstance(value, int) else 0

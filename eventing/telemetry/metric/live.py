"""Prometheus metrics of replicas, tokens and cost, read from the ledger in the store.

Run by the api, which runs also when no predictor does. Every api process shows the same figures of the same store,
so take `max`, never `sum`, over instances. Must not know the scraper.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from prometheus_client import Histogram
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from eventing.redis.connection import failures_named
from eventing.replica import Replica, ReplicaDirectory
from eventing.telemetry.cost import GpuState, Price
from eventing.telemetry.metric.family import Family, Latest, Samples, Series
from eventing.telemetry.metric.ledger import Ledger, Measures, by_name
from eventing.telemetry.metric.provider import PROVIDER_FAMILIES, provider_samples

GPU_SECONDS: Final = Family(
    "torpor_gpu_seconds_total",
    "GPU-seconds paid for, by the replica's state: waking, idle or busy.",
    ("model", "state"),
)
GPU_COST: Final = Family(
    "torpor_gpu_cost_total",
    "Cost of these GPU-seconds at TORPOR_GPU_PRICE_PER_HOUR.",
    ("model", "state"),
)
GPU_WORK: Final = Family(
    "torpor_gpu_work_seconds_total",
    "Busy GPU-seconds whose tokens were `kept`, or `thrown` away by a restart or a cancel.",
    ("model", "kind"),
)
TOKENS: Final = Family(
    "torpor_tokens_total",
    "Tokens: `input` and `delivered` of ended jobs; `output` made by engines (as they are made), "
    "`resumed`, `regenerated` and `lost`.",
    ("model", "kind"),
)
READY: Final = Family("torpor_replicas_ready", "Predictors that can serve.", ("model",))
WAKING: Final = Family("torpor_replicas_waking", "Predictors that are starting.", ("model",))
KEYS: Final = Family("torpor_store_keys", "Keys in the store's database.", ())
MEMORY: Final = Family("torpor_store_memory_bytes", "Memory that the store uses.", ())
_FAMILIES: Final = (
    *(KEYS, MEMORY, GPU_SECONDS, GPU_COST, GPU_WORK, TOKENS, READY, WAKING),
    *PROVIDER_FAMILIES,
)
_latest: Final = Latest(_FAMILIES)

_cold = Histogram(
    "torpor_wake_seconds",
    "How long each phase of a wake took, and all of them (`total`), of predictors seen ready.",
    ["model", "phase"],
    buckets=(0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120, 300, 600, 1200),
)

_PHASES: Final = ("import", "weights", "compile", "warm_up", "total")
_EVERY_S: Final = 2.0
_READY: Final = "ready"
_REMEMBERED: Final = 4096
"""Predictors that were seen ready; above that, those that have ended are forgotten."""
_TOKEN_MEASURES: Final = {
    "input": "input_tokens",
    "delivered": "delivered_tokens",
    "output": "output_tokens",
    "resumed": "resumed_tokens",
    "regenerated": "regenerated_tokens",
    "lost": "lost_tokens",
}


class LiveMetrics:
    """Reads ledger and replicas every two seconds; a replica that lived for less is not seen."""

    def __init__(self, redis: Redis, models: Collection[str], price: Price) -> None:
        self._redis = redis
        self._ledger = Ledger(redis)
        self._directory = ReplicaDirectory(redis)
        self._models = tuple(models)
        self._price = price
        self._seen: set[tuple[str, str]] = set()
        for model in self._models:
            for phase in _PHASES:
                _cold.labels(model, phase)  # started at zero, so that the first wake is counted

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(_EVERY_S)

    async def refresh(self) -> None:
        """Show the store's figures; nothing while it is unavailable."""
        await _latest.refresh(self._read)

    async def _read(self) -> Samples:
        measures = by_name(await self._ledger.totals(), "model")
        replicas = {model: await self._directory.list(model) for model in self._models}
        store = await self._store()
        providers = await provider_samples(self._redis, self._models)
        self._observe_wakes(replicas)
        kept = {model: measures.get(model, {}) for model in self._models}
        return {**samples(kept, replicas, self._price), **store, **providers}

    async def _store(self) -> Samples:
        try:
            async with failures_named():
                keys = int(await self._redis.dbsize())
                memory = await self._redis.info("memory")
        except ResponseError:  # the Redis user may not run INFO
            return {}
        return {KEYS: [((), keys)], MEMORY: [((), int(memory["used_memory"]))]}

    def _observe_wakes(self, replicas: Mapping[str, Sequence[Replica]]) -> None:
        ready: set[tuple[str, str]] = set()
        for model, known in replicas.items():
            for replica in known:
                if replica.phase != _READY:
                    continue
                ready.add((model, replica.id))
                if (model, replica.id) not in self._seen:
                    for phase, seconds in replica.phases.items():
                        _cold.labels(model, phase).observe(seconds)
                    _cold.labels(model, "total").observe(sum(replica.phases.values()))
        self._seen |= ready
        if len(self._seen) > _REMEMBERED:
            self._seen = ready


def samples(
    measures: Mapping[str, Measures], replicas: Mapping[str, Sequence[Replica]], price: Price
) -> Samples:
    """Every series of each model, from the first scrape on: a counter that does not exist yet has no rate."""
    found = Series(list)
    for model, amounts in measures.items():
        for state in GpuState:
            seconds = amounts.get(f"{state}_ms", 0) / 1000
            found[GPU_SECONDS].append(((model, state), seconds * price.gpus))
            found[GPU_COST].append(((model, state), price.of(seconds)))
        for kind in ("kept", "thrown"):
            seconds = amounts.get(f"{kind}_ms", 0) / 1000
            found[GPU_WORK].append(((model, kind), seconds * price.gpus))
        for kind, measure in _TOKEN_MEASURES.items():
            found[TOKENS].append(((model, kind), amounts.get(measure, 0)))
    for model, known in replicas.items():
        ready = sum(replica.phase == _READY for replica in known)
        found[READY].append(((model,), ready))
        draining = sum(replica.is_draining for replica in known)
        found[WAKING].append(((model,), len(known) - ready - draining))
    return found

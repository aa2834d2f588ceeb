"""The ledger: what predictors did and what came of it, kept in the store, because a predictor at
zero has no metrics and takes its counters with it.

`GpuAccount` is kept by each predictor, `Ledger` is read by the api (`/metrics`, `/v1/usage`). Each
writer posts what was added since its last post, every 5 s and at its end; one that is killed loses
at most that. Must not know prices.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import structlog
from redis.asyncio import Redis

from eventing.clock import Clock
from eventing.errors import StoreUnavailable
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import Call, run
from eventing.telemetry.cost import GpuMeter, GpuState, advance, overhead, spend_of

_log = structlog.get_logger()

SLICE_S: Final = 300
"""`since` is known to five minutes."""
KEEP_SLICES_S: Final = 8 * 24 * 3600
POST_EVERY_S: Final = 5.0
_CHARGES_EVERY_S: Final = 1.0
_GATHER_TURNS: Final = 2
"""A batch of ends is told within these turns of the event loop: one post for all of them."""
_TOTALS: Final = f"{keys.PREFIX}:{{ledger}}"

Measures = dict[str, int]
"""Amounts by measure: milliseconds (`busy_ms`) or counts (`jobs`)."""
Scope = str
"""`model` or `tenant`."""
Rows = dict[tuple[Scope, str], Measures]
"""Measures by scope and name."""


class Ledger:
    """Sums by model and tenant, since ever and in slices of time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._overheads: Mapping[str, float | None] = {}
        self._asked_s = float("-inf")
        self._due: Rows = {}
        self._posting: asyncio.Future[None] | None = None

    async def overhead(self, model: str) -> float | None:
        """Seconds that were paid for each second of a model's that was kept, since ever and as
        known at most five seconds ago; None before anything was kept, or with the store away.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s - self._asked_s > POST_EVERY_S:
            self._asked_s = now_s
            with suppress(StoreUnavailable):
                models = by_name(await self.totals(), "model")
                self._overheads = {name: overhead(spend_of(row)) for name, row in models.items()}
        return self._overheads.get(model)

    async def post(self, rows: Mapping[tuple[Scope, str], Mapping[str, int]]) -> None:
        """Add these. All or nothing; those who post in the same turns of the loop do so together.
        Raises `StoreUnavailable`.
        """
        _add(self._due, rows)
        if self._posting is None:
            self._posting = asyncio.ensure_future(self._post_due())
        await asyncio.shield(self._posting)

    async def _post_due(self) -> None:
        for _ in range(_GATHER_TURNS):
            await asyncio.sleep(0)
        due, self._due, self._posting = self._due, {}, None
        async with failures_named():
            for call in _post_calls(due):
                await run(self._redis, *call)

    async def charge(self, job_id: JobId, gpu_ms: int) -> None:
        """Note on the job what it used. Raises `StoreUnavailable`."""
        async with failures_named():
            await run(self._redis, "charge", [keys.job(job_id)], [gpu_ms])

    async def totals(self) -> Rows:
        """Sums since the store began. Raises `StoreUnavailable`."""
        async with failures_named():
            return _rows([await self._redis.hgetall(_TOTALS)])

    async def since(self, span_s: int) -> Rows:
        """Sums of the last `span_s` seconds, in whole slices. Raises `StoreUnavailable`."""
        async with failures_named():
            now_s, _ = await self._redis.time()
            last = int(now_s) - int(now_s) % SLICE_S
            first = max(int(now_s) - min(span_s, KEEP_SLICES_S), 0)
            async with self._redis.pipeline(transaction=False) as pipe:
                for start in range(first - first % SLICE_S, last + 1, SLICE_S):
                    pipe.hgetall(f"{_TOTALS}:{start}")
                return _rows(await pipe.execute())


class GpuAccount:
    """Where one predictor's time goes. Without a ledger (no shared store) it counts for nobody.

    `counters` gives running totals of other things that die with the process (tokens, attempts);
    what they grew by is posted along.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        clock: Clock,
        *,
        model: str,
        started_s: float,
        counters: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._model = model
        self._meter = GpuMeter(at_s=started_s)
        self._counters = counters
        self._posted: Measures = {}
        self._charged: Rows = {}

    def load(self, in_flight: int) -> None:
        """So many jobs and calls hold a slot from now on."""
        self._meter = advance(self._meter, self._clock.monotonic_s(), in_flight=in_flight)

    def ready(self) -> None:
        """It can serve from now on."""
        self._meter = advance(self._meter, self._clock.monotonic_s(), is_ready=True)

    def share_s(self) -> float:
        """What an attempt notes at its start and gives to `take`."""
        self._meter = advance(self._meter, self._clock.monotonic_s())
        return self._meter.share_s

    def take(self, tenant: str, started_share_s: float, *, is_kept: bool) -> int:
        """An attempt's part of the GPU in milliseconds, for its job; on its tenant and the model it
        is put with the next post.
        """
        if self._ledger is None:
            return 0
        gpu_ms = round((self.share_s() - started_share_s) * 1000)
        measure = "kept_ms" if is_kept else "thrown_ms"
        _add(self._charged, {("model", self._model): {measure: gpu_ms}})
        _add(self._charged, {("tenant", tenant): {"gpu_ms": gpu_ms}})
        return gpu_ms

    async def charge(self, job_id: JobId, gpu_ms: int) -> None:
        """Put it on a job whose end does not carry it. Never fails the attempt: a store that is
        away loses the job's charge.
        """
        if self._ledger is None:
            return
        try:
            await self._ledger.charge(job_id, gpu_ms)
        except StoreUnavailable as error:
            _log.warning("not charged", action="charge", job_id=job_id, reason=error.code)

    async def post(self) -> None:
        """Post what was added since the last time. What could not be posted stays due."""
        if self._ledger is None:
            return
        due = {name: amount for name, amount in self._so_far().items()}
        added = {name: amount - self._posted.get(name, 0) for name, amount in due.items()}
        charged, self._charged = self._charged, {}
        rows: Rows = {("model", self._model): added}
        _add(rows, charged)
        try:
            await self._ledger.post(rows)
        except StoreUnavailable as error:
            _add(self._charged, charged)
            _log.debug("not posted", action="ledger", reason=error.code)
            return
        self._posted = due

    async def run(self) -> None:
        """Post until cancelled: charges within a second, all else with them or every five."""
        while True:
            for _ in range(round(POST_EVERY_S / _CHARGES_EVERY_S)):
                await asyncio.sleep(_CHARGES_EVERY_S)
                if self._charged:
                    break
            await self.post()

    def _so_far(self) -> Measures:
        self.share_s()
        meter = self._meter
        seconds = {
            GpuState.WAKING: meter.waking_s,
            GpuState.IDLE: meter.idle_s,
            GpuState.BUSY: meter.busy_s,
        }
        times = {f"{state}_ms": round(value * 1000) for state, value in seconds.items()}
        return times | dict(self._counters())


def by_name(rows: Rows, scope: Scope) -> dict[str, Measures]:
    """The measures of every model, or of every tenant."""
    return {name: measures for (kind, name), measures in rows.items() if kind == scope}


def _add(rows: Rows, more: Mapping[tuple[Scope, str], Mapping[str, int]]) -> None:
    for key, measures in more.items():
        row = rows.setdefault(key, {})
        for measure, amount in measures.items():
            row[measure] = row.get(measure, 0) + amount


def _post_calls(rows: Mapping[tuple[Scope, str], Mapping[str, int]]) -> list[Call]:
    """None for amounts of nothing."""
    pairs: list[str | int] = []
    for (scope, name), measures in rows.items():
        for measure, amount in measures.items():
            if amount:
                pairs += [f"{scope}|{measure}|{name}", amount]
    return [("post", [_TOTALS], [SLICE_S, KEEP_SLICES_S, *pairs])] if pairs else []


def _rows(records: list[Mapping[bytes, bytes]]) -> Rows:
    rows: Rows = {}
    for record in records:
        for key, amount in record.items():
            scope, measure, name = key.decode("utf-8", "replace").split("|", 2)
            measures = rows.setdefault((scope, name), {})
            measures[measure] = measures.get(measure, 0) + int(amount)
    return rows

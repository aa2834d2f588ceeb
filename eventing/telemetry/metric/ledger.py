"""The ledger: GPU time, jobs and tokens of all predictors, summed in the store, because a predictor that scales to
zero loses its counters.

`GpuAccount` is the writer in each predictor, `Ledger` is read by the api (`/metrics`, `/v1/usage`). Each writer
posts the increase since its last post, every 5 s and at its end; one that is killed loses at most that. Must not
know prices.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
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
"""The resolution of `since`: five minutes."""
KEEP_SLICES_S: Final = 8 * 24 * 3600
POST_EVERY_S: Final = 5.0
_CHARGES_EVERY_S: Final = 1.0
_GATHER_TURNS: Final = 2
"""Jobs that end within so many turns of the event loop are posted together."""
_TOTALS: Final = f"{keys.PREFIX}:{{ledger}}"

Measures = dict[str, int]
"""Amounts by measure: milliseconds (`busy_ms`) or counts (`jobs`)."""
Scope = str
"""`model` or `tenant`."""
Rows = dict[tuple[Scope, str], Measures]
"""Measures by scope and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostTokens:
    """Tokens of an attempt at a provider that the next one starts over without; the prompt's are an estimate."""

    model: str
    prompt: int
    answer: int


class Ledger:
    """Sums by model, in total and by time slice, and by tenant, by time slice."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._overheads: Mapping[str, float | None] = {}
        self._asked_s = float("-inf")
        self._due: Rows = {}
        self._posting: asyncio.Future[None] | None = None

    async def overhead(self, model: str) -> float | None:
        """Paid seconds for each second of the model whose tokens were kept, in total, at most five seconds old;
        None without kept tokens, or with the store unavailable.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s - self._asked_s > POST_EVERY_S:
            self._asked_s = now_s
            with suppress(StoreUnavailable):
                models = by_name(await self.totals(), "model")
                self._overheads = {name: overhead(spend_of(row)) for name, row in models.items()}
        return self._overheads.get(model)

    async def post(self, rows: Mapping[tuple[Scope, str], Mapping[str, int]]) -> None:
        """Add these amounts. Atomic; posts of the same turns of the event loop are sent together. Raises
        `StoreUnavailable`.
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

    async def charge(self, job_id: JobId, gpu_ms: int, lost: LostTokens | None = None) -> None:
        """Record on the job what it used. Raises `StoreUnavailable`."""
        args: list[str | int] = [gpu_ms]
        if lost is not None:
            args += [lost.model, lost.prompt, lost.answer]
        async with failures_named():
            await run(self._redis, "charge", [keys.job(job_id)], args)

    async def forget_tenant(self, tenant: str) -> None:
        """Drop the tenant's rows. Raises `StoreUnavailable`."""
        async with failures_named():
            now_s, _ = await self._redis.time()
            slices = [f"{_TOTALS}:{start}" for start in _slices(int(now_s), KEEP_SLICES_S)]
            names = [*slices, _TOTALS]  # an older version kept them in the totals too
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hkeys(name)
                known = await pipe.execute()
                for name, fields in zip(names, known, strict=True):
                    if mine := [each for each in fields if _is_of_tenant(each, tenant)]:
                        pipe.hdel(name, *mine)
                await pipe.execute()

    async def totals(self) -> Rows:
        """Sums of models since the store was created. Raises `StoreUnavailable`."""
        async with failures_named():
            return _rows([await self._redis.hgetall(_TOTALS)])

    async def since(self, span_s: int) -> Rows:
        """Sums of the last `span_s` seconds, in whole slices. Raises `StoreUnavailable`."""
        return merged(rows for _, rows in await self.series(span_s, SLICE_S))

    async def series(self, span_s: int, step_s: int) -> list[tuple[int, Rows]]:
        """The last `span_s` seconds in steps of `step_s`, whole slices: when each begins (seconds since the epoch),
        and its sums. Raises `StoreUnavailable`.
        """
        async with failures_named():
            now_s, _ = await self._redis.time()
            starts = _slices(int(now_s), min(span_s, KEEP_SLICES_S))
            async with self._redis.pipeline(transaction=False) as pipe:
                for start in starts:
                    pipe.hgetall(f"{_TOTALS}:{start}")
                records = await pipe.execute()
        size = max(1, step_s // SLICE_S)
        return [(starts[at], _rows(records[at : at + size])) for at in range(0, len(starts), size)]


class GpuAccount:
    """The GPU time of one predictor. Without a ledger (no shared store) nothing is posted.

    `counters` gives running totals of other per-process counts (tokens, attempts); their increase is posted too.
    Without a GPU of ours (`has_gpu`; a provider's model) no time is posted and no job is charged.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        clock: Clock,
        *,
        model: str,
        started_s: float,
        counters: Callable[[], Mapping[str, int]] = dict,
        has_gpu: bool = True,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._model = model
        self._meter = GpuMeter(at_s=started_s)
        self._counters = counters
        self._has_gpu = has_gpu
        self._posted: Measures = {}
        self._charged: Rows = {}

    def load(self, in_flight: int) -> None:
        """Set the number of jobs and calls that hold a slot from now on."""
        self._meter = advance(self._meter, self._clock.monotonic_s(), in_flight=in_flight)

    def ready(self) -> None:
        """The predictor can serve from now on."""
        self._meter = advance(self._meter, self._clock.monotonic_s(), is_ready=True)

    @property
    def start_s(self) -> float:
        """What its start took; 0 where there is no GPU of ours, or before it is ready."""
        return self._meter.waking_s if self._has_gpu and self._meter.is_ready else 0.0

    def share_s(self) -> float:
        """The meter's share at an attempt's start, to be passed to `take`."""
        self._meter = advance(self._meter, self._clock.monotonic_s())
        return self._meter.share_s

    def take(self, tenant: str, started_share_s: float, *, is_kept: bool) -> int:
        """An attempt's share of the GPU in milliseconds, for its job; the same amount is posted for its tenant and
        model.
        """
        if self._ledger is None or not self._has_gpu:
            return 0
        gpu_ms = round((self.share_s() - started_share_s) * 1000)
        measure = "kept_ms" if is_kept else "thrown_ms"
        _add(self._charged, {("model", self._model): {measure: gpu_ms}})
        _add(self._charged, {("tenant", tenant): {"gpu_ms": gpu_ms}})
        return gpu_ms

    async def charge(
        self, job_id: JobId, gpu_ms: int, *, prompt_tokens: int = 0, lost_tokens: int = 0
    ) -> None:
        """Charge a job whose end does not carry the amount, and whose next attempt may start over without its
        `lost_tokens`: a provider takes money for them. Never fails the attempt: with the store unavailable the charge
        is lost.
        """
        if self._ledger is None:
            return
        lost = None
        if lost_tokens and not self._has_gpu:
            lost = LostTokens(model=self._model, prompt=prompt_tokens, answer=lost_tokens)
        try:
            await self._ledger.charge(job_id, gpu_ms, lost)
        except StoreUnavailable as error:
            _log.warning("not charged", action="charge", job_id=job_id, reason=error.code)

    async def post(self) -> None:
        """Post the increase since the last post. What could not be posted is kept for the next one."""
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
        """Post until cancelled: charges within a second, everything at least every five seconds."""
        while True:
            for _ in range(round(POST_EVERY_S / _CHARGES_EVERY_S)):
                await asyncio.sleep(_CHARGES_EVERY_S)
                if self._charged:
                    break
            await self.post()

    def _so_far(self) -> Measures:
        if not self._has_gpu:
            return dict(self._counters())
        self.share_s()
        meter = self._meter
        seconds = {
            GpuState.WAKING: meter.waking_s,
            GpuState.IDLE: meter.idle_s,
            GpuState.BUSY: meter.busy_s,
        }
        times = {f"{state}_ms": round(value * 1000) for state, value in seconds.items()}
        return times | dict(self._counters())


def _is_of_tenant(field: bytes, tenant: str) -> bool:
    scope, _, name = field.decode("utf-8", "replace").split("|", 2)
    return (scope, name) == ("tenant", tenant)


def _slices(now_s: int, span_s: int) -> range:
    """When the slices of the last `span_s` seconds begin."""
    first = max(now_s - span_s, 0)
    return range(first - first % SLICE_S, now_s + 1, SLICE_S)


def by_name(rows: Rows, scope: Scope) -> dict[str, Measures]:
    """The measures of every model, or of every tenant."""
    return {name: measures for (kind, name), measures in rows.items() if kind == scope}


def merged(parts: Iterable[Rows]) -> Rows:
    """The sums of all the parts."""
    rows: Rows = {}
    for part in parts:
        _add(rows, part)
    return rows


def _add(rows: Rows, more: Mapping[tuple[Scope, str], Mapping[str, int]]) -> None:
    for key, measures in more.items():
        row = rows.setdefault(key, {})
        for measure, amount in measures.items():
            row[measure] = row.get(measure, 0) + amount


def _post_calls(rows: Mapping[tuple[Scope, str], Mapping[str, int]]) -> list[Call]:
    """The commands of a post; None when all amounts are 0."""
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

"""Enforces tenants' limits: on calls, and on jobs when they are admitted.

Called by `api.routes.route` (every call), `api.job.submission` and `api.routes.dead_letters` (every job) and
`api.routes.events` (every end). Without limits it makes no store calls.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Final

from prometheus_client import Counter
from redis.asyncio import Redis
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth.principal import Principal
from api.limit.budget import Account
from api.limit.in_flight import InFlightJobs
from api.limit.job_budgets import JobBudgets
from api.limit.limit import (
    Limit,
    Limits,
    LimitUse,
    LimitWindow,
    RateLimited,
    TooLargeForLimit,
    answer_tokens,
    check_deadline,
    headers_of,
    limits_of,
    moved_to,
    prompt_tokens,
    tokens_asked,
    tokens_taken,
)
from api.limit.submit_turn import SubmitTurns
from api.limit.window import LimitMeter, Windows
from api.settings import ApiSettings
from api.webhook.webhook import BATCH
from eventing.broker.queue.view import Depth, QueueView, expected_wait_s
from eventing.clock import Clock
from eventing.errors import Overloaded, StoreUnavailable, TorporError
from eventing.job.job import Job, JobId, Lane
from eventing.job.store import JobReader, NewJob

_FRESH_S: Final = 0.5
_NO_PACE_S: Final = 5.0
_FULL_S: Final = 5.0
_NO_LIMIT: Final[LimitUse] = {"limit": 0, "used": 0, "reset_s": None}
_refused = Counter("torpor_api_limited_total", "Calls and jobs refused by a limit.", ["limit"])
_metered = Counter(
    "torpor_api_metered_tokens_total", "Tokens counted against limits a minute.", ["kind"]
)
for _limit in ("requests_per_minute", "tokens_per_minute", "budget_per_month", "queue_depth"):
    _refused.labels(_limit)  # at zero before the first: a rate takes that for its start
_headers: ContextVar[dict[str, str] | None] = ContextVar("torpor_rate_headers", default=None)


class LimitGate:
    """The `Gate`, the `JobAdmission`, and an `EndListener` that releases a job's place at its end."""

    def __init__(
        self,
        settings: ApiSettings,
        redis: Redis,
        store: JobReader,
        clock: Clock,
        budgets: JobBudgets,
    ) -> None:
        self._settings = settings
        self._windows = Windows(redis)
        self._budgets = budgets
        self._flight = InFlightJobs(redis)
        self._queues = QueueView(redis)
        self._turns = SubmitTurns(redis, 2 * settings.submit_timeout_s + _NO_PACE_S)
        self._clock = clock
        self._context_tokens = {card.name: card.context_tokens for card in settings.cards}
        self._depths: dict[str, tuple[float, Depth]] = {}
        self._asking = asyncio.Lock()
        self._batch_turn = asyncio.Lock()
        self._undoing: dict[JobId, asyncio.Future[None]] = {}

    async def enter(self, principal: Principal, method: str) -> None:
        """Raises `RateLimited`. GET is not counted."""
        if method == "GET" or not principal.tenant:
            return
        for limit, meter in self._requests(principal):
            is_taken, window = await self._windows.take(meter, 1)
            _set_headers(headers_of("requests", window))
            if not is_taken:
                with _counted(limit):
                    raise _over("requests", window, 1)

    async def look(self, principal: Principal) -> dict[str, LimitUse]:
        """The limits of a caller by name, and how much of them is used."""
        limits, tenant = self._limits(principal.tenant), principal.tenant
        in_flight = await self._flight.count(tenant) if limits.jobs_in_flight else 0
        uses: dict[str, LimitUse] = {
            Limit.REQUESTS_PER_MINUTE: _NO_LIMIT,
            Limit.TOKENS_PER_MINUTE: _NO_LIMIT,
            Limit.JOBS_IN_FLIGHT: {
                "limit": limits.jobs_in_flight,
                "used": in_flight,
                "reset_s": None,
            },
        }
        meters = dict(self._requests(principal))
        if tokens := self._tokens(tenant):
            meters[Limit.TOKENS_PER_MINUTE] = tokens
        for limit, meter in meters.items():
            uses[limit] = (await self._windows.look(meter)).use()
        return {str(limit): use for limit, use in uses.items()}

    def _requests(self, principal: Principal) -> list[tuple[Limit, LimitMeter]]:
        """The meters of calls: of the key itself, where it has a limit, and of the tenant."""
        meters = []
        if own := principal.requests_per_minute:
            meter = LimitMeter(name="key-requests", tenant=principal.key_id, limit=own)
            meters.append((Limit.KEY_REQUESTS_PER_MINUTE, meter))
        if limit := self._limits(principal.tenant).requests_per_minute:
            meter = LimitMeter(name="requests", tenant=principal.tenant, limit=limit)
            meters.append((Limit.REQUESTS_PER_MINUTE, meter))
        return meters

    @asynccontextmanager
    async def turn(self, principal: Principal, new: NewJob, wait_s: float) -> AsyncIterator[bool]:
        """As `JobAdmission.turn`; without limits nothing holds anything back, and the store is not asked."""
        settings, limits = self._settings, self._limits(new.tenant)
        is_limited = limits.jobs_in_flight or limits.tokens_per_minute or new.deadline_ms
        is_moved = moved_to(settings.moved_tenants, new.tenant)
        accounts = self._budgets.accounts(new.tenant, new.metadata, principal)
        if not (is_limited or settings.limit_queue_depth or accounts or is_moved):
            yield False
            return
        async with self._turns.of(new.id, wait_s) as is_recorded:
            if is_recorded and (meter := self._tokens(new.tenant)):
                _set_headers(headers_of("tokens", await self._windows.look(meter)))
            try:
                yield is_recorded
            finally:  # what a cancelled submit took is given back before the next one's turn
                if undoing := self._undoing.get(new.id):
                    await asyncio.wait((undoing,))

    async def admit(self, principal: Principal, new: NewJob) -> None:
        """Raises `RateLimited`, `TooLargeForLimit`, `DeadlineOutOfReach` or `Overloaded`. Tokens are taken last, so
        that the headers that report them need not be undone after another refusal.
        """
        await self._check_queue(new)
        limits = self._limits(new.tenant)
        accounts = self._budgets.accounts(new.tenant, new.metadata, principal)
        if not limits.jobs_in_flight and not limits.tokens_per_minute and not accounts:
            return
        taking = asyncio.ensure_future(self._take(new, accounts))
        try:
            await asyncio.shield(taking)
        except asyncio.CancelledError:
            # Shielded, so that a cancelled submit leaves nothing half taken.
            undoing = asyncio.ensure_future(self._undo(taking, new))
            self._undoing[new.id] = undoing
            undoing.add_done_callback(lambda _: self._undoing.pop(new.id, None))
            raise

    async def _take(self, new: NewJob, accounts: list[Account]) -> None:
        limit = self._limits(new.tenant).jobs_in_flight
        most = _share(limit) if BATCH in new.metadata else limit
        if limit and not await self._flight.take(new.tenant, new.id, most):
            with _counted(Limit.JOBS_IN_FLIGHT, new):
                raise RateLimited(f"{most} jobs of this tenant have not ended", _FULL_S)
        try:
            if accounts:
                with _counted(Limit.BUDGET_PER_MONTH, new):
                    _set_headers(await self._budgets.take(new, accounts))
            await self._take_tokens(new)
        except TorporError:
            with suppress(StoreUnavailable):
                await self._leave(new.tenant, new.id)
                await self._budgets.give_back(new)
            raise

    async def _undo(self, taking: "asyncio.Future[None]", new: NewJob) -> None:
        with suppress(TorporError):
            await taking
            await self.on_unrecorded(new)

    async def on_admitted(self, new: NewJob, job: Job, is_new: bool) -> None:
        """The job was recorded, or existed already. The caller's 202 is certain by now, so an unavailable store
        must not turn it into a refusal; the count corrects itself.
        """
        if not is_new:  # its turn had passed: the end gives back what is held under its id
            return
        with suppress(StoreUnavailable):
            if job.cache is not None and job.cache.is_hit:
                await self._settle(
                    new.tenant, job.id, 0
                )  # if it is to run after all, its end counts
                if job.state.is_terminal:
                    await self._leave(new.tenant, job.id)

    async def on_rejected(self, tenant: str, job_id: JobId) -> None:
        """Release the place and the tokens of a job that was not queued again."""
        await self._settle(tenant, job_id, 0)
        await self._leave(tenant, job_id)

    async def on_unrecorded(self, new: NewJob) -> None:
        """Release the place, the tokens and the budget of a job that was not recorded."""
        await self.on_rejected(new.tenant, new.id)
        await self._budgets.give_back(new)

    async def ended(self, job: Job) -> None:
        """Correct the estimate to the tokens actually used; idempotent."""
        await self._budgets.pay(job)
        await self._settle(job.tenant, job.id, tokens_taken(job))
        await self._leave(job.tenant, job.id)

    def _limits(self, tenant: str) -> Limits:
        return limits_of(self._settings, tenant)

    def _tokens(self, tenant: str) -> LimitMeter | None:
        limit = self._limits(tenant).tokens_per_minute
        return LimitMeter(name="tokens", tenant=tenant, limit=limit) if limit else None

    async def _take_tokens(self, new: NewJob) -> None:
        meter = self._tokens(new.tenant)
        if meter is None:
            return
        cost = tokens_asked(new.request, self._context_tokens.get(new.request.model, 0))
        if answer_tokens(new.request) is None:
            # At most a whole minute, or it could never be admitted; the rest is settled at the job's end.
            cost = min(cost, max(meter.limit, prompt_tokens(new.request)))
        if cost > meter.limit:
            with _counted(Limit.TOKENS_OF_ONE_CALL):
                raise TooLargeForLimit(
                    f"about {cost} tokens, and the limit is {meter.limit} a minute",
                    "body.max_tokens",
                )
        if BATCH in new.metadata:
            async with self._batch_turn:  # concurrent checks would all see the same free tokens
                await self._check_share(meter, cost)
                is_taken, window = await self._windows.take(meter, cost)
        else:
            is_taken, window = await self._windows.take(meter, cost)
        _set_headers(headers_of("tokens", window))
        if not is_taken:
            with _counted(Limit.TOKENS_PER_MINUTE, new):
                raise _over("tokens", window, cost)
        await self._windows.charge(meter, new.id, cost)
        _metered.labels("asked").inc(cost)

    async def _check_share(self, meter: LimitMeter, cost: int) -> None:
        """Batches leave half of each minute's tokens to calls, except for a line that alone needs more than half."""
        share = _share(meter.limit)
        room = share if cost <= share else meter.limit
        window = await self._windows.look(meter)
        if window.used + cost > room:
            raise _over("tokens", replace(window, limit=room), cost)

    async def _settle(self, tenant: str, job_id: JobId, used: int) -> None:
        if meter := self._tokens(tenant):
            added = await self._windows.settle(meter, job_id, used)
            _metered.labels("added" if added > 0 else "given_back").inc(abs(added))

    async def _leave(self, tenant: str, job_id: JobId) -> None:
        if self._limits(tenant).jobs_in_flight:
            await self._flight.leave(tenant, job_id)

    async def _check_queue(self, new: NewJob) -> None:
        most = self._settings.limit_queue_depth
        if not most and not new.deadline_ms:
            return
        depth = await self._depth(new.request.model)
        if most and depth.total_waiting >= most:
            over = depth.total_waiting - most
            wait_s = expected_wait_s(over, depth.settled_per_minute) or _NO_PACE_S
            with _counted(Limit.QUEUE_DEPTH):
                raise Overloaded(f"{depth.total_waiting} jobs wait for {new.request.model}", wait_s)
        if new.deadline_ms:
            now_ms = self._clock.wall_ms()
            head_age_s = (now_ms - depth.oldest_ms) / 1000 if depth.oldest_ms else 0.0
            left_s = (new.deadline_ms - now_ms) / 1000
            with _counted(Limit.DEADLINE):
                check_deadline(_wait_s(depth, new.lane), head_age_s, left_s)

    async def _depth(self, model: str) -> Depth:
        """The model's queue depth, at most half a second old."""
        async with self._asking:
            at_s, depth = self._depths.get(model, (float("-inf"), None))
            now_s = self._clock.monotonic_s()
            if depth is None or now_s - at_s > _FRESH_S:
                depth = await self._queues.depth(f"requests-{model}")
                self._depths[model] = (now_s, depth)
            return depth


class RateHeaders:
    """ASGI middleware: adds the rate limit headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "GET":
            await self._app(scope, receive, send)
            return
        headers_found: dict[str, str] = {}
        token = _headers.set(headers_found)

        async def send_on(message: Message) -> None:
            if headers_found and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers_found)
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            _headers.reset(token)


def _set_headers(headers: Mapping[str, str]) -> None:
    headers_found = _headers.get()
    if headers_found is not None:  # a batch's lines have no response for the headers
        headers_found.update(headers)


@contextmanager
def _counted(limit: Limit, new: NewJob | None = None) -> Iterator[None]:
    """Count refusals inside the block. A batch line that waits for its turn is not counted."""
    try:
        yield
    except TorporError:
        if new is None or BATCH not in new.metadata:
            _refused.labels(limit).inc()
        raise


def _share(limit: int) -> int:
    """The share of a tenant's limit that batches may use, so that calls still get through."""
    return max(1, limit // 2)


def _over(what: str, window: LimitWindow, cost: int) -> RateLimited:
    wait_s = window.wait_s(cost)
    return RateLimited(f"over {window.limit} {what} a minute; room again in {wait_s:.1f} s", wait_s)


def _wait_s(depth: Depth, lane: Lane) -> float | None:
    """The expected wait of a job that joins `lane` now, at the recent pace."""
    lanes = list(Lane)
    ahead = sum(depth.waiting.get(other, 0) for other in lanes[: lanes.index(lane) + 1])
    return expected_wait_s(ahead, depth.settled_per_minute)

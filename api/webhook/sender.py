"""Sends webhooks: claims due deliveries, tries each once, records the outcome.

Called by `api.__main__` in a loop; any number of senders share the work. It keeps no state: when a sender dies
during a try, the delivery is due again once its claim lapses, with the same `webhook-id`.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver
from prometheus_client import Counter, Histogram

from api.webhook.receiver_queue import Lane, ReceiverQueues
from api.webhook.schedule import SCHEDULE_S, RetryDecision, TryOutcome, TryVerdict, decide
from api.webhook.store import WebhookStore
from api.webhook.webhook import PER_JOB, Endpoint, Try, WebhookDelivery, signed_headers
from eventing.errors import BadRequest, NotFound, StoreUnavailable
from eventing.job.job import JobId
from eventing.process.egress import AllowList, check_url
from eventing.process.guarded_resolver import GuardedResolver, TargetRefused
from eventing.telemetry import trace

_TAKE: Final = 100
_LOOK_EVERY_S: Final = 0.25
_TOO_MANY_MS: Final = 2_000
_log = structlog.get_logger()
_tries = Counter(
    "torpor_webhook_tries_total", "Delivery attempts of webhooks, by outcome.", ["verdict"]
)
_late = Histogram(
    "torpor_webhook_first_try_seconds",
    "Time from a delivery's record to its first try.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 30, 300),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderSettings:
    """How webhooks are sent. `hold_s` is the duration of a claim: longer than a try's `timeout_s`, so that no
    second sender tries while this one waits for an answer.
    """

    timeout_s: float = 15.0
    schedule_s: Sequence[float] = SCHEDULE_S
    allowed: AllowList = field(default_factory=AllowList)

    @property
    def hold_s(self) -> float:
        return 2 * self.timeout_s + 2


class WebhookSender:
    """One sender. `resolver` is checked by the guard; tests pass their own."""

    def __init__(
        self,
        store: WebhookStore,
        settings: SenderSettings,
        *,
        draw: random.Random | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._draw = draw or random.Random()  # noqa: S311 (jitter, not a secret)
        self._resolver = resolver
        self._lanes = ReceiverQueues()
        self._due = asyncio.Event()

    def wake(self) -> None:
        """A delivery is due now: check at once."""
        self._due.set()

    async def run(self) -> None:
        """Send until cancelled; waits while the store is unavailable."""
        async with self._session() as session, asyncio.TaskGroup() as group:
            while True:
                self._due.clear()
                try:
                    await self._take()
                except StoreUnavailable as error:
                    _log.debug("will look again", action="webhook", reason=error.code)
                for lane, delivery in self._lanes.start(time.monotonic()):
                    group.create_task(self._deliver(session, lane, delivery))
                try:
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._due.wait()
                except TimeoutError:
                    continue

    async def try_once(self, endpoint: Endpoint, delivery: WebhookDelivery) -> TryOutcome:
        """One try outside the schedule, for testing an endpoint; nothing is recorded."""
        async with self._session() as session:
            return await self._post(session, endpoint, delivery)

    def _session(self) -> aiohttp.ClientSession:
        guard = GuardedResolver(
            self._resolver or aiohttp.ThreadedResolver(), self._settings.allowed
        )
        connector = aiohttp.TCPConnector(
            resolver=guard, use_dns_cache=False, force_close=True, limit=0
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def _take(self) -> None:
        held_from_s = time.monotonic()
        hold_s = self._settings.hold_s
        while taken := await self._store.take(_TAKE, int(hold_s * 1000)):
            good_until_s = held_from_s + hold_s - self._settings.timeout_s
            for delivery in taken:
                lane = _lane(delivery)
                pause_s = self._lanes.pause_left_s(lane, time.monotonic())
                if pause_s:
                    await self._store.postpone(delivery, int(pause_s * 1000) + 1)
                elif not self._lanes.join(lane, delivery, good_until_s):
                    await self._store.postpone(delivery, _TOO_MANY_MS)
            if len(taken) < _TAKE:
                return

    async def _deliver(
        self, session: aiohttp.ClientSession, lane: Lane, delivery: WebhookDelivery
    ) -> None:
        """One try and its record. Raises nothing but a cancellation."""
        pause_s = 0.0
        try:
            pause_s = await self._attempt(session, delivery)
        except StoreUnavailable as error:
            _log.debug("due again by itself", action="webhook", reason=error.code)
        except Exception as error:  # a bug must not end the sender
            _log.error("a bug", action="webhook", error=type(error).__name__, exc_info=True)
        finally:
            self._lanes.done(lane, time.monotonic(), pause_s)
            self._due.set()

    async def _attempt(self, session: aiohttp.ClientSession, delivery: WebhookDelivery) -> float:
        endpoint = await self._endpoint(delivery)
        if endpoint is None or endpoint.switched_off:
            await self._store.note(delivery, TryVerdict.DROPPED)
            _tries.labels(TryVerdict.DROPPED).inc()
            return 0.0
        started_s, at_ms = time.monotonic(), await self._store.now_ms()
        if not delivery.tries:
            _late.observe((at_ms - delivery.created_ms) / 1000)
        job_id = JobId(delivery.subject.replace("resp_", "job_", 1))
        root = await self._store.links.root(job_id)
        with trace.span("webhook", parent=root, number=delivery.tries + 1) as span:
            await self._store.links.follow(job_id, f"webhook:{delivery.endpoint}", span)
            outcome = await self._post(session, endpoint, delivery)
            span.set(status=outcome.status)
        duration_ms = int((time.monotonic() - started_s) * 1000)
        decision = decide(
            delivery.tries + 1, outcome, time.time(), self._draw, self._settings.schedule_s
        )
        await self._note(delivery, outcome, decision, at_ms, duration_ms)
        return decision.pause_s

    async def _endpoint(self, delivery: WebhookDelivery) -> Endpoint | None:
        if delivery.endpoint == PER_JOB:
            per_job = await self._store.per_job(delivery.tenant)
            return replace(per_job, url=delivery.url)
        return await self._store.endpoint(delivery.tenant, delivery.endpoint)

    async def _post(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, delivery: WebhookDelivery
    ) -> TryOutcome:
        """The receiver's response. Only status and Retry-After are used; the body is not read."""
        now_s = time.time()
        try:
            target = check_url(endpoint.url, self._settings.allowed, "url")
            headers = signed_headers(delivery.id, delivery.body, endpoint.signing(now_s), now_s)
            async with session.post(
                target.url, data=delivery.body, headers=headers, allow_redirects=False
            ) as answer:
                return TryOutcome(answer.status, retry_after=answer.headers.get("retry-after", ""))
        except BadRequest as error:
            return TryOutcome(error=error.message, is_refused=True)
        except TimeoutError:
            return TryOutcome(error=f"no answer in {self._settings.timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if (refused := _refused(error)) is not None:
                return TryOutcome(error=f"refused: {refused}", is_refused=True)
            return TryOutcome(error=type(error).__name__)

    async def _note(
        self,
        delivery: WebhookDelivery,
        outcome: TryOutcome,
        decision: RetryDecision,
        at_ms: int,
        took_ms: int,
    ) -> None:
        delay_ms = int(decision.delay_s * 1000)
        is_pending = decision.verdict is TryVerdict.PENDING
        entry = Try(
            at_ms=at_ms,
            status=outcome.status,
            error=outcome.error,
            duration_ms=took_ms,
            next_ms=at_ms + took_ms + delay_ms if is_pending else 0,
        )
        await self._store.note(delivery, decision.verdict, delay_ms=delay_ms, entry=entry)
        _tries.labels(decision.verdict).inc()
        _log.info(
            "tried",
            action="webhook",
            delivery_id=delivery.id,
            subject=delivery.subject,
            status=outcome.status,
            verdict=decision.verdict,
            duration_ms=took_ms,
        )
        if decision.verdict is TryVerdict.GONE and delivery.endpoint != PER_JOB:
            await self._switch_off(delivery)

    async def _switch_off(self, delivery: WebhookDelivery) -> None:
        try:
            await self._store.change(
                delivery.tenant,
                delivery.endpoint,
                lambda endpoint: replace(endpoint, switched_off="the receiver answered 410 Gone"),
            )
        except NotFound:
            return  # deleted meanwhile


def _lane(delivery: WebhookDelivery) -> Lane:
    """All deliveries of a tenant to one host share a limit."""
    host = delivery.url.split("/", 3)[2:3]
    return delivery.tenant, host[0].lower() if host else ""


def _refused(error: BaseException) -> TargetRefused | None:
    """The resolver's refusal, which aiohttp wraps."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TargetRefused):
            return cause
        cause = cause.__cause__ or getattr(cause, "os_error", None)
    return None

"""The pump: delivers the events of one queue to one subscriber, a bounded number at a time.

Called by `eventing.broker` and `eventing.pump`. `_turn` is one round of the loop, `_handle` the life of one
delivery; `subscriber` posts it, `decision` decides what follows from an answer, `readiness` whether events may be
claimed, `dead_letter` records undeliverable events. An event is settled only after its outcome is stored: when a pump
dies, its events stay pending and another pump claims them. Must not know more of a job than its id.
"""

import asyncio
from contextlib import AbstractContextManager, suppress
from typing import Final

import aiohttp
import structlog
from prometheus_client import Counter, Gauge

from eventing.broker.delivery.dead_letter import DeadLetterHandler
from eventing.broker.delivery.decision import (
    DeadLetter,
    Delivered,
    Nack,
    Retry,
    SubscriberResponse,
    decide,
    decide_refused,
    span_s,
)
from eventing.broker.delivery.subscriber import post_event
from eventing.broker.queue.claim import Claimed, ClaimRoom
from eventing.broker.queue.queue import Queue
from eventing.broker.router import Router, lane_of
from eventing.broker.trigger import Trigger
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import MINIMAL, REQUEST_TYPES, REQUESTED, job_id_of
from eventing.errors import Unavailable
from eventing.job.job import API_SOURCE, JobId
from eventing.job.prompt import LEFT_MS
from eventing.process.readiness import SubscriberReadiness
from eventing.telemetry import trace
from eventing.telemetry.metric.series import labelled
from eventing.telemetry.span import Span

_log = structlog.get_logger()
_deliveries = Counter(
    "torpor_deliveries_total", "Deliveries, by trigger and outcome.", ["trigger", "outcome"]
)
_prefix_claims = Counter(
    "torpor_prefix_claims_total",
    "Jobs claimed beside other pumps, by whether the engine had seen the start of their prompt.",
    ["trigger", "result"],
)
_passes = Counter(
    "torpor_claim_passes_total",
    "How often claimed jobs had been passed over for one whose prompt an engine had seen.",
    ["trigger"],
)
_left = Counter(
    "torpor_left_jobs_total",
    "Claimed jobs that had been left to an engine that holds their prefix, by who took them.",
    ["trigger", "taken_by"],
)
_in_flight = Gauge("torpor_deliveries_in_flight", "Deliveries under way.", ["trigger"])

CLAIM_IDLE_MS: Final = 15_000
"""An event whose pump was silent for this long may be claimed by another pump; claims are renewed at a third of it.
"""
_WAIT_MS: Final = 1000
LONGEST_BLOCK_S: Final = _WAIT_MS / 1000
"""How long a command of a pump may block the store's connection."""
_CLAIM_AT_ONCE: Final = 16
"""Largest claim: one script must not block the store for long, and short claims keep to the queue's order."""
_TIDY_EVERY_S: Final = 5.0
_GONE_AFTER_MS: Final = 3_600_000
"""A consumer without events that was silent for this long is forgotten by the next pump that starts."""
_AFTER_TROUBLE_S: Final = 0.5


class Pump:
    """Delivers the events of one trigger. `run` ends after `stop`, once each delivery in flight has ended or its
    event was given back.
    """

    def __init__(
        self,
        trigger: Trigger,
        queue: Queue,
        router: Router,
        dead_letters: DeadLetterHandler,
        *,
        token: str = "",
        room: ClaimRoom | None = None,
        drain_s: float = 0.0,
    ) -> None:
        self._trigger = trigger
        self._drain_s = drain_s
        self._queue = queue
        self._router = router
        self._dead_letters = dead_letters
        self._links = trace.SpanLinks(queue.redis)
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._prefer_of_requests = "reply" if router.wants_results else MINIMAL
        self._in_flight: dict[str, asyncio.Task[None]] = {}
        self._requests: dict[str, Event] = {}  #: those in flight that ask for a job, by ticket
        self._cancelled: set[JobId] = set()
        self._readiness = SubscriberReadiness(trigger.name, trigger.subscriber)
        # A callback read at scrape time is cheaper than an update in every round.
        _in_flight.labels(trigger.name).set_function(self._in_flight.__len__)
        self._orphans_due_s = 0.0
        self._freed = asyncio.Event()
        self._room = room or ClaimRoom()
        self._room.watch(self._freed)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping.set()
        self._freed.set()

    async def run(self) -> None:
        """Deliver until stopped."""
        timeout = aiohttp.ClientTimeout(total=self._trigger.delivery.timeout_s, connect=5)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(
                timeout=timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar()
            ) as self._session,
            asyncio.TaskGroup() as group,
        ):
            keeper = group.create_task(self._renew_claims())
            while not self._stopping.is_set():
                try:
                    await self._turn(group)
                except Unavailable:
                    await self._pause(_AFTER_TROUBLE_S)
            if self._drain_s and self._in_flight:
                # Given back now, they would fill a pump whose engine can only wait for the leases of ours.
                await asyncio.wait(list(self._in_flight.values()), timeout=self._drain_s)
            await self._nack_in_flight()
            keeper.cancel()

    async def _turn(self, group: asyncio.TaskGroup) -> None:
        """One round: wait for capacity and a ready subscriber, claim, deliver; wait for new events when the queue
        is empty.
        """
        free = await self._wait_for_capacity()
        want = min(free, _CLAIM_AT_ONCE, await self._claimable())
        claimed, is_all = await self._claim(want)
        for each in claimed:
            self._count_prefix(each)
            if each.event.type in REQUEST_TYPES:
                self._requests[each.ticket] = each.event
            self._in_flight[each.ticket] = group.create_task(self._handle(each))
        if is_all and not self._stopping.is_set():
            is_woken = await self._queue.wait(_WAIT_MS)
            if is_woken and (self._stopping.is_set() or not self._readiness.is_ready):
                await self._queue.wake()

    def _count_prefix(self, claimed: Claimed) -> None:
        if claimed.is_prefix_seen is not None:
            result = "hit" if claimed.is_prefix_seen else "miss"
            labelled(_prefix_claims, self._trigger.name, result).inc()
        if claimed.passes:
            labelled(_passes, self._trigger.name).inc(claimed.passes)
        if claimed.left_ms >= 0:
            taken_by = "holder" if claimed.left_ms < LEFT_MS else "any"
            labelled(_left, self._trigger.name, taken_by).inc()

    async def _claimable(self) -> int:
        """How many events may be claimed: any number while the subscriber is ready. One at a time once it has been
        unavailable for longer than an event's retries last, so that its events are given up.
        """
        loop = asyncio.get_running_loop()
        if not self._readiness.is_ready:
            await self._pause(self._readiness.next_probe_s(loop.time()))
            if self._stopping.is_set():
                return 0
            await self._readiness.probe(self._session)
        if self._readiness.is_ready:
            return _CLAIM_AT_ONCE
        is_given_up = self._readiness.away_s(loop.time()) >= span_s(self._trigger.delivery)
        return 1 if is_given_up else 0

    async def _claim(self, want: int) -> tuple[list[Claimed], bool]:
        """Up to `want` events, also those whose pump fell silent, and whether that was all there is."""
        reserved = await self._reserve() if want else 0
        if not reserved:
            return [], False
        taken = 0
        try:
            idle_ms = self._idle_ms()
            claimed = await self._queue.claim(
                want, most_bytes=reserved, claim_idle_ms=idle_ms, search_every_ms=idle_ms // 6
            )
            taken = sum(each.size for each in claimed)
        finally:
            self._room.release(reserved - taken)
        is_all = len(claimed) < want and taken < reserved and not self._queue.is_searching
        return claimed, is_all

    async def _reserve(self) -> int:
        """Room for a claim; 0 only when stopping."""
        while not self._stopping.is_set():
            if size := self._room.reserve():
                return size
            self._freed.clear()
            await self._freed.wait()
        return 0

    def _idle_ms(self) -> int:
        """How long another consumer must have been silent for its events to be claimed; 0 in most rounds, since the
        script then reads a page of the pending list.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s < self._orphans_due_s and not self._queue.is_searching:
            return 0
        self._orphans_due_s = now_s + CLAIM_IDLE_MS / 3000
        return CLAIM_IDLE_MS

    async def _wait_for_capacity(self) -> int:
        """How many more events may be delivered now; 0 only when stopping."""
        while not self._stopping.is_set():
            if free := self._trigger.parallelism - len(self._in_flight):
                return free
            self._freed.clear()
            await self._freed.wait()
        return 0

    async def _handle(self, claimed: Claimed) -> None:
        """One delivery and its outcome. When the store fails, the event stays pending and is claimed again."""
        try:
            with self._span(claimed) as span:
                await self._links.follow(_job_id(claimed.event), self._trigger.name, span)
                answer, reply = await self._deliver(claimed.event)
                span.set(status=answer.status)
            await self._retry_while_store_unavailable(claimed, answer, reply)
        except Unavailable as error:
            _log.debug("delivery left pending", action="deliver", reason=error.code)
        except Exception as error:
            # The last handler of one delivery: without it, a pump that dies of an event dies of it again
            # after each restart, with all its queue. It counts as a try, so it ends.
            _log.error("delivery broke", action="deliver", reason=type(error).__name__)
            with suppress(Unavailable):
                await self._conclude(claimed, SubscriberResponse(status=0), None)
        finally:
            self._in_flight.pop(claimed.ticket, None)
            self._requests.pop(claimed.ticket, None)
            self._room.release(claimed.size)
            self._freed.set()

    def _span(self, claimed: Claimed) -> AbstractContextManager[Span]:
        event = claimed.event
        return trace.span(
            "deliver",
            parent=event.extensions.get("traceparent", ""),
            # For a job of our api the submit has already decided.
            begins=event.type == REQUESTED and event.source != API_SOURCE,
            trigger=self._trigger.name,
            type=event.type,
            number=claimed.tries,
        )

    async def _retry_while_store_unavailable(
        self, claimed: Claimed, answer: SubscriberResponse, reply: Event | None
    ) -> None:
        """Store the outcome, again while the store is unavailable: otherwise the event would stay pending until its
        claim lapses. By then another pump may have claimed it.
        """
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + CLAIM_IDLE_MS / 1000
        while True:
            try:
                return await self._conclude(claimed, answer, reply)
            except Unavailable:
                if loop.time() > give_up_s:
                    raise
            await asyncio.sleep(_AFTER_TROUBLE_S)

    async def _conclude(
        self, claimed: Claimed, answer: SubscriberResponse, reply: Event | None
    ) -> None:
        """Store the outcome. A reply is queued before its cause is settled, in one round trip."""
        decision = self._decide(claimed, answer)
        match decision:
            case Delivered():
                reply = reply if decision.may_reply else None
                calls = self._router.put_calls(reply, is_reply=True) if reply else []
                await self._queue.settle(claimed.ticket, calls)
            case Retry(delay_s):
                # An engine that did not answer may be gone.
                by_any = answer.status == 0
                await self._queue.defer(claimed.ticket, int(delay_s * 1000), by_any=by_any)
            case Nack():
                await self._queue.nack(claimed.ticket, lane_of(claimed.event))
            case DeadLetter(reason):
                if await self._dead_letters.record(self._trigger, claimed, reason, answer):
                    await self._queue.settle(claimed.ticket)
                else:
                    is_tried = not answer.is_refusal
                    await self._queue.defer(claimed.ticket, CLAIM_IDLE_MS, is_tried=is_tried)
        if answer.status == 0:
            self._queue.forget_seen()
        labelled(_deliveries, self._trigger.name, type(decision).__name__).inc()

    def _decide(
        self, claimed: Claimed, answer: SubscriberResponse
    ) -> Delivered | Retry | Nack | DeadLetter:
        """The decision for an answer, and its effect on later claims."""
        spec, now_s = self._trigger.delivery, asyncio.get_running_loop().time()
        if not answer.is_refusal:
            if answer.status:
                self._readiness.on_answer()
            return decide(spec, answer, claimed.tries)
        refused_s = max(claimed.refused_ms / 1000, self._readiness.away_s(now_s))
        asked_s = answer.retry_after_s
        if asked_s is not None:
            asked_s = min(asked_s, spec.retry_after_max_s)
        self._readiness.on_refusal(now_s, asked_s)
        return decide_refused(spec, claimed.refusals, refused_s)

    async def _deliver(self, event: Event) -> tuple[SubscriberResponse, Event | None]:
        prefer = self._prefer_of_requests if event.type in REQUEST_TYPES else "reply"
        headers = {"prefer": prefer} | self._headers | trace.headers()
        return await post_event(self._session, self._trigger, event, headers)

    async def _renew_claims(self) -> None:
        """Renew the claims of what is in flight, so that no other pump takes it, and trim the queue."""
        loop = asyncio.get_running_loop()
        tidied, gone_after_ms = loop.time(), _GONE_AFTER_MS
        while True:
            await asyncio.sleep(CLAIM_IDLE_MS / 3000)
            with suppress(Unavailable):
                await self._queue.keep(list(self._in_flight))
                await self._drop_cancelled()
                if loop.time() - tidied > _TIDY_EVERY_S:
                    await self._queue.tidy(gone_after_ms=gone_after_ms)
                    tidied, gone_after_ms = loop.time(), 0

    async def _drop_cancelled(self) -> None:
        """Cancel deliveries whose job was seen cancelled two checks ago. A predictor that runs the job answers by
        itself within a second; an activator would hold the request and start a predictor for it.
        """
        jobs = {ticket: _job_id(event) for ticket, event in self._requests.items()}
        gone = set(await self._queue.cancelled(list(set(jobs.values()))))
        for ticket, job_id in jobs.items():
            if job_id in gone & self._cancelled and (task := self._in_flight.get(ticket)):
                _log.info("job was cancelled", action="deliver", job_id=job_id)
                task.cancel()
                await self._queue.settle(ticket)
        self._cancelled = gone

    async def _nack_in_flight(self) -> None:
        """Stop waiting for answers and give the events back. A predictor that holds a job's lease continues, and
        the next delivery of the event finds its result.
        """
        for ticket, task in list(self._in_flight.items()):
            task.cancel()
            with suppress(Unavailable):
                await self._queue.defer(ticket, 0)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def _job_id(event: Event) -> JobId:
    """The id of the job that the event requests or reports on."""
    if event.type in REQUEST_TYPES:
        return job_id_of(event)
    return JobId(event.subject)

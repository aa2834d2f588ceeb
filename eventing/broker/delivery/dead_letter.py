"""Records events that cannot be delivered: first in our store, then in the trigger's dead-letter sink.

Called by the pump. A request event fails its job; the failed job *is* the dead letter (list and redrive work on the
job store). Any other event is kept in the queue's `dead` hash. The `deadLetterSink` is called after that, so
nothing is lost when it is down.

A request that another broker gave up (a trigger with `retry_span_s`) fails its job only when that broker can have
used up its retries: RabbitMQ's dispatcher gives up every event it holds when it shuts down. Otherwise the job is
published again (docs/adr/0170).
"""

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import aiohttp
import orjson
import structlog
from redis.asyncio import Redis

from eventing.broker.advance import Advance
from eventing.broker.delivery.decision import (
    DeliverySpec,
    SubscriberResponse,
    backoff_s,
    is_retried,
)
from eventing.broker.intake import Route
from eventing.broker.queue.claim import Claimed
from eventing.broker.queue.queue import member_of
from eventing.broker.tool_calls import ToolCalls
from eventing.broker.trigger import Trigger
from eventing.clock import SystemClock
from eventing.cloudevent.event import Event, build_binary, to_record
from eventing.cloudevent.job_event import (
    PLANNED,
    REQUEST_TYPES,
    REQUESTED,
    STEP,
    job_id_of,
    job_of,
    unreadable_job,
)
from eventing.cloudevent.publisher import payload
from eventing.cloudevent.tool_event import CALLED, place_of
from eventing.errors import BadRequest, IdempotencyConflict
from eventing.job.job import API_SOURCE, Job, JobError, JobId, JobState
from eventing.job.pipelines.fallback import NO_FALLBACKS, Fallbacks
from eventing.job.plan import OnFailure
from eventing.job.step import AdvanceStatus
from eventing.job.store import Ending, LeaseSettings, LeaseStatus
from eventing.job.tools.store import ReturnStatus, ToolStore
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.script import Argument, run
from eventing.store.vector_store.note import WORK_TYPES
from eventing.telemetry.metric.family import DEAD_LETTERS

_log = structlog.get_logger()
_SINK_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
_KEEP_DEAD_S: Final = 14 * 24 * 3600
_UNANSWERED: Final = ("-1", "0")
"""The value of `knativeerrorcode` that Knative's brokers set when the last try had no HTTP answer."""
_UNAVAILABLE: Final = "503"
_LONGEST_WAIT_MS: Final = 24 * 3600 * 1000
"""How long a job without a deadline waits for what a step of it needs."""
_GIVEN_UP: Final = (ReturnStatus.OK, ReturnStatus.NEXT, ReturnStatus.ENDED)
_LONGEST_MS: Final = 900_000
"""Longest pause before a request that was given up is published again; the first time there is no pause."""


class DeadLetterHandler:
    """Records undeliverable events."""

    def __init__(
        self,
        redis: Redis,
        store: ToolStore,
        route: Route,
        lease_ms: int = LeaseSettings().lease_ms,
        fallbacks: Fallbacks = NO_FALLBACKS,
    ) -> None:
        self._redis = redis
        self._advance = Advance(store, route, fallbacks)
        self._calls = ToolCalls(store, route)
        self._lease_ms = lease_ms
        self._store = store

    async def record(
        self, trigger: Trigger, claimed: Claimed, reason: str, answer: SubscriberResponse
    ) -> bool:
        """Record the event; False when it must stay in the queue: its job runs under a live lease, or what it needs is
        unavailable and it is waited for.

        Raises `StoreUnavailable` when the event could not be recorded; then it must not be settled.
        """
        event = claimed.event
        if event.type in (*REQUEST_TYPES, CALLED) and trigger.retry_span_s:
            match await self._requeue(event, trigger.retry_span_s):
                case "held":
                    return False
                case "requeued":
                    _log.info("to be published again", action="requeue", trigger=trigger.name)
                    return True
                case "spent":
                    reason = f"given up by its broker after {_last_answer(event)}"
                case _:
                    return True  # the job has ended or was deleted
        elif answer.is_refusal and await self._is_waited_for(event):
            return False
        is_recorded = await self._set_aside(trigger, claimed, reason)
        if is_recorded is not None:
            return is_recorded
        _log.warning("set aside", action="dead_letter", trigger=trigger.name, status=answer.status)
        await _send_to_sink(trigger.delivery, _explained(event, trigger, reason, answer))
        return True

    async def _set_aside(self, trigger: Trigger, claimed: Claimed, reason: str) -> bool | None:
        """None when this call recorded the event; else whether another delivery did, or False while it runs."""
        event = claimed.event
        if event.type == CALLED:
            given_up = await self._give_up_call(event, reason)
            return None if given_up in _GIVEN_UP else given_up is not ReturnStatus.HELD
        if event.type == PLANNED:
            is_first = await self._end_step(event, reason) is AdvanceStatus.OK
            return None if is_first else True
        if event.type in REQUEST_TYPES:
            hold = await self._fail_job(event, reason)
            return None if hold is LeaseStatus.OK else hold is not LeaseStatus.HELD
        await self._keep(trigger, claimed, reason)
        DEAD_LETTERS.labels(trigger.name).inc()
        return None

    async def _is_waited_for(self, event: Event) -> bool:
        """True for an event that is not given up while what takes it is unavailable: of a file to be indexed, and of
        a tool call or a step that may not be skipped, until its job is late, or a day old if it is never late.
        """
        if event.type in WORK_TYPES:
            return True
        if event.type == CALLED:
            called = await self._store.get(JobId(event.subject), with_result=False)
            return called is not None and not called.state.is_terminal and _is_early(called)
        if event.type != PLANNED:
            return False
        job = await self._store.get(job_id_of(event), with_result=False)
        step = job.plan.step(event.extensions.get(STEP, "")) if job and job.plan else None
        if job is None or step is None or step.on_failure is OnFailure.CONTINUE:
            return False
        return _is_early(job)

    async def _give_up_call(self, event: Event, reason: str) -> ReturnStatus:
        """The tool call that could not be delivered: it was not run, or it is in doubt."""
        job, place = await self._store.get(JobId(event.subject), with_result=False), place_of(event)
        if job is None or place is None:
            return ReturnStatus.MISSING
        return await self._calls.given_up(job, *place, event.id, reason)

    async def _end_step(self, event: Event, reason: str) -> AdvanceStatus:
        """The step that could not be run is skipped, or fails its job."""
        job = await self._store.get(job_id_of(event), with_result=False)
        if job is None:
            return AdvanceStatus.MISSING
        return await self._advance.exhausted(job, event.extensions.get(STEP, ""), reason)

    async def _fail_job(self, event: Event, reason: str) -> LeaseStatus:
        """`OK` when this call failed the job; otherwise the reason why it did not."""
        error = JobError(code="undeliverable", message=reason)
        try:
            job_id = await self._recorded(event)
        except IdempotencyConflict:
            return LeaseStatus.MISSING  # the identity belongs to another request's job
        except BadRequest as cause:
            if event.source == API_SOURCE:
                return LeaseStatus.MISSING  # not from the api, whatever its source says
            refusal = JobError(code=cause.code, message=cause.message, field=cause.field)
            is_ours = await self._store.reject(unreadable_job(event), refusal, event.data)
            return LeaseStatus.OK if is_ours else LeaseStatus.MISSING
        if await self._is_elsewhere(job_id, event):
            return LeaseStatus.MISSING
        ending = Ending(state=JobState.FAILED, error=error, is_dead_letter=True)
        return await self._store.conclude(job_id, ending)

    async def _is_elsewhere(self, job_id: JobId, event: Event) -> bool:
        """True for an event from before its job was sent to another model: that model's queue has one of its own."""
        job = await self._store.get(job_id, with_result=False)
        return job is not None and job.to_run.model != job_of(event).request.model

    async def _requeue(self, event: Event, retry_span_s: float) -> str:
        """The answer of `requeue.lua`; `spent` for an event that is not a valid job."""
        try:
            job_id = await self._recorded(event)
        except IdempotencyConflict:
            return "missing"
        except BadRequest:
            return "spent"
        is_refused = event.extensions.get("knativeerrorcode") == _UNAVAILABLE
        if is_refused and await self._is_waited_for(event):
            retry_span_s = _LONGEST_WAIT_MS / 1000
        is_answered = event.extensions.get("knativeerrorcode", "") not in _UNANSWERED
        args: list[Argument] = [int(retry_span_s * 1000), int(is_answered), _LONGEST_MS]
        args.append(self._lease_ms)
        async with failures_named():
            answer: bytes = await run(self._redis, "requeue", [keys.job(job_id)], args)
        return answer.decode()

    async def _recorded(self, event: Event) -> JobId:
        """The job that the event asks for, which is in the store now."""
        if event.type == CALLED:  # the step that is published again queues the call again
            return JobId(event.subject)
        if event.type != REQUESTED:  # we sent it, of a job that is recorded
            return job_id_of(event)
        new = job_of(event)
        if event.source == API_SOURCE:  # the api records its own before it publishes them
            return new.id
        job, _ = await self._store.submit(new)
        return job.id

    async def _keep(self, trigger: Trigger, claimed: Claimed, reason: str) -> None:
        key = keys.queue(trigger.name, "dead")
        note = {
            "reason": reason,
            "tries": claimed.tries,
            "event": to_record(claimed.event).decode(),
        }
        async with failures_named():
            await self._redis.hset(key, member_of(claimed.event), orjson.dumps(note))
            await self._redis.expire(key, _KEEP_DEAD_S)


def _is_early(job: Job) -> bool:
    late_ms = job.deadline_ms or job.created_ms + _LONGEST_WAIT_MS
    return SystemClock().wall_ms() < late_ms


def _last_answer(event: Event) -> str:
    code = event.extensions.get("knativeerrorcode", "")
    return "no answer" if code in ("", *_UNANSWERED) else f"an answer of {code:.20}"


def _explained(event: Event, trigger: Trigger, reason: str, answer: SubscriberResponse) -> Event:
    """The event with Knative's dead-letter extensions."""
    why = {
        "knativeerrordest": trigger.subscriber,
        "knativeerrorcode": str(answer.status or -1),
        "knativeerrordata": base64.b64encode(answer.body or reason.encode()).decode(),
    }
    return replace(event, extensions=dict(event.extensions) | why)


async def _send_to_sink(spec: DeliverySpec, event: Event) -> None:
    """POST the event to the sink, if there is one, best effort, as often as `retry` says; the record in the store is
    what counts.
    """
    if not spec.dead_letter_sink:
        return
    headers, body = build_binary(event)
    async with aiohttp.ClientSession(timeout=_SINK_TIMEOUT) as session:
        for tries in range(1, spec.retry + 2):
            status = await _post(session, spec.dead_letter_sink, headers, body)
            if 200 <= status < 300:
                return
            _log.warning(
                "dead-letter sink did not accept the event", action="dead_letter", status=status
            )
            if not is_retried(status) or tries > spec.retry:
                return
            await asyncio.sleep(backoff_s(spec, tries))


async def _post(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], body: bytes
) -> int:
    """The HTTP status; 0 when there was no answer, 400 for an invalid address."""
    try:
        async with session.post(
            url, data=payload(body), headers=headers, skip_auto_headers=("content-type",)
        ) as response:
            return response.status
    except ValueError:
        return 400
    except (aiohttp.ClientError, TimeoutError, OSError):
        return 0

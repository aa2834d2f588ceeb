"""Takes a job in: checked, recorded, handed to the broker, in this order (docs/adr/0040).

Called by every way in: jobs, OpenAI's endpoints, batches. Must not know HTTP.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import orjson
import structlog
from prometheus_client import Counter

from api.auth.principal import Principal
from api.job.catalog import Catalog
from api.job.concurrency_limiter import ConcurrencyLimiter
from api.webhook.address import AllowList, check_url
from api.webhook.webhook import BATCH, JOB_WEBHOOK, WEBHOOK_URL, parse_webhook_options
from eventing.clock import Clock
from eventing.cloudevent.job_event import request_event
from eventing.cloudevent.publisher import Publisher
from eventing.cloudevent.request_id import KEPT, checked
from eventing.errors import (
    BrokerUnavailable,
    IdempotencyConflict,
    InvalidJob,
    StoreUnavailable,
)
from eventing.job.job import (
    API_SOURCE,
    Job,
    JobError,
    JobId,
    JobRequest,
    JobState,
    Lane,
    derive_job_id,
    new_job_id,
    parse_request,
)
from eventing.job.store import Ending, LeaseStatus, NewJob, Store
from eventing.outbox.published import PublishedJobs
from eventing.store.job_record import fresh
from eventing.telemetry import trace
from eventing.telemetry.metric.series import labelled

NEVER_ACCEPTED: Final = "never_accepted"
"""Error code of a job whose submit was answered 503: it was withdrawn and will never run."""

_WITHDRAW_S: Final = 0.3
_LOOKS: Final = 16
_QUEUING_SHARE: Final = 0.5
"""Of the time a submit may take, how much of it may pass before its turn comes."""

_log = structlog.get_logger()
_submitted = Counter("torpor_api_submits_total", "Submits, by what became of them.", ["outcome"])


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """How a job is to be taken in, beyond what it asks."""

    idempotency_key: str = ""
    lane: Lane = Lane.DEFAULT
    expires_after_s: float = 0.0
    traceparent: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        """Tells these options from others. Who traces the call, and under which request id, is no
        part of what it asks.
        """
        metadata = {name: text for name, text in self.metadata.items() if name != KEPT}
        asked = [self.lane, self.expires_after_s, metadata]
        return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def with_metadata(self, own: Mapping[str, str]) -> "SubmitOptions":
        """The same, with entries of ours beside the caller's."""
        return replace(self, metadata={**self.metadata, **own})


class Intake(Protocol):
    """Records and queues at once a job that nobody can have sent before (`eventing.broker.intake`)."""

    async def take(self, new: NewJob) -> Job:
        """The job, recorded and on its way. When it raises `StoreUnavailable`, it may be either."""


class Admission(Protocol):
    """The limits on jobs: asked once for every job before it is recorded."""

    async def admit(self, principal: Principal, new: NewJob) -> None:
        """Return to let it in; raise what should be answered instead."""

    async def on_admitted(self, new: NewJob, job: Job, is_new: bool) -> None:
        """It was let in and is recorded as `job`; not `is_new` for one that was there before."""

    async def on_rejected(self, tenant: str, job_id: JobId) -> None:
        """It was let in, and nothing came of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitDeps:
    """What a submit needs. Without an `intake`, record and event go one after the other."""

    catalog: Catalog
    store: Store
    publisher: Publisher
    intake: Intake | None
    published: PublishedJobs
    admission: Admission
    limiter: ConcurrencyLimiter
    clock: Clock
    webhook_allow: AllowList
    submit_timeout_s: float


async def submit(
    deps: SubmitDeps, principal: Principal, line: Mapping[str, Any], wish: SubmitOptions
) -> tuple[Job, bool]:
    """The job that `line` asks for, recorded and on its way; True when it is new.

    Raises `InvalidJob` and its kin for what can never run, `IdempotencyConflict` for a key used
    with another body, `Unavailable` when nothing was accepted. If the process dies after the
    record was written, the sweep hands the event in.
    """
    new = _new_job(deps, principal, parse_request(line), wish)
    key = wish.idempotency_key
    return await submit_new(deps, principal, new, idempotency_key=key, is_fresh=not key)


async def submit_line(
    deps: SubmitDeps, principal: Principal, line: Mapping[str, Any], *, key: str, lane: Lane
) -> Job:
    """The job of a batch's line; the same key is the same job, however often it is submitted."""
    own = {BATCH: key.partition(":")[0]}
    wish = SubmitOptions(idempotency_key=f"batch:{key}", lane=lane, metadata=own)
    job, _ = await submit(deps, principal, line, wish)
    return job


async def submit_new(
    deps: SubmitDeps,
    principal: Principal,
    new: NewJob,
    *,
    idempotency_key: str = "",
    is_fresh: bool = False,
) -> tuple[Job, bool]:
    """As `submit`, for a job whose identity is known. With a key, the id comes from that; a job
    that `is_fresh` has an id that nobody else can know.
    """
    with trace.span("submit", parent=new.traceparent, begins=True) as span:
        traced = replace(new, traceparent=span.traceparent)
        intake = deps.intake if is_fresh else None
        job, is_new = await _submit_new(deps, principal, traced, idempotency_key, intake)
        span.set(job_id=job.id, is_new=is_new, model=job.request.model)
        # The one line that knows both the caller's request id and the job.
        _log.info("accepted", action="submit", job_id=job.id, is_new=is_new, lane=job.lane)
        return job, is_new


async def _submit_new(
    deps: SubmitDeps, principal: Principal, new: NewJob, key: str, intake: Intake | None
) -> tuple[Job, bool]:
    await deps.catalog.check(new.request)
    if url := new.metadata.get(JOB_WEBHOOK):
        check_url(url, deps.webhook_allow, WEBHOOK_URL)
    deadline_s = deps.clock.monotonic_s() + deps.submit_timeout_s
    async with deps.limiter.acquire(deps.submit_timeout_s * _QUEUING_SHARE):
        await _admit(deps, principal, new, deadline_s)
        if intake is not None:
            job, is_new = await _take_in(deps, intake, new, deadline_s), True
            await deps.admission.on_admitted(new, job, is_new)
        else:
            job, is_new = await _record_and_hand_in(deps, new, key, deadline_s)
    labelled(_submitted, "accepted" if is_new else "repeated").inc()
    return job, is_new


async def _take_in(deps: SubmitDeps, intake: Intake, new: NewJob, deadline_s: float) -> Job:
    """Record and event in one flight. What is not known to have arrived is withdrawn, and refused
    unless it is known to run.
    """
    budget_s = deadline_s - deps.clock.monotonic_s() - _WITHDRAW_S
    try:
        async with asyncio.timeout(max(budget_s, 0.0)):
            job = await intake.take(new)
    except (TimeoutError, StoreUnavailable) as error:
        if await _withdraw(deps, new.id):
            await _left(deps, new.tenant, new.id)
            labelled(_submitted, "store_unavailable").inc()
            if isinstance(error, StoreUnavailable):
                raise
            raise StoreUnavailable("the store does not answer") from error
        _log.warning("taken in silence", action="submit", job_id=new.id)
        return fresh(new, deps.clock.wall_ms())
    deps.published.add(job.id)
    return job


async def _record_and_hand_in(
    deps: SubmitDeps, new: NewJob, key: str, deadline_s: float
) -> tuple[Job, bool]:
    """First the record, which may have been there before; a new one's event then."""
    try:
        job, is_new = await _record(deps, new, key, deadline_s)
    except IdempotencyConflict:
        await _left(deps, new.tenant, new.id)
        raise
    await deps.admission.on_admitted(new, job, is_new)
    if is_new:
        try:
            await _publish_request(deps, job, deadline_s)
        except BrokerUnavailable:
            await _left(deps, job.tenant, job.id)
            raise
    return job, is_new


async def _left(deps: SubmitDeps, tenant: str, job_id: JobId) -> None:
    """What was let in did not become a job. Limits mend themselves when this fails."""
    with suppress(StoreUnavailable, TimeoutError):
        async with asyncio.timeout(_WITHDRAW_S):
            await deps.admission.on_rejected(tenant, job_id)


async def _admit(deps: SubmitDeps, principal: Principal, new: NewJob, deadline_s: float) -> None:
    """Limits are kept in the store too; one that does not answer must not eat the others' time."""
    budget_s = deadline_s - deps.clock.monotonic_s() - 2 * _WITHDRAW_S
    try:
        async with asyncio.timeout(max(budget_s, 0.0)):
            await deps.admission.admit(principal, new)
    except TimeoutError as error:
        raise StoreUnavailable("the store does not answer") from error


def _new_job(
    deps: SubmitDeps, principal: Principal, request: JobRequest, wish: SubmitOptions
) -> NewJob:
    job_id = new_job_id()
    deadline_ms = 0
    if wish.expires_after_s:
        deadline_ms = deps.clock.wall_ms() + int(wish.expires_after_s * 1000)
    return NewJob(
        id=job_id,
        request=request,
        source=API_SOURCE,
        event_id=job_id,
        tenant=principal.tenant,
        lane=wish.lane,
        deadline_ms=deadline_ms,
        traceparent=wish.traceparent,
        metadata=wish.metadata,
        options_sha=wish.sha if wish.idempotency_key else "",
    )


async def _record(deps: SubmitDeps, new: NewJob, key: str, deadline_s: float) -> tuple[Job, bool]:
    """The record. The same key gives the same job, but one that was withdrawn makes way for the
    next: its tombstone stays, so that a stray event of it still finds it ended.
    """
    budget_s = deadline_s - deps.clock.monotonic_s() - _WITHDRAW_S
    try:
        async with asyncio.timeout(max(budget_s, 0.0)):
            if not key:
                return await deps.store.create(new)
            generation = 0
            while True:
                job_id = keyed_job_id(new.tenant, key, generation)
                job, is_new = await deps.store.create(replace(new, id=job_id, event_id=job_id))
                if is_new or not _is_withdrawn(job):
                    return job, is_new
                generation = await _behind_withdrawn(deps, new.tenant, key)
    except TimeoutError as error:
        _submitted.labels("store_unavailable").inc()
        raise StoreUnavailable("the store does not answer") from error
    except StoreUnavailable:
        _submitted.labels("store_unavailable").inc()
        raise


async def _behind_withdrawn(deps: SubmitDeps, tenant: str, key: str) -> int:
    """The first try under a key that was not withdrawn; the very first is known to be. Withdrawn
    ones are contiguous, so sixteen looks at once, in one round trip, leave a sixteenth of where it
    may be: an outage of an hour, with 2,000 tries of a patient client, costs four round trips.
    """
    last, beyond = 0, 0  # the latest that was withdrawn; the first that is known not to be
    looked: Sequence[int] = [2**rung for rung in range(_LOOKS)]
    while beyond - last != 1:
        ids = [keyed_job_id(tenant, key, generation) for generation in looked]
        jobs = await asyncio.gather(*map(deps.store.get, ids))
        for generation, job in zip(looked, jobs, strict=True):
            if job is None or not _is_withdrawn(job):
                beyond = generation
                break
            last = generation
        if beyond:
            looked = range(last + 1, beyond, max((beyond - last) // _LOOKS, 1))
        else:
            looked = [last * 2**rung for rung in range(1, _LOOKS)]
    return beyond


async def _publish_request(deps: SubmitDeps, job: Job, deadline_s: float) -> None:
    """Publish the request event; its note in the outbox is cleared a moment later.

    Raises `BrokerUnavailable` unless the job is known to run, or to have run: then the broker had
    the event after all.
    """
    budget_s = deadline_s - deps.clock.monotonic_s() - _WITHDRAW_S
    try:
        async with asyncio.timeout(max(budget_s, 0.0)):
            await deps.publisher.publish(request_event(job))
    except (TimeoutError, BrokerUnavailable) as error:
        if await _withdraw(deps, job.id):
            _submitted.labels("broker_unavailable").inc()
            raise BrokerUnavailable("the broker does not take jobs now", 2.0) from error
        _log.warning("taken in silence", action="submit", job_id=job.id)
        return
    deps.published.add(job.id)


async def _withdraw(deps: SubmitDeps, job_id: JobId) -> bool:
    """False when the job runs already, or has ended.

    True also when the store did not say: it may have ended the job all the same, and a 202 for a
    job that was withdrawn is a promise broken, where a 503 for one that stands is a try that a key
    makes harmless (docs/adr/0087).
    """
    error = JobError(
        code=NEVER_ACCEPTED, message="the broker was away; the submit was answered 503"
    )
    hold = LeaseStatus.OK
    with suppress(TimeoutError, StoreUnavailable):
        async with asyncio.timeout(_WITHDRAW_S):
            hold = await deps.store.conclude(job_id, Ending(state=JobState.CANCELLED, error=error))
            if hold is LeaseStatus.OK:
                await deps.store.mark_announced(job_id)  # nobody was promised a result event
    return hold in (LeaseStatus.OK, LeaseStatus.MISSING)


def keyed_job_id(tenant: str, key: str, generation: int = 0) -> JobId:
    """The id that an Idempotency-Key stands for, among a tenant's jobs."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return derive_job_id(f"{API_SOURCE}/idempotency/{tenant}", f"{digest}:{generation}")


def _is_withdrawn(job: Job) -> bool:
    return job.error is not None and job.error.code == NEVER_ACCEPTED


def parse_submit_options(
    line: Mapping[str, Any], headers: Mapping[str, str], *, lane: Lane = Lane.DEFAULT
) -> SubmitOptions:
    """What a call asks beyond its body: headers, and the job line's own `priority`,
    `expires_after` and `metadata`.

    Raises `InvalidJob` naming the field or header.
    """
    key = headers.get("idempotency-key", "")
    if len(key) > 255:
        raise InvalidJob("Idempotency-Key may have 255 characters", "Idempotency-Key")
    metadata = check_metadata(line.get("metadata"), "metadata") | parse_webhook_options(
        line, headers
    )
    if request_id := checked(headers.get("x-request-id", "")):
        metadata[KEPT] = request_id
    return SubmitOptions(
        idempotency_key=key,
        lane=_lane(line.get("priority"), lane),
        expires_after_s=_expires_after_s(line, headers),
        traceparent=_traceparent(headers.get("traceparent", "")),
        metadata=metadata,
    )


def check_metadata(value: Any, where: str) -> dict[str, str]:
    """At most 16 pairs of text, as OpenAI has it; names that start with `torpor.` are ours."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > 16:
        raise InvalidJob(f"{where} must be an object of at most 16 texts", where)
    for name, text in value.items():
        pair = f"{where}.{name[:64]}"
        if len(name) > 64:
            raise InvalidJob(f"{pair}...: a name may have 64 characters, not {len(name)}", pair)
        if not isinstance(text, str):
            raise InvalidJob(f"{pair} must be text", pair)
        if len(text) > 512:
            raise InvalidJob(f"{pair} may have 512 characters, not {len(text)}", pair)
        if name.startswith("torpor."):
            raise InvalidJob(f"{pair}: names that start with torpor. are reserved", pair)
    return dict(value)


def _lane(value: Any, default: Lane) -> Lane:
    if value is None:
        return default
    if not isinstance(value, str) or value not in list(Lane):
        raise InvalidJob(f"priority must be one of {', '.join(Lane)}", "priority")
    return Lane(value)


_LONGEST_S: Final = 30 * 24 * 3600


def _expires_after_s(line: Mapping[str, Any], headers: Mapping[str, str]) -> float:
    where, value = "expires_after", line.get("expires_after")
    if value is None and "torpor-expires-after" in headers:
        where = "Torpor-Expires-After"
        text = headers["torpor-expires-after"]
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1
    if value is None:
        return 0.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _LONGEST_S:
        raise InvalidJob(f"{where} must be seconds, more than 0 and at most {_LONGEST_S}", where)
    return float(value)


def _traceparent(text: str) -> str:
    """A W3C traceparent as it came; one that is malformed is dropped, as the standard says."""
    parts = text.split("-")
    sizes = [len(part) for part in parts]
    is_hex = all(c in "0123456789abcdef" for part in parts for c in part)
    return text if sizes == [2, 32, 16, 2] and is_hex else ""

"""Submits a job: validate, admit, record together with its event (docs/adr/0140).

Called by every way in: jobs, OpenAI's endpoints, batches. Must not know HTTP.
"""

import asyncio
import hashlib
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import structlog
from prometheus_client import Counter

from api.auth.principal import Principal
from api.http.errors import ModelNotAllowed
from api.job.catalog import Catalog
from api.job.sealing import Sealing, with_sealed
from api.job.submit_options import JOB_SCHEMA, SubmitOptions, fallback_of, skip_steps_of
from api.limit.concurrency_limiter import ConcurrencyLimiter
from api.limit.limit import check_moved
from api.webhook.webhook import (
    BATCH,
    JOB_WEBHOOK,
    WEBHOOK_URL,
)
from eventing.broker.intake import Intake
from eventing.clock import Clock
from eventing.errors import (
    BadRequest,
    BrokerUnavailable,
    ConversationLocked,
    ConversationMoved,
    NotCached,
    NotFound,
    StoreUnavailable,
    TorporError,
)
from eventing.job.cache.cache import directives
from eventing.job.job import (
    API_SOURCE,
    KEY,
    KEY_BUDGET,
    MODELS,
    RUNNABLE_URLS,
    Job,
    JobId,
    JobRequest,
    Lane,
    derive_job_id,
    new_job_id,
    parse_request,
)
from eventing.job.plan import PlannedStep, tiers_of
from eventing.job.store import NewJob
from eventing.job.tools.request import OnApproval
from eventing.process.egress import AllowList, check_url
from eventing.store.conversation.store import Conversations
from eventing.telemetry import trace
from eventing.telemetry.metric.series import labelled

_GIVE_BACK_S: Final = 0.3
_QUEUING_SHARE: Final = 0.5
"""The share of a submit's time limit that it may spend waiting for its turn."""

_NOT_RECORDED: Final = (ConversationLocked, ConversationMoved, NotFound)

_log = structlog.get_logger()
_submitted = Counter("torpor_api_submits_total", "Submits, by outcome.", ["outcome"])


class JobAdmission(Protocol):
    """The limits on jobs: asked once for every job before it is recorded."""

    def turn(
        self, principal: Principal, new: NewJob, wait_s: float
    ) -> AbstractAsyncContextManager[bool]:
        """Hold back other submits of the same id; gives True when the job is recorded already."""

    async def admit(self, principal: Principal, new: NewJob) -> None:
        """Return to admit the job; raise the refusal otherwise."""

    async def on_admitted(self, new: NewJob, job: Job, is_new: bool) -> None:
        """The admitted job was recorded as `job`; not `is_new` when it existed before."""

    async def on_rejected(self, tenant: str, job_id: JobId) -> None:
        """The admitted job was not queued again."""

    async def on_unrecorded(self, new: NewJob) -> None:
        """The admitted job was not recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitDeps:
    """The dependencies of a submit."""

    catalog: Catalog
    intake: Intake
    admission: JobAdmission
    limiter: ConcurrencyLimiter
    clock: Clock
    conversations: Conversations
    webhook_allow: AllowList
    submit_timeout_s: float
    drops_unsupported_tools: bool = False
    approves_with_other_key: bool = False
    """A call of a tool is approved with another key than that which asked for its job."""
    sealing: Sealing = field(default_factory=Sealing)
    tenant_models: Mapping[str, Collection[str]] = field(default_factory=dict)
    """The models that a tenant may use; a tenant that is not named may use all."""
    moved_tenants: Mapping[str, str] = field(default_factory=dict)
    """The cell that takes a tenant's new jobs, where it is not this one."""


async def submit(
    deps: SubmitDeps, principal: Principal, line: Mapping[str, Any], options: SubmitOptions
) -> tuple[Job, bool]:
    """The recorded job for `line`; True when it is new.

    Raises `InvalidJob` and its subclasses for an invalid request, `IdempotencyConflict` for a key used with another
    body, `Unavailable` when the submit may be repeated. If the process dies before it answers, a submit with the
    same key finds the job or creates it.
    """
    new = _new_job(deps, principal, parse_request(line, known=JOB_SCHEMA["properties"]), options)
    key = options.idempotency_key
    return await submit_new(deps, principal, new, idempotency_key=key)


async def submit_line(
    deps: SubmitDeps,
    principal: Principal,
    line: Mapping[str, Any],
    *,
    key: str,
    metadata: Mapping[str, str],
) -> Job:
    """The job of a batch's line; the same key always gives the same job."""
    own = {**metadata, BATCH: key.partition(":")[0]}
    options = SubmitOptions(
        idempotency_key=f"batch:{key}",
        lane=Lane.BATCH,
        metadata=own,
        skip_steps=skip_steps_of(line, {}),
        fallback=fallback_of(line, {}),
        on_approval=OnApproval.FAIL,
    )
    job, _ = await submit(deps, principal, line, options)
    return job


async def submit_new(
    deps: SubmitDeps, principal: Principal, new: NewJob, *, idempotency_key: str = ""
) -> tuple[Job, bool]:
    """As `submit`, for a job with a given identity. With a key, the id derives from the key."""
    with trace.span("submit", parent=new.traceparent, begins=True) as span:
        metadata = {**new.metadata, **_key_of(principal)}
        traced = replace(new, traceparent=span.traceparent, metadata=metadata)
        job, is_new = await _submit_new(deps, principal, traced, idempotency_key)
        span.set(job_id=job.id, is_new=is_new, model=job.request.model)
        # The only log line with both the caller's request id and the job id.
        _log.info("accepted", action="submit", job_id=job.id, is_new=is_new, lane=job.lane)
        return job, is_new


async def _submit_new(
    deps: SubmitDeps, principal: Principal, new: NewJob, key: str
) -> tuple[Job, bool]:
    if new.request.url in RUNNABLE_URLS:  # any other is answered by a step, and needs no model
        await deps.catalog.check(new.request)
        new = _within_models(deps, principal, new)
    if url := new.metadata.get(JOB_WEBHOOK):
        check_url(url, deps.webhook_allow, WEBHOOK_URL)
    if key:
        job_id = keyed_job_id(new.tenant, key)
        new = replace(new, id=job_id, event_id=job_id)
    new = with_sealed(new, deps.sealing)
    if not key and new.source == API_SOURCE:  # its id is random
        return await _admitted(deps, principal, new)
    turn = deps.admission.turn(principal, new, deps.submit_timeout_s * _QUEUING_SHARE)
    async with turn as is_recorded:
        return await _admitted(deps, principal, new, is_recorded=is_recorded)


async def _admitted(
    deps: SubmitDeps, principal: Principal, new: NewJob, *, is_recorded: bool = False
) -> tuple[Job, bool]:
    """Admit the job and record it. One that is recorded already is not admitted again."""
    deadline_s = deps.clock.monotonic_s() + deps.submit_timeout_s
    async with deps.limiter.acquire(deps.submit_timeout_s * _QUEUING_SHARE):
        if is_recorded:
            job, is_new = await _take(deps, new, deadline_s)
        else:
            if BATCH not in new.metadata:  # a batch that was accepted here runs to its end
                check_moved(deps.moved_tenants, new.tenant)
            try:
                await _admit(deps, principal, new, deadline_s)
            except StoreUnavailable:
                raise
            except TorporError as refusal:
                return await _kept_answer(deps, new, deadline_s, refusal)
            try:
                job, is_new = await _take(deps, new, deadline_s)
            except (*_NOT_RECORDED, BadRequest, BrokerUnavailable):
                await _left(deps, new)
                raise
            await deps.admission.on_admitted(new, job, is_new)
    labelled(_submitted, "accepted" if is_new else "repeated").inc()
    return job, is_new


def _within_models(deps: SubmitDeps, principal: Principal, new: NewJob) -> NewJob:
    """The job with the models that may answer it, where its key or tenant may not use all. A public name over several
    may be asked where one of them may be used. Raises `ModelNotAllowed`.
    """
    of_tenant = deps.tenant_models.get(principal.tenant)
    if of_tenant is None and not principal.models:
        return new
    allowed = principal.models or frozenset(of_tenant or ())
    if of_tenant is not None:
        allowed &= frozenset(of_tenant)
    plan = deps.intake.plan_of(new.request.model, new.skip_steps)
    asked = {new.request.model, *(tiers_of(plan) if plan else ())}
    if not asked & allowed:
        raise ModelNotAllowed(f"this key may not use {new.request.model:.80}")
    return replace(new, metadata={**new.metadata, MODELS: " ".join(sorted(allowed))})


async def _kept_answer(
    deps: SubmitDeps, new: NewJob, deadline_s: float, refusal: TorporError
) -> tuple[Job, bool]:
    """The job of a request that a limit stands against, answered from the cache: that takes no tokens and no place in
    the queue. Raises the refusal when no answer is kept.
    """
    try:
        return await _take(deps, replace(new, only_kept=True), deadline_s)
    except NotCached:
        raise refusal from None


async def _take(deps: SubmitDeps, new: NewJob, deadline_s: float) -> tuple[Job, bool]:
    """Record the job and its event in one step. When the store does not answer in time they may or may not be
    recorded: the caller gets a 503, and finds the job under the same key (docs/adr/0140).
    """
    try:
        async with asyncio.timeout(max(deadline_s - deps.clock.monotonic_s(), 0.0)):
            return await deps.intake.submit(new)
    except BrokerUnavailable:
        labelled(_submitted, "broker_unavailable").inc()
        raise
    except (TimeoutError, StoreUnavailable) as error:
        labelled(_submitted, "store_unavailable").inc()
        if isinstance(error, StoreUnavailable):
            raise
        raise StoreUnavailable("the store does not answer") from error


async def _left(deps: SubmitDeps, new: NewJob) -> None:
    """Release the admission of a job that was not recorded. When this fails, the limits correct themselves."""
    with suppress(StoreUnavailable, TimeoutError):
        async with asyncio.timeout(_GIVE_BACK_S):
            await deps.admission.on_unrecorded(new)


async def _admit(deps: SubmitDeps, principal: Principal, new: NewJob, deadline_s: float) -> None:
    """Limits are kept in the store; waiting for them must not use up the time of other submits."""
    budget_s = deadline_s - deps.clock.monotonic_s() - _GIVE_BACK_S
    try:
        async with asyncio.timeout(max(budget_s, 0.0)):
            await deps.admission.admit(principal, new)
    except TimeoutError as error:
        raise StoreUnavailable("the store does not answer") from error


def _new_job(
    deps: SubmitDeps, principal: Principal, request: JobRequest, options: SubmitOptions
) -> NewJob:
    job_id = new_job_id()
    deadline_ms = 0
    if options.expires_after_s:
        deadline_ms = deps.clock.wall_ms() + int(options.expires_after_s * 1000)
    return NewJob(
        id=job_id,
        request=request,
        source=API_SOURCE,
        event_id=job_id,
        tenant=principal.tenant,
        lane=options.lane,
        deadline_ms=deadline_ms,
        traceparent=options.traceparent,
        metadata=options.metadata,
        cache_control=directives(options.cache_control, request.body),
        options_sha=options.sha if options.idempotency_key else "",
        turn=options.turn,
        skip_steps=options.skip_steps,
        fallback=options.fallback,
        own_steps=options.own_steps,
        on_approval=options.on_approval,
        carried=options.carried,
    )


def _key_of(principal: Principal) -> dict[str, str]:
    """What a job remembers of the key that submitted it; no part of what makes two submits the same."""
    if not principal.key_id:
        return {}
    return {KEY: principal.key_id} | ({KEY_BUDGET: "1"} if principal.budget_per_month else {})


def step_job(
    deps: SubmitDeps,
    principal: Principal,
    request: JobRequest,
    options: SubmitOptions,
    step: PlannedStep,
) -> NewJob:
    """A job that a step answers, without a predictor."""
    return _new_job(deps, principal, request, replace(options, own_steps=(step,)))


def keyed_job_id(tenant: str, key: str) -> JobId:
    """The job id that derives from a tenant's Idempotency-Key."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return derive_job_id(f"{API_SOURCE}/idempotency/{tenant}", f"{digest}:0")

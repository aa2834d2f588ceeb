"""Submits a job: validate, admit, record together with its event (docs/adr/0140).

Called by every way in: jobs, OpenAI's endpoints, batches. Must not know HTTP.
"""

import asyncio
import hashlib
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import orjson
import structlog
from prometheus_client import Counter

from api.auth.principal import Principal
from api.http.errors import ModelNotAllowed
from api.http.parameter import IDEMPOTENCY_KEY, REQUEST_ID, Parameter
from api.job.catalog import Catalog
from api.job.concurrency_limiter import ConcurrencyLimiter
from api.limit.service_tier import lane_of
from api.webhook.webhook import (
    BATCH,
    JOB_WEBHOOK,
    WEBHOOK_SCHEMA,
    WEBHOOK_URL,
    parse_webhook_options,
)
from eventing.broker.intake import Intake
from eventing.clock import Clock
from eventing.cloudevent.request_id import KEPT, checked
from eventing.errors import (
    BadRequest,
    BrokerUnavailable,
    ConversationLocked,
    ConversationMoved,
    InvalidJob,
    NotCached,
    NotFound,
    StoreUnavailable,
    TorporError,
)
from eventing.job.cache import directives
from eventing.job.call.rule import FieldRule, Schema, check, nullable, one_of
from eventing.job.job import (
    API_SOURCE,
    KEY,
    KEY_BUDGET,
    MODELS,
    NO_FALLBACK,
    RUNNABLE_URLS,
    Job,
    JobId,
    JobRequest,
    Lane,
    derive_job_id,
    new_job_id,
    parse_request,
)
from eventing.job.plan import MOST_STEPS, PlannedStep, tiers_of
from eventing.job.store import ConversationTurn, NewJob
from eventing.process.egress import AllowList, check_url
from eventing.store.conversation.store import Conversations
from eventing.telemetry import trace
from eventing.telemetry.metric.series import labelled
from eventing.telemetry.span import followable

_GIVE_BACK_S: Final = 0.3
_QUEUING_SHARE: Final = 0.5
"""The share of a submit's time limit that it may spend waiting for its turn."""

_NOT_RECORDED: Final = (ConversationLocked, ConversationMoved, NotFound)

_log = structlog.get_logger()
_submitted = Counter("torpor_api_submits_total", "Submits, by outcome.", ["outcome"])


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """The options of a submit besides the request itself."""

    idempotency_key: str = ""
    lane: Lane = Lane.DEFAULT
    expires_after_s: float = 0.0
    traceparent: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    turn: ConversationTurn | None = None
    skip_steps: tuple[str, ...] = ()
    fallback: str = ""
    cache_control: str = ""
    own_steps: tuple[PlannedStep, ...] = ()

    @property
    def sha(self) -> str:
        """A digest of the options. Trace and request id are not part of it."""
        metadata = {name: text for name, text in self.metadata.items() if name != KEPT}
        own = [step.to_dict() for step in self.own_steps]
        asked = [self.lane, self.expires_after_s, metadata, *self.skip_steps, *own]
        if self.fallback:
            asked.append({"fallback": self.fallback})
        return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def with_metadata(self, own: Mapping[str, str]) -> "SubmitOptions":
        """The options with our metadata added to the caller's."""
        return replace(self, metadata={**self.metadata, **own})

    def in_tier(self, tier: Any, where: str) -> "SubmitOptions":
        """The options of a call that asks for OpenAI's `service_tier`. Raises `InvalidJob` naming `where`."""
        lane, mark = lane_of(tier, self.lane, where)
        return replace(self, lane=lane).with_metadata(mark)


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
    tenant_models: Mapping[str, Collection[str]] = field(default_factory=dict)
    """The models that a tenant may use; a tenant that is not named may use all."""


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
        fallback=_fallback(line, {}),
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


def parse_submit_options(
    line: Mapping[str, Any], headers: Mapping[str, str], *, lane: Lane = Lane.DEFAULT
) -> SubmitOptions:
    """The options of a submit: from headers, and from the job line's `priority`, `expires_after` and `metadata`.

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
        traceparent=followable(headers.get("traceparent", "")),
        metadata=metadata,
        skip_steps=skip_steps_of(line, headers),
        fallback=_fallback(line, headers),
        cache_control=headers.get("cache-control", ""),
    )


def skip_steps_of(line: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[str, ...]:
    """Names of steps, sorted. Whether they may be left out, the plan says."""
    value = line.get("skip_steps")
    if value is None:
        named = headers.get("torpor-skip-steps", "").split(",")
        value = [name.strip() for name in named if name.strip()]
    check("", value, _SKIP_STEPS, "skip_steps")
    return tuple(sorted(set(value)))


def _fallback(line: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    where, value = "fallback", line.get("fallback")
    if value is None and "torpor-fallback" in headers:
        where, value = "Torpor-Fallback", headers["torpor-fallback"]
    if value is None:
        return ""
    check("", value, _FALLBACK, where)
    return str(value)


_LONGEST_S: Final = 30 * 24 * 3600
_PRIORITY: Final = one_of(*Lane)
_EXPIRES: Final = FieldRule(
    f"seconds, more than 0 and at most {_LONGEST_S}",
    lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= _LONGEST_S,
    {"type": "number", "exclusiveMinimum": 0, "maximum": _LONGEST_S},
)
_FALLBACK: Final = one_of(NO_FALLBACK)
_SKIP_STEPS: Final = FieldRule(
    f"a list of at most {MOST_STEPS} names of steps",
    lambda v: isinstance(v, list) and len(v) <= MOST_STEPS and all(isinstance(n, str) for n in v),
    {"type": "array", "maxItems": MOST_STEPS, "items": {"type": "string"}},
)
_METADATA_PAIRS: Final = 16
_METADATA_NAME_CHARS: Final = 64
_METADATA_TEXT_CHARS: Final = 512
METADATA: Final[Schema] = {
    "type": ["object", "null"],
    "maxProperties": _METADATA_PAIRS,
    "propertyNames": {"maxLength": _METADATA_NAME_CHARS, "not": {"pattern": "^torpor\\."}},
    "additionalProperties": {"type": "string", "maxLength": _METADATA_TEXT_CHARS},
    "description": "yours to fill, as at OpenAI; names that start with `torpor.` are ours",
}
JOB_SCHEMA: Final[Schema] = {
    "type": "object",
    "required": ["url", "body"],
    "properties": {
        "url": {"enum": list(RUNNABLE_URLS)},
        "body": {
            "description": "what `url` takes",
            "anyOf": [
                {"$ref": f"#/components/schemas/{name}"}
                for name in (
                    "ChatCompletionRequest",
                    "ChatBatchRequest",
                    "CompletionRequest",
                    "EmbeddingRequest",
                    "ModerationRequest",
                )
            ],
        },
        "custom_id": {"type": ["string", "null"], "description": "your name for the job"},
        "method": {"const": "POST"},
        "priority": nullable(_PRIORITY.schema),
        "expires_after": nullable(_EXPIRES.schema)
        | {"description": "deadline in seconds; a job that has not ended by then fails"},
        "metadata": METADATA,
        "skip_steps": nullable(_SKIP_STEPS.schema)
        | {"description": "steps of the model's pipeline to leave out, of those that may be"},
        "fallback": nullable(_FALLBACK.schema)
        | {"description": "`none`: no other model or provider than the one asked may answer"},
        "webhook": WEBHOOK_SCHEMA,
    },
}
"""A job line: what `parse_request` and `parse_submit_options` judge."""
SUBMIT_HEADERS: Final = (
    IDEMPOTENCY_KEY,
    REQUEST_ID,
    Parameter("Torpor-Expires-After", "As `expires_after`: whole seconds", "header"),
    Parameter("Torpor-Skip-Steps", "As `skip_steps`: names, separated by commas", "header"),
    Parameter("Torpor-Fallback", "As `fallback`: `none`", "header"),
    Parameter("Torpor-Webhook", "As `webhook.url`", "header"),
    Parameter(
        "Cache-Control",
        "`max-age=N`: an answer may be that many seconds old; `no-cache`: none is served; `no-store`: none is kept "
        "either; `only-if-cached`: 504 where none is kept",
        "header",
    ),
)


def check_metadata(value: Any, where: str) -> dict[str, str]:
    """At most 16 pairs of strings, as at OpenAI; keys that start with `torpor.` are reserved."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > _METADATA_PAIRS:
        raise InvalidJob(f"{where} must be an object of at most {_METADATA_PAIRS} texts", where)
    for name, text in value.items():
        pair = f"{where}.{name[:_METADATA_NAME_CHARS]}"
        if (length := len(name)) > (most := _METADATA_NAME_CHARS):
            raise InvalidJob(f"{pair}...: a name may have {most} characters, not {length}", pair)
        if not isinstance(text, str):
            raise InvalidJob(f"{pair} must be text", pair)
        if (length := len(text)) > (most := _METADATA_TEXT_CHARS):
            raise InvalidJob(f"{pair} may have {most} characters, not {length}", pair)
        if name.startswith("torpor."):
            raise InvalidJob(f"{pair}: names that start with torpor. are reserved", pair)
    return dict(value)


def _lane(value: Any, default: Lane) -> Lane:
    if value is None:
        return default
    check("", value, _PRIORITY, "priority")
    return Lane(value)


def _expires_after_s(line: Mapping[str, Any], headers: Mapping[str, str]) -> float:
    where, value = "expires_after", line.get("expires_after")
    if value is None and "torpor-expires-after" in headers:
        where = "Torpor-Expires-After"
        text = headers["torpor-expires-after"]
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1
    if value is None:
        return 0.0
    check("", value, _EXPIRES, where)
    return float(value)

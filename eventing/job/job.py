"""The job: its identity, request, states and allowed transitions.

Called by every package. Pure values and decisions: no I/O, no clock of its own. The same transition rules are
enforced by the Lua scripts in `eventing/redis/scripts`; `tests/contract` checks that both agree.
"""

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final, NewType

import orjson

from eventing.errors import InvalidJob
from eventing.job.cache.cache import CacheUse
from eventing.job.call.fields import CHAT_BATCH_URL, check_body
from eventing.job.call.moderation import MODERATION_URL
from eventing.job.plan import Hold, Plan, StepRecord, StepStatus
from eventing.job.tools.call import ToolPhase, Turn
from eventing.job.tools.prompt import body_with_turns
from eventing.known_fields import known_fields

JobId = NewType("JobId", str)

OUR_SOURCES: Final = "/torpor/"
"""Prefix of the `source` of Torpor's own events; no other producer may use it."""
API_SOURCE: Final = f"{OUR_SOURCES}api"
"""`source` of request events whose `id` is a job id."""
DEFAULT_TENANT: Final = "default"
KEY: Final = "torpor.key"
"""Metadata of a job: the id of the API key that submitted it."""
KEY_BUDGET: Final = "torpor.key_budget"
"""Metadata of a job whose key has a budget."""
MODELS: Final = "torpor.models"
"""Metadata of a job whose key or tenant may use some models only: their names, separated by spaces."""

CONTENT_FILTER: Final = "content_filter"
"""Why an answer is incomplete that was withheld (OpenAI's word)."""
CONTENT_FILTER_UNAVAILABLE: Final = "content_filter_unavailable"
"""Why an answer is incomplete that no step could judge before its job's deadline."""

NO_FALLBACK: Final = "none"
"""What a caller says who wants the model that was asked, however long that takes."""

REJECTED: Final = "rejected"
"""The outcome of an attempt whose answer a step had made again."""

CHAT_URLS: Final = ("/v1/chat/completions", CHAT_BATCH_URL)
RUNNABLE_URLS: Final = (*CHAT_URLS, "/v1/completions", "/v1/embeddings", MODERATION_URL)
"""Paths of calls that a job may be, as in a line of an OpenAI Batch file."""
URL_BY_FIELD: Final = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
}
"""The call that a body without a path means, by the field that it has (SageMaker's `/invocations`)."""


class JobState(StrEnum):
    """States of a job: OpenAI's statuses of a background response."""

    QUEUED = "queued"  #: accepted; waits for a predictor
    IN_PROGRESS = "in_progress"  #: an attempt holds, or held, a lease
    COMPLETED = "completed"  #: the answer is complete
    FAILED = "failed"  #: no answer; `error` has the reason
    CANCELLED = "cancelled"  #: stopped by its owner or an operator
    INCOMPLETE = "incomplete"  #: the answer was cut off by a limit that the caller set

    @property
    def is_terminal(self) -> bool:
        return self not in (JobState.QUEUED, JobState.IN_PROGRESS)


class Lane(StrEnum):
    """Priority of a job. The next job is drawn by weighted lottery among the lanes, so that no lane is starved."""

    INTERACTIVE = "interactive"  #: a person waits for the answer
    DEFAULT = "default"  #: the default
    BATCH = "batch"  #: when there is spare capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One OpenAI-style call, in the form of a line of an OpenAI Batch file."""

    url: str
    body: Mapping[str, Any]
    custom_id: str | None = None
    method: str = "POST"

    def to_json(self) -> bytes:
        line = {"custom_id": self.custom_id, "method": self.method, "url": self.url}
        return orjson.dumps({k: v for k, v in line.items() if v is not None} | {"body": self.body})

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed: a stable `code`, and a `message` for people that is safe to show."""

    code: str
    message: str
    field: str = ""

    def to_dict(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "field": self.field}


def error_of(record: Mapping[str, Any]) -> JobError:
    """The error in a record that `to_dict` of this version or another wrote."""
    return JobError(**known_fields(JobError, record))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One attempt in a job's history. Times are store time in milliseconds; `outcome` is empty while it runs."""

    attempt: int
    owner: str
    started_ms: int
    ended_ms: int = 0
    outcome: str = ""
    resumed_from: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the store holds it. All times are store time in milliseconds since the epoch; 0 means not yet."""

    id: JobId
    state: JobState
    request: JobRequest
    tenant: str = DEFAULT_TENANT
    lane: Lane = Lane.DEFAULT
    source: str = API_SOURCE
    event_id: str = ""
    traceparent: str = ""
    attempt: int = 0
    token_count: int = 0
    created_ms: int = 0
    started_ms: int = 0
    first_token_ms: int = 0
    finished_ms: int = 0
    deadline_ms: int = 0  #: 0 also while it stands still, since only people are awaited
    lease_owner: str = ""
    lease_until_ms: int = 0
    result: Mapping[str, Any] | None = None
    archived_bytes: int = (
        0  #: of the result, where it lies in the object store; 0 for in the record
    )
    usage: Mapping[str, Any] | None = None
    error: JobError | None = None
    is_dead_letter: bool = False
    refused_writes: int = 0
    gpu_ms: int = 0
    history: tuple[AttemptRecord, ...] = field(default=())
    metadata: Mapping[str, str] = field(default_factory=dict)
    conversation: str = ""  #: the id of the one that it belongs to
    prompt: str = ""  #: its start (`eventing.job.prompt`); empty in a record of an older version
    cache_control: str = ""  #: the caller's directives (RFC 9111)
    cache: CacheUse | None = None
    fallback: str = (
        ""  #: what stands in for its model, or `NO_FALLBACK` (`eventing.job.pipelines.fallback`)
    )
    routing: Mapping[str, str] | None = (
        None  #: the model that was to answer, the one that stands in, and why
    )
    follows: str = ""  #: the job whose answer this one waits for, while it is queued
    plan: Plan | None = None  #: None for a job that goes straight to its predictor
    step: str = ""  #: the step that is next; empty when none is left
    pipeline: tuple[StepRecord, ...] = ()  #: the steps that have begun, as they are recorded
    prepared: JobRequest | None = None  #: the request as steps have changed it
    incomplete: str = ""  #: why the text of the answer is withheld
    candidate: Mapping[str, Any] | None = (
        None  #: the answer that steps are yet to judge: never shown
    )
    candidate_state: JobState | None = (
        None  #: the state in which the job ends when they let it pass
    )
    turns: tuple[Turn, ...] = ()  #: committed answers that asked for tools, with their calls
    carried_by: str = ""  #: the job that took its last turn over, with its caller's decisions
    sealed: str = ""  #: credentials for its tool servers, as JSON; gone when it has ended
    tool_list: str = (
        ""  #: the pinned lists of its tool servers (`eventing.job.tools.tool_list`), as JSON
    )
    turn_begin: int = 0  #: the place in the token stream at which the present turn begins
    epoch: int = 0  #: raised by an edited redrive of a job that had turns; part of each call's key
    late_results: Sequence[Mapping[str, Any]] = ()  #: results that came too late: noted, never used

    @property
    def stream_id(self) -> JobId:
        """The job whose token stream readers of this one read."""
        is_following = self.follows and self.state is JobState.QUEUED
        return JobId(self.follows) if is_following else self.id

    @property
    def to_run(self) -> JobRequest:
        """The request that the next step or the predictor is given: after the turns so far."""
        request = self.prepared or self.request
        if not self.turns:
            return request
        return replace(request, body=body_with_turns(request.body, self.turns))

    @property
    def told_turns(self) -> tuple[Turn, ...]:
        """The turns as callers are shown them: no call of a job that was cancelled or failed waits or runs."""
        if self.state not in (JobState.CANCELLED, JobState.FAILED):
            return self.turns
        return tuple(
            replace(turn, calls=tuple(call.after_end for call in turn.calls)) for turn in self.turns
        )

    @property
    def tool_phase(self) -> ToolPhase | None:
        """What the job waits for between two turns; None where it does not."""
        is_between = self.turns and not self.state.is_terminal and not self.turns[-1].is_done
        return self.turns[-1].phase if is_between else None

    @property
    def is_validating(self) -> bool:
        """True while steps judge the answer."""
        return self.candidate_state is not None and not self.state.is_terminal

    @property
    def hold(self) -> Hold:
        """What readers are not shown: nothing of an ended answer is held back, as what was withheld is deleted."""
        if self.plan is None or self.state in (JobState.COMPLETED, JobState.INCOMPLETE):
            return Hold.NONE
        return self.plan.hold

    @property
    def allows_fallback(self) -> bool:
        """False where no other provider than the first may answer."""
        return not forbids_fallback(self.fallback)

    @property
    def answered_by(self) -> str:
        """The model that answered, by the answer; until then the one that is asked."""
        return str((self.result or {}).get("model") or self.to_run.model)

    @property
    def steps(self) -> tuple[StepRecord, ...]:
        """Every planned step as it is now, in order. A step that the job's end cut off says how the job ended."""
        if self.plan is None:
            return ()
        begun = {record.step: record for record in self.pipeline}
        return tuple(self._shown(begun.get(n) or StepRecord(step=n)) for n in self.plan.names)

    def _shown(self, record: StepRecord) -> StepRecord:
        is_open = record.status in (StepStatus.QUEUED, StepStatus.IN_PROGRESS)
        if not (is_open and self.state.is_terminal):
            return record
        if not record.attempts:
            return replace(record, status=StepStatus.NOT_RUN)
        status = StepStatus.FAILED if self.state is JobState.FAILED else StepStatus.CANCELLED
        return replace(record, status=status, ended_ms=self.finished_ms)

    @property
    def incomplete_reason(self) -> str | None:
        """What cut the answer short, in the words of OpenAI's Responses; None for a whole one, or none yet."""
        if self.incomplete:
            return self.incomplete
        choices = (self.result or {}).get("choices") or [{}]
        match choices[0].get("finish_reason"):
            case "length":
                return "max_output_tokens"
            case "content_filter":
                return "content_filter"
            case _:
                return "max_output_tokens" if self.state is JobState.INCOMPLETE else None


def may_use(metadata: Mapping[str, str], model: str) -> bool:
    """True where a job of this metadata may be answered by the model: a rule never chooses another."""
    named = metadata.get(MODELS)
    return named is None or model in named.split()


def forbids_fallback(word: str) -> bool:
    """True for the `fallback` of a record that says so; it may name the model before it."""
    return word.rpartition(" ")[2] == NO_FALLBACK


def new_job_id() -> JobId:
    """A new id with 96 random bits, so that ids cannot be guessed."""
    return JobId(f"job_{secrets.token_hex(12)}")


def event_identity(source: str, event_id: str, tenant: str = "") -> str:
    """What identifies an event: its `source` and `id` (CloudEvents 1.0) within its tenant. The tenant is left out
    for the default tenant and for Torpor's own sources. `_queue.lua` has the same rule.
    """
    if tenant in ("", DEFAULT_TENANT) or source.startswith(OUR_SOURCES):
        return f"{source}\0{event_id}"
    return f"{source}\0{event_id}\0{tenant}"


def derive_job_id(source: str, event_id: str, tenant: str = "") -> JobId:
    """The id of the job that a tenant's event (`source`, `event_id`) requests; the same event always gives the
    same id.
    """
    if source == API_SOURCE and is_job_id(event_id):
        return JobId(event_id)
    digest = hashlib.sha256(event_identity(source, event_id, tenant).encode()).hexdigest()
    return JobId(f"job_{digest[:24]}")


def job_id_of_identity(identity: str) -> JobId:
    """The id of the job that the event of this `event_identity` asks for."""
    source, event_id, *tenant = identity.split("\0", 2)
    return derive_job_id(source, event_id, *tenant)


def is_job_id(text: str) -> bool:
    """True for an id in the form of `new_job_id` and `derive_job_id`."""
    tail = text.removeprefix("job_")
    return len(tail) == 24 and tail != text and all(c in "0123456789abcdef" for c in tail)


REQUEST_FIELDS: Final = ("url", "body", "custom_id", "method")
"""Fields of a request; a job line of the api has more."""


def parse_request(
    data: bytes | str | Mapping[str, Any], *, known: Collection[str] = ()
) -> JobRequest:
    """The job request in `data`. Raises `InvalidJob` naming the first invalid field, or the first that is not among
    `known` ones, if there are any.
    """
    line = data if isinstance(data, Mapping) else _load_object(data)
    for name in line:
        if known and name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise InvalidJob(f"{name!r:.60} is no field here; {hint}", f"{name:.60}")
    match line.get("method", "POST"):
        case "POST":
            pass
        case other:
            raise InvalidJob(f"method must be POST, not {other!r:.40}", "method")
    custom_id = line.get("custom_id")
    if custom_id is not None and not isinstance(custom_id, str):
        raise InvalidJob("custom_id must be a string", "custom_id")
    url, body = line.get("url"), line.get("body")
    if not isinstance(url, str) or url not in RUNNABLE_URLS:
        raise InvalidJob(f"url must be one of {', '.join(RUNNABLE_URLS)}", "url")
    if not isinstance(body, Mapping):
        raise InvalidJob("body must be a JSON object", "body")
    check_body(url, body)
    return JobRequest(url=url, body=body, custom_id=custom_id)


def _load_object(data: bytes | str) -> Mapping[str, Any]:
    try:
        line = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidJob(f"data is not JSON: {error.msg} at {error.pos}", "data") from error
    if not isinstance(line, dict):
        raise InvalidJob("data must be a JSON object", "data")
    return line

"""The job store's interface: one Protocol for each kind of consumer, and the values that they exchange.

Every method raises `StoreUnavailable` when the store does not answer in time. Every method is atomic: a caller that
dies half-way leaves no partial transition behind. Implemented by `eventing.store.redis_store` (Redis or Valkey) and
by its in-memory twin `eventing.store.memory_store`; one contract suite runs against both
(`tests/contract/test_store_*.py`). Must not know its callers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from eventing.job.cache.cache import CacheAsk, CacheUse
from eventing.job.job import DEFAULT_TENANT, Job, JobError, JobId, JobRequest, JobState, Lane
from eventing.job.plan import Hold, Plan, PlannedStep
from eventing.job.stream import StreamEntry
from eventing.job.tools.carried import Carried
from eventing.job.tools.request import OnApproval


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTurn:
    """The conversation that a job belongs to, and the items that it was asked, which are put there with its answer
    when it ends with one. `seq` is the conversation's sequence number at which the prompt was made, None where it is
    made later. Only one job at a time has a conversation.
    """

    id: str
    items: tuple[Mapping[str, Any], ...]
    seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to record. `deadline_ms` is epoch milliseconds, 0 for none; `options_sha` is a digest of the submit
    options besides the request, empty where a submit cannot be repeated.
    """

    id: JobId
    request: JobRequest
    source: str
    event_id: str
    tenant: str = DEFAULT_TENANT
    lane: Lane = Lane.DEFAULT
    deadline_ms: int = 0
    traceparent: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    options_sha: str = ""
    attempt: int = 0  #: attempts counted by another, unshared store (of a redriven job)
    turn: ConversationTurn | None = None  #: kept by the store in Redis alone
    cache_control: str = ""  #: the caller's directives (RFC 9111)
    cache: CacheAsk | None = None  #: what is asked of the exact cache; None for nothing
    plan: Plan | None = None
    skip_steps: tuple[str, ...] = ()  #: steps that its caller wants left out
    own_steps: tuple[PlannedStep, ...] = ()  #: steps that its request asks for
    fallback: str = ""  #: as in a record (`eventing.job.pipelines.fallback`)
    only_kept: bool = False  #: only a kept answer can serve it: a limit stands against running it
    carried: Carried | None = None  #: the turn of an earlier job that this one takes over
    sealed: str = ""  #: credentials for its tool servers, as JSON (`eventing.job.tools.sealed`)
    on_approval: OnApproval = OnApproval.WAIT  #: what it does when a tool call needs a decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """How a job's request event gets to its broker, in the script that records the job: into `queues` of the
    embedded broker (key prefixes, `eventing.redis.keys.queue`), or as an outbox note for another broker, refused
    above `max_unpublished` notes. Neither, when the event just came from the broker.
    """

    queues: tuple[str, ...] = ()
    event: bytes = b""  #: as it stands in a queue (`eventing.cloudevent.event.to_record`)
    after_queues: tuple[str, ...] = ()  #: those of the first step after the predictor
    max_unpublished: int | None = None
    fallback: str | None = (
        None  #: the record's new one, on its way to its predictor; None: as it was
    )


ARRIVED: Final = Publication()
"""Nothing is published: the event came from the broker."""


class AcquireStatus(StrEnum):
    """The result of asking for a job's lease."""

    ACQUIRED = "acquired"  #: ours; generate
    HELD = "held"  #: runs elsewhere under a live lease
    TERMINAL = "terminal"  #: has ended before: a duplicate delivery
    EXPIRED = "expired"  #: failed here: its deadline had passed
    EXHAUSTED = "exhausted"  #: failed here: no attempt left
    ALONE = "alone"  #: last attempt after lost ones: only for an otherwise idle owner (ADR 18)
    OTHER = "other"  #: the record has another request than `expected`: unchanged
    UNPREPARED = "unprepared"  #: steps are left before it: its event comes when they are done
    MISSING = "missing"  #: no record; create it first


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write one attempt of a job. `id` is random, because a store that failed over to a lagging
    replica can give out an attempt number twice.
    """

    job_id: JobId
    attempt: int
    id: str


NO_LEASE: Final = Lease(JobId(""), 0, "")
"""The lease of a caller that was refused one; every write with it is fenced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """The answer to `acquire`. The stream holds `token_count` tokens, those from `turn_begin` on of earlier attempts at
    the present turn, from which this one continues; `void_count` earlier tokens were discarded. `hold` says what its
    readers are shown before the end.
    """

    status: AcquireStatus
    lease: Lease = NO_LEASE
    token_count: int = 0
    void_count: int = 0
    lease_left_ms: int = 0
    hold: Hold = Hold.NONE
    turn_begin: int = 0
    first_after: str = ""  #: the name of the first step after the predictor


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSettings:
    """The lease's duration, the number of failed attempts allowed, the time until a job that was published but not
    started is published again, and the retention of ended jobs.
    """

    lease_ms: int = 30_000
    max_attempts: int = 3
    republish_after_s: int = 900
    retention_s: int = 24 * 3600
    dead_letter_retention_s: int = 14 * 24 * 3600
    acks: int = 0
    """Replicas that must confirm a job that was taken, and its end."""


class LeaseStatus(StrEnum):
    """The answer to a lease holder's renewal or write."""

    OK = "ok"  #: still ours
    VALIDATING = "validating"  #: the answer is kept, for the steps that judge it
    STEP_QUEUED = "step_queued"  #: the same, and the event of the first of them is in its queues
    FENCED = "fenced"  #: a newer attempt runs, or the job was given back
    HELD = "held"  #: another owner runs it
    TERMINAL = "terminal"  #: the job has ended (cancelled, say)
    EXPIRED = "expired"  #: the job's deadline has passed: end it
    MISSING = "missing"  #: the record is gone
    GAP = "gap"  #: the tokens do not continue the stored ones


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Tokens from position `index` on; `delta` is what readers are shown for them (JSON text, may be empty). Where an
    answer is held back, `shown` is the position up to which its text may be shown.
    """

    index: int
    token_ids: tuple[int, ...]
    delta: str = ""
    shown: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended its job. `final_batch` holds the tokens not yet checkpointed, `gpu_ms` the charge to the
    job; both are written atomically with the end. With `cache`, a step gave another job's answer. `incomplete` says why
    the text is withheld, which is then not stored (`eventing.job.moderation.withheld`); empty where it is not.
    """

    state: JobState
    result: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] | None = None
    error: JobError | None = None
    is_dead_letter: bool = False
    final_batch: TokenBatch | None = None
    cache: CacheUse | None = None
    gpu_ms: int = 0
    incomplete: str = ""
    following: bytes = (
        b""  #: the event of the first step after the predictor, where its writer has it
    )


class ReleaseReason(StrEnum):
    """Why an attempt gives its job back."""

    HANDOVER = "handover"  #: drain, preemption: the job is fine, costs no attempt
    FAILURE = "failure"  #: the attempt failed, costs one
    LOST = "lost"  #: the engine died, with other jobs: costs one attempt, like a lost process


class ListField(StrEnum):
    """Fields that a list contains only on request."""

    REQUEST = "request"  #: without it, a listed job's body holds its model only
    RESULT = "result"
    PROMPT = "prompt"  #: its start (`eventing.job.prompt`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of jobs, newest first; `next_cursor` is empty on the last one."""

    jobs: tuple[Job, ...]
    next_cursor: str = ""


class JobReader(Protocol):
    """Reads jobs, for those who show them."""

    async def get(self, job_id: JobId, *, with_result: bool = True) -> Job | None:
        """The job, or None. With its result, also a large one, which may be in the object store: raises
        `ObjectsUnavailable`, and `ObjectGone` when it is not there any more. A caller that shows no result asks without
        it, so that no object store can stop it.
        """

    async def states(self, job_ids: Sequence[JobId]) -> list[JobState | None]:
        """The state of each job, without reading the rest of its record; None for one that is not there."""

    async def list_jobs(
        self,
        tenant: str,
        *,
        states: Sequence[JobState] = (),
        limit: int = 20,
        cursor: str = "",
        include: Collection[ListField] = (),
        search: str = "",
    ) -> Page:
        """Jobs of a tenant, newest first, without the fields not in `include`; with `search`, those that have each of
        its words in id, model, `custom_id` or the start of the prompt. A page reads a bounded number of jobs and
        bytes, so it may be short or empty before the last page. Raises `BadRequest` for an invalid cursor.
        """

    async def list_dead_letters(
        self,
        tenant: str,
        *,
        limit: int = 20,
        cursor: str = "",
        include: Collection[ListField] = (ListField.REQUEST,),
    ) -> Page:
        """Failed jobs that are dead letters, newest first, with their requests; otherwise as `list_jobs`."""

    async def read_stream(
        self, job_id: JobId, after: str = "", limit: int = 1000
    ) -> list[StreamEntry]:
        """Entries of the job's token stream after a cursor, in order."""

    async def ping(self) -> None:
        """Return when the store accepts writes."""


class JobIntake(JobReader, Protocol):
    """Records jobs, and changes them on behalf of callers."""

    async def is_gone(self, job_id: JobId) -> bool:
        """True if a server that takes writes, with `store_acks` one that replicas confirm, has no such job: one that a
        failover left behind may not have the newest. Raises `StoreUnavailable` where none answers.
        """

    async def submit(self, new: NewJob, publication: Publication = ARRIVED) -> tuple[Job, bool]:
        """Record the job and its event; True when the job is new. After `StoreUnavailable` the job may or may not
        be recorded.

        Where `new.cache` asks for it, the job may come back ended, with a kept answer, or following another job of
        the same request; then nothing is published.

        Raises `IdempotencyConflict` when the id exists with another request or other options, or was deleted
        (`JobDeleted`); `BrokerUnavailable` above `max_unpublished` outbox notes; `ConversationLocked`,
        `ConversationMoved` and `NotFound` for the conversation of its turn; `NotCached`.
        """

    async def reject(self, new: NewJob, error: JobError, raw: bytes) -> bool:
        """Record an event that is not a valid job: failed, as a dead letter, with its raw data.

        Idempotent. False, and nothing is changed, when a job with another request has this identity: an event must
        not be able to end a job whose identity its sender merely knows.
        """

    async def cancel(self, job_id: JobId) -> Job | None:
        """End the job as cancelled unless it has ended; gives the job as it is afterwards, without a result that is
        in the object store.
        """

    async def conclude(
        self, job_id: JobId, ending: Ending, *, attempt: int | None = None
    ) -> LeaseStatus:
        """End a job without a live lease; `HELD` when it has one. `FENCED` when the ending is of an older attempt
        than the job's (`attempt`).
        """

    async def redrive(
        self,
        job: Job,
        request: JobRequest | None,
        publication: Publication = ARRIVED,
        plan: Plan | None = None,
    ) -> bool:
        """Queue a dead letter again, with an edited request and its `plan` if given; False when it is not a dead
        letter any more. Its attempt number is raised, so that late writes of the earlier run are fenced.
        """

    async def delete(self, job_id: JobId) -> bool:
        """Delete an ended job and its tokens; False when there is none or it has not ended. No event can create a
        job with that id for as long as ended jobs are kept.
        """


class JobWorker(JobIntake, Protocol):
    """Runs jobs."""

    async def acquire(
        self,
        job_id: JobId,
        owner: str,
        *,
        can_resume: bool,
        is_exclusive: bool = False,
        expected: NewJob | None = None,
    ) -> Acquired:
        """Start an attempt. A lapsed lease is taken over, which counts as a failed attempt.

        With `expected`, the lease is granted only if the record has that request and tenant; the caller then need
        not read the record first.

        `is_exclusive` says that the owner runs no other job until this attempt has ended. Without it, a job on its
        last attempt that has lost an attempt before is refused with `ALONE`, unchanged.
        """

    async def renew(self, leases: Sequence[Lease], *, extend: bool) -> list[LeaseStatus]:
        """The status of each lease, in order; `extend` lengthens the leases. One round trip."""

    async def append_all(self, appends: Sequence[tuple[Lease, TokenBatch]]) -> list[LeaseStatus]:
        """Checkpoint tokens of any number of jobs in one round trip; one answer each, in order. After an error any
        of them may have been written.
        """

    async def finish(self, lease: Lease, ending: Ending) -> LeaseStatus:
        """End the job: the last tokens, result and state; or keep the answer for the steps after the predictor, if the
        job's plan has some (`VALIDATING`). `GAP`, and nothing is changed, when those tokens do not go
        on from what is stored.
        """

    async def release(self, lease: Lease, why: ReleaseReason, error: JobError) -> bool:
        """Give the job back. False when that ended it (no attempts left: now a dead letter with `error`), or when
        the caller does not hold the lease.
        """


class JobSweeper(Protocol):
    """Finds jobs that are stuck. A sweeper reserves what it takes for 15 s, so that several sweepers share the
    work.
    """

    async def get(self, job_id: JobId, *, with_result: bool = True) -> Job | None:
        """As `JobReader.get`."""

    async def states(self, job_ids: Sequence[JobId]) -> list[JobState | None]:
        """The state of each job, without reading the rest of its record; None for one that is not there."""

    async def take_unpublished(self, limit: int) -> list[JobId]:
        """Jobs whose request event may not have reached an external broker."""

    async def mark_published(self, *job_ids: JobId) -> None:
        """The broker confirmed the request events."""

    async def claim_unstarted(self, limit: int) -> list[JobId]:
        """Jobs whose event the broker may have lost: published but not started within `republish_after_s`, or
        started and without a lease for the length of one (docs/adr/0140).
        """

    async def look_later(self, job_id: JobId, after_ms: int) -> None:
        """Skip the job for `republish_after_s` after its event was published again."""

    async def prune(self, limit: int) -> int:
        """Take jobs that are no longer kept out of their tenants' lists; how many were looked at."""

    async def expire(self, limit: int) -> list[JobId]:
        """Fail jobs whose deadline has passed and that have no lease; gives the failed jobs."""

    async def conclude(
        self, job_id: JobId, ending: Ending, *, attempt: int | None = None
    ) -> LeaseStatus:
        """As `JobIntake.conclude`."""


class Store(JobWorker, JobSweeper, Protocol):
    """The job store: every interface together."""

    async def close(self) -> None:
        """Close all connections."""

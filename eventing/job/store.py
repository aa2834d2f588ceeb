"""What the packages ask of the job store, and the answers it gives. One Protocol for each kind of
consumer; every method raises `StoreUnavailable` when the store does not answer in time, and either
did all it says or nothing: a caller that dies half-way leaves no half transition behind.

Implemented by `eventing.store.redis_store` (Redis or Valkey) and by its in-memory twin
`eventing.store.memory_store`; one contract suite runs against both (`tests/contract/test_store_*.py`).
Must not know who asks.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

from eventing.job.job import Job, JobError, JobId, JobRequest, JobState, Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to record. `deadline_ms` is epoch milliseconds, 0 for none; `options_sha` tells what its
    call asked beyond the request, and is empty where nobody can ask again.
    """

    id: JobId
    request: JobRequest
    source: str
    event_id: str
    tenant: str = "default"
    lane: Lane = Lane.DEFAULT
    deadline_ms: int = 0
    traceparent: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    options_sha: str = ""
    attempt: int = (
        0  #: what another store has counted so far (of a redriven job), for one that is not shared
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """How the request event of a job gets to its broker, in the step that records the job: into
    `queues` of our own broker (prefixes of their keys, `eventing.redis.keys.queue`), or by a note
    that it is to be published on another's, refused above `max_unpublished` notes. Neither, where
    the event has just come from the broker.
    """

    queues: tuple[str, ...] = ()
    event: bytes = b""  #: as it stands in a queue (`eventing.cloudevent.event.to_record`)
    max_unpublished: int | None = None


ARRIVED: Final = Publication()
"""Nothing is to be published: the event came from the broker."""


class AcquireStatus(StrEnum):
    """What came of asking for a job's lease."""

    ACQUIRED = "acquired"  #: ours; generate
    HELD = "held"  #: runs elsewhere under a live lease
    TERMINAL = "terminal"  #: has ended before: a duplicate delivery
    EXPIRED = "expired"  #: failed here: its deadline had passed
    EXHAUSTED = "exhausted"  #: failed here: no attempt left
    ALONE = "alone"  #: its last attempt after losses: only for who runs nothing else (ADR 18)
    OTHER = "other"  #: recorded with another request than the asker knows: unchanged
    MISSING = "missing"  #: no record; create it first


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write one attempt of a job. `id` is random, since a store that failed over to a
    lagging replica can hand out an attempt number twice.
    """

    job_id: JobId
    attempt: int
    id: str


NO_LEASE: Final = Lease(JobId(""), 0, "")
"""What somebody holds who was given none; every write with it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """The answer to `acquire`. `token_count` tokens of earlier attempts stand in the stream and are
    to be continued; `void_count` tokens stood there and are not.
    """

    status: AcquireStatus
    lease: Lease = NO_LEASE
    token_count: int = 0
    void_count: int = 0
    lease_left_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSettings:
    """How long a lease lasts, how many attempts may fail, how long a job whose event was taken may
    wait for its start before it is published again, and how long ended jobs are kept.
    """

    lease_ms: int = 30_000
    max_attempts: int = 3
    republish_after_s: int = 900
    retention_s: int = 24 * 3600
    dead_letter_retention_s: int = 14 * 24 * 3600


class LeaseStatus(StrEnum):
    """What a lease holder is told when it renews or writes."""

    OK = "ok"  #: still ours
    FENCED = "fenced"  #: a newer attempt runs, or the job was given back
    HELD = "held"  #: somebody else runs it
    TERMINAL = "terminal"  #: the job has ended (cancelled, say)
    EXPIRED = "expired"  #: the job's deadline has passed: end it
    MISSING = "missing"  #: the record is gone
    GAP = "gap"  #: tokens out of order; the writer is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Tokens that go on from `index`; `delta` is what readers are shown for them (JSON text, may be
    empty).
    """

    index: int
    token_ids: tuple[int, ...]
    delta: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended a job. `final_batch` is what it had not yet checkpointed and `gpu_ms` what its
    job is charged: written in the same step as the end, or not at all.
    """

    state: JobState
    result: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] | None = None
    error: JobError | None = None
    is_dead_letter: bool = False
    final_batch: TokenBatch | None = None
    gpu_ms: int = 0


class ReleaseReason(StrEnum):
    """Why a job is given back unfinished."""

    HANDOVER = "handover"  #: drain, preemption: the job is fine, costs no attempt
    FAILURE = "failure"  #: the attempt went wrong, costs one
    LOST = "lost"  #: the engine died under it and others: costs one, like a process that died


class EntryKind(StrEnum):
    """What an entry of a token stream says."""

    ATTEMPT = "attempt"  #: a new attempt starts at `index` (0 when it had to start over)
    TOKENS = "tokens"  #: tokens from `index` on
    STATE = "state"  #: the job changed state
    OTHER = "other"  #: of a newer version; says nothing to this one


class StreamEntry(NamedTuple):
    """One entry of a job's token stream. `cursor` orders entries and is what a reader resumes
    after. A tuple, since one is made for each live token, and a frozen dataclass takes four times
    as long.
    """

    cursor: str
    kind: EntryKind
    attempt: int
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which nobody asks for
    token_ids: tuple[int, ...] = ()
    delta: str = ""
    state: JobState | None = None
    is_restart: bool = False
    at_ms: int = 0


class ListField(StrEnum):
    """What a list shows of its jobs only when asked to."""

    REQUEST = "request"  #: without it, a listed job's body holds its model only
    RESULT = "result"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of jobs, newest first; `next_cursor` is empty on the last one."""

    jobs: tuple[Job, ...]
    next_cursor: str = ""


class JobReader(Protocol):
    """What those ask who show jobs."""

    async def get(self, job_id: JobId) -> Job | None:
        """The job, or None."""

    async def list_jobs(
        self,
        tenant: str,
        *,
        states: Sequence[JobState] = (),
        limit: int = 20,
        cursor: str = "",
        include: Collection[ListField] = (),
    ) -> Page:
        """Jobs of a tenant, newest first, without what is not in `include`. A page looks at a bounded
        number of jobs and holds a bounded number of bytes, so it may be short, and even empty,
        before the last. Raises `BadRequest` for a cursor that is none of ours.
        """

    async def list_dead_letters(self, tenant: str, *, limit: int = 20, cursor: str = "") -> Page:
        """Failed jobs that were set aside, newest first, with their requests; else as `list_jobs`."""

    async def read_stream(
        self, job_id: JobId, after: str = "", limit: int = 1000
    ) -> list[StreamEntry]:
        """Entries of the job's token stream after a cursor, in order."""

    async def ping(self) -> None:
        """Return when the store can take writes."""


class JobIntake(JobReader, Protocol):
    """What those ask who take jobs in, and change them from outside."""

    async def submit(self, new: NewJob, publication: Publication = ARRIVED) -> tuple[Job, bool]:
        """Record the job, and its event with it; True when it is new. When it raises
        `StoreUnavailable`, all of that may have been done.

        Raises `IdempotencyConflict` when the id exists with another request, or was asked for with
        other options, or was deleted (`JobDeleted`); `BrokerUnavailable` above the most unpublished
        notes.
        """

    async def reject(self, new: NewJob, error: JobError, raw: bytes) -> bool:
        """Record an event that can never be a job: failed, a dead letter, with its raw data.

        Idempotent. False when a job of another request has this identity: that one is left alone,
        since whoever knows a job's identity must not be able to end it.
        """

    async def cancel(self, job_id: JobId) -> Job | None:
        """End the job as cancelled unless it has ended; the job as it then is."""

    async def conclude(
        self, job_id: JobId, ending: Ending, *, attempt: int | None = None
    ) -> LeaseStatus:
        """End a job that nobody holds a live lease of; `HELD` when somebody does. With the `attempt`
        that the ending is of, `FENCED` when the job has come further.
        """

    async def redrive(
        self, job: Job, request: JobRequest | None, publication: Publication = ARRIVED
    ) -> bool:
        """Queue a dead letter again, with an edited request if given; False when it is none any
        more. Its attempt number is raised, so that what still comes of the old life is refused.
        """

    async def delete(self, job_id: JobId) -> bool:
        """Forget an ended job and its tokens; False when there is none or it has not ended. For as
        long as ended jobs are kept, no event makes a job of that id again.
        """


class JobWorker(JobIntake, Protocol):
    """What those ask who run jobs."""

    async def acquire(
        self,
        job_id: JobId,
        owner: str,
        *,
        can_resume: bool,
        is_exclusive: bool = False,
        expected: NewJob | None = None,
    ) -> Acquired:
        """Start an attempt. A lapsed lease is taken over and costs the job one attempt.

        With `expected`, only if the record says the same of the job as the asker was told: its request
        and its tenant. Who asks so need not read the record first.

        `is_exclusive` says that the owner runs nothing else until this attempt has ended; without it a
        job on its last attempt that has lost one before is refused with `ALONE`, unchanged.
        """

    async def renew(self, leases: Sequence[Lease], *, extend: bool) -> list[LeaseStatus]:
        """Where each stands, in order; `extend` lengthens the leases too. One round trip."""

    async def append_all(self, appends: Sequence[tuple[Lease, TokenBatch]]) -> list[LeaseStatus]:
        """Checkpoint tokens of any number of jobs in one round trip; each answer by itself, in
        order. When it raises, any of them may have been written.
        """

    async def finish(self, lease: Lease, ending: Ending) -> tuple[LeaseStatus, Job | None]:
        """End the job: the tokens that were left, result and state; the job as it then stands.
        `GAP`, and nothing is changed, when those tokens do not go on from what is stored.
        """

    async def release(self, lease: Lease, why: ReleaseReason, error: JobError) -> bool:
        """Give the job back; False when that ended it (attempts used up: now a dead letter with
        `error`) or it was not ours.
        """


class JobSweeper(Protocol):
    """What those ask who find jobs that are not on their way any more. What is taken is taken for
    15 s, so that sweepers share it.
    """

    async def get(self, job_id: JobId) -> Job | None:
        """The job, or None."""

    async def take_unpublished(self, limit: int) -> list[JobId]:
        """Jobs whose request event may not have reached a broker that is not ours."""

    async def mark_published(self, *job_ids: JobId) -> None:
        """The broker confirmed the request events."""

    async def claim_unstarted(self, limit: int) -> list[JobId]:
        """Jobs whose event the broker took and may have lost: never started within
        `republish_after_s`, or started and held by nobody for a lease (docs/adr/0140).
        """

    async def look_later(self, job_id: JobId, after_ms: int) -> None:
        """The event went out again: leave the job alone for so long, and `republish_after_s`."""

    async def expire(self, limit: int) -> list[JobId]:
        """Fail jobs whose deadline has passed and that nobody runs; those that were failed."""

    async def conclude(
        self, job_id: JobId, ending: Ending, *, attempt: int | None = None
    ) -> LeaseStatus:
        """As `JobIntake.conclude`."""


class Store(JobWorker, JobSweeper, Protocol):
    """The record of every job."""

    async def close(self) -> None:
        """Let go of every connection."""

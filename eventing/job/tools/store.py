"""The store's interface for turns and tool calls. Implemented by `eventing.store.steps.redis_tools` alone: tools need
the store in Redis.

Every method is one script, atomic, and raises `StoreUnavailable`. Called by the steps process, and by the api for
decisions. Must not know its callers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from eventing.job.job import Job, JobId
from eventing.job.step import AdvanceStatus, StepRun, StepStore
from eventing.job.store import ARRIVED, Publication
from eventing.job.tools.call import CallState, ToolCall, Turn


class SendStatus(StrEnum):
    """The answer to a process that wants to send a call."""

    SENT = "sent"  #: marked and leased: dial
    POLL = "poll"  #: accepted before: ask for its handle, do not send again
    HELD = "held"  #: another process holds its lease
    WAITING = "waiting"  #: a person is to decide
    DONE = "done"  #: final, or of an earlier life of the job
    IN_DOUBT = "in_doubt"  #: it may have run and is not sent again: a person was asked, or the model is told
    TERMINAL = "terminal"  #: the job has ended
    EXPIRED = "expired"  #: ended here: its deadline had passed
    MISSING = "missing"  #: no record


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The answer to `send_call`; `send` numbers its lease, and every later write carries it. `call` is as it is now.
    `IN_DOUBT` with a call that is still SENT: no one can be asked, so the caller returns it as UNKNOWN.
    """

    status: SendStatus
    job: Job | None = None
    call: ToolCall | None = None
    send: int = 0
    lease_left_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnd:
    """How a send ended. `state` is RETURNED, ACCEPTED (with `handle`), AWAITING_INPUT (with `question`), UNKNOWN,
    NOT_RUN, PENDING for one that surely was not carried out, or IN_DOUBT for one that may have been: by the call's
    effect class it is then sent again, a person is asked, or it is unknown.
    """

    state: CallState
    output: str = ""
    is_error: bool = False
    handle: str = ""
    again_ms: int = 0  #: of an accepted one: after how long a sweep queues it, to be asked for
    object_ref: str = ""
    output_bytes: int = 0
    reason: str = ""
    token_hash: str = (
        ""  #: of the token that a later result will carry; of a result, of the one that it carries
    )
    question: str = ""  #: what the tool asks its user for, and its state (JSON)


class ProgressStatus(StrEnum):
    """The answer to what a running call says of itself."""

    OK = "ok"  #: noted
    SOON = "soon"  #: dropped: it said something a moment ago
    LATE = "late"  #: it does not run any more, or not under this lease or token
    MISSING = "missing"  #: no such job or call


class ReturnStatus(StrEnum):
    """The answer to a call's result or decision."""

    OK = "ok"  #: stored; other calls of the turn are still to end, or the job waits
    AGAIN = "again"  #: stored; it is to be sent again after its queue's backoff
    NEXT = "next"  #: stored, and the predictor's event is in its queue: the next turn
    ENDED = "ended"  #: stored, and the job ended with its turn
    HELD = "held"  #: it runs under a live lease
    LATE = "late"  #: another send, a decision or an end was first: noted, not used
    DONE = "done"  #: the same was stored before
    TERMINAL = "terminal"  #: the job has ended
    MISSING = "missing"  #: no such job, call or approval


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a person said about a call that waits. For a call in doubt `state` is PENDING (run again), RETURNED (it ran;
    `text` is its result) or UNKNOWN (give up); else PENDING (approved) or DENIED (`text` is the reason).
    """

    state: CallState
    text: str = ""
    approver: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingApproval:
    """A call that waits for a person."""

    job_id: JobId
    tenant: str
    call: ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalPage:
    """A page of them; `next_cursor` is empty on the last one."""

    calls: Sequence[PendingApproval]
    next_cursor: str = ""


class ToolStore(StepStore, Protocol):
    """Runs the tool calls of jobs."""

    async def commit_turn(
        self,
        run: StepRun,
        turn: Turn,
        publications: Mapping[int, Publication],
        next_turn: Publication = ARRIVED,
    ) -> AdvanceStatus:
        """Store the turn that the job's candidate is, with its calls, and put the event of each pending call (by its
        place) into its queues, or note that it is unpublished; no call of the turn was out before. The job then waits
        in the step `tools`, without a lease. With `turn.ends` and no call that is to run, it ends with its candidate;
        with every call final and no `turn.ends`, `next_turn` (the predictor's event) is queued in this script.
        Compared with the run as `advance` is.
        """

    async def queue_calls(
        self,
        run: StepRun,
        publications: Mapping[int, Publication],
        next_turn: Publication = ARRIVED,
    ) -> AdvanceStatus:
        """Put calls of the newest turn that are not final, and wait for no person, into their queues again, by their
        places: those that are in a queue stay as they are. A turn that an earlier job left is taken over by this; where
        none of its calls is to run, the next turn is queued (`next_turn`).
        """

    async def send_call(
        self,
        job_id: JobId,
        turn: int,
        place: int,
        *,
        owner: str,
        lease_ms: int,
        token_hash: str = "",
        key: str = "",
    ) -> Sent:
        """Mark a call as sent and take its lease, before it is dialled. A call that was sent before and whose lease has
        lapsed is in doubt: sent again where its effect class allows, and never otherwise. Replicas have the mark when
        this returns, where there are some. `token_hash` is of the token that a later result of this send will carry;
        `key` is the idempotency key that was delivered: one of before an edit is `DONE`.
        """

    async def renew_call(
        self, job_id: JobId, turn: int, place: int, send: int, *, lease_ms: int
    ) -> bool:
        """Lengthen the lease; False when the send is not the newest, or the job has ended: stop."""

    async def progress_call(
        self,
        job_id: JobId,
        turn: int,
        place: int,
        send: int,
        progress: str,
        token_hash: str = "",
    ) -> ProgressStatus:
        """Note what a running call says of how far it is, and tell its readers. By the lease of its send, or by the
        token that it was sent with, which stays good.
        """

    async def return_call(
        self,
        job_id: JobId,
        turn: int,
        place: int,
        send: int,
        end: CallEnd,
        publication: Publication = ARRIVED,
    ) -> ReturnStatus:
        """Store how a send ended, unless a newer one began; a result also by the token that it carries. When it was the
        last open call of the turn, the next turn is queued (`publication` is the predictor's event), or the job ends
        with the turn.
        """

    async def give_up_call(
        self,
        job_id: JobId,
        turn: int,
        place: int,
        key: str,
        reason: str,
        next_turn: Publication = ARRIVED,
    ) -> ReturnStatus:
        """The tries of the delivery of the call with this key are used up: it was not run, or is in doubt where it was
        sent. `HELD` while it runs under a live lease.
        """

    async def decide(
        self,
        job_id: JobId,
        approval_id: str,
        decision: Decision,
        *,
        call: Publication = ARRIVED,
        turn: Publication = ARRIVED,
    ) -> tuple[ReturnStatus, ToolCall | None]:
        """Take a decision once; a second one gets the first. `call` is the event of the call, queued where it is to
        run; `turn` is the predictor's, queued where it was the last of its turn.
        """

    async def approvals(self, tenant: str, limit: int = 100, cursor: str = "") -> ApprovalPage:
        """The calls of a tenant that wait for a person, those whose time ends first before the others. Raises
        `BadRequest` for an invalid cursor.
        """

    async def overdue_approvals(self, limit: int = 100) -> Sequence[PendingApproval]:
        """The calls, of all tenants, whose time for a decision has passed."""

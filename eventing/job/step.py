"""The store's interface for steps: a run of a step begins, ends, or is given up to be tried again.

A step takes no job lease: the claim of its queue entry is its lease, and its queue's tries are its attempts. A run
changes the job by one write, which is compared with the record: the step must still be the next one, and life and
plan of the job those of the run. Implemented by `eventing.store.steps.redis_steps` and its in-memory twin
`eventing.store.steps.memory_steps`; `tests/contract/test_steps.py` runs against both. Must not know its callers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from eventing.job.job import Job, JobId, JobRequest
from eventing.job.plan import StepStatus
from eventing.job.store import ARRIVED, Ending, JobIntake, Publication, TokenBatch


class BeginStatus(StrEnum):
    """The answer to a run that wants to begin."""

    BEGUN = "begun"  #: run it
    DONE = "done"  #: another step is next, or none: a duplicate delivery
    UNPLANNED = "unplanned"  #: the job was recorded without a plan
    TERMINAL = "terminal"  #: the job has ended
    EXPIRED = "expired"  #: ended here: its deadline had passed
    MISSING = "missing"  #: no record


@dataclass(frozen=True, slots=True)
class StepRun:
    """What the end of a run is compared with: `attempt` is the job's, which a redrive raises."""

    job_id: JobId
    tenant: str
    step: str
    attempt: int
    plan_version: str

    @classmethod
    def of(cls, job: Job, step: str) -> "StepRun":
        """A run of `step` of the job as it is now."""
        version = job.plan.version if job.plan else ""
        return cls(job.id, job.tenant, step, job.attempt, version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The answer to `begin_step`, with the record as it is now (None for `MISSING`). `number` counts the runs of
    this step that began, this one included. `is_suspect` says that an earlier one ended without a word: its process
    died, perhaps of this job.
    """

    status: BeginStatus
    job: Job | None = None
    number: int = 0
    is_suspect: bool = False


class Verdict(StrEnum):
    """What becomes of the answer that a step after the predictor judged."""

    NONE = ""  #: nothing yet: another step is next, or there is no answer
    ACCEPT = "accept"  #: the job ends with it
    AGAIN = "again"  #: it is thrown away; the predictor makes another
    WITHHOLD = "withhold"  #: the job ends without its text


class AdvanceStatus(StrEnum):
    """The answer to the end of a run."""

    OK = "ok"  #: stored
    DONE = "done"  #: another run of this step was first
    FENCED = "fenced"  #: the job was redriven meanwhile
    TERMINAL = "terminal"  #: the job has ended meanwhile
    MISSING = "missing"  #: the record is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnd:
    """How a step ended. With `ending`, the job ends with it, and `tokens` are written to its stream; without, it
    goes on to `next_step` (empty: to its predictor), with the request `prepared` if that has changed.

    After the predictor, `verdict` says what becomes of the answer. One that a step changed is `result`, whose `tokens`
    take the place of what is in the stream.
    """

    status: StepStatus
    detail: Mapping[str, Any] = field(default_factory=dict)
    next_step: str = ""
    prepared: JobRequest | None = None
    ending: Ending | None = None
    tokens: tuple[TokenBatch, ...] = ()
    verdict: Verdict = Verdict.NONE
    result: Mapping[str, Any] | None = None
    withheld: str = ""  #: why, of an answer that is
    tool_list: str = (
        ""  #: the pinned tools of the job (`eventing.job.tools.tool_list`), once they are
    )
    discarded_model: str = ""  #: the model whose answer is thrown away

    @property
    def spent_on(self) -> str:
        """What the tokens of an answer that is thrown away were spent on: `repaired`, or `cascaded` when another model
        is asked.
        """
        is_other = self.prepared is not None and self.prepared.model != self.discarded_model
        return "cascaded" if is_other else "repaired"


class StepStore(JobIntake, Protocol):
    """Runs the steps of jobs."""

    async def begin_step(self, job_id: JobId, step: str) -> Begun:
        """Begin a run of a step. A job past its deadline is failed here."""

    async def advance(
        self, run: StepRun, end: StepEnd, publication: Publication = ARRIVED
    ) -> AdvanceStatus:
        """Store how the step ended, and what follows: the event of the next step or of the predictor, or the end of
        the job. Nothing is changed unless the answer is `OK`.
        """

    async def give_up_run(self, run: StepRun) -> None:
        """The run failed; the step waits for its next try."""

    async def plan_nothing(self, job_id: JobId, publication: Publication = ARRIVED) -> bool:
        """Send a job that was recorded without a plan to its predictor, under an empty plan; False when it
        has a plan, has ended, or is gone.
        """

"""What a step's handler is given, and what it gives back.

Implemented once for each step and called by the steps process. A handler changes nothing by itself: its outcome is
stored by one script, which compares the step, the run and the plan's version, so a handler may run again at any time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from eventing.errors import BadRequest, TorporError
from eventing.job.cache.cache import CacheUse
from eventing.job.job import CONTENT_FILTER, Job, JobError, JobRequest
from eventing.job.passage import Passage
from eventing.job.store import TokenBatch
from eventing.job.tools.call import Turn

Detail = Mapping[str, Any]
"""Small JSON that the caller is shown in `pipeline[].detail`: never a prompt, an answer or a secret of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCall:
    """One run of a step. `request` is the caller's request as the steps before have prepared it, `settings` are this
    step's in the plan, `attempt` counts the runs of this step of this job from 1, `deadline_ms` is the job's (epoch
    milliseconds, 0 for none). A step after the predictor is given the answer so far, `candidate`, and `passages`, the
    texts that retrieval put into the prompt.
    """

    job: Job
    request: JobRequest
    settings: Mapping[str, Any]
    attempt: int
    deadline_ms: int
    candidate: Mapping[str, Any] | None = None
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Continue:
    """The job goes on to its next step; with another `request`, or with the same one for None. After the predictor
    the job goes on with another `result`, or with the same one for None; after the last step it ends with it.
    `tool_list` is kept with the job (`eventing.job.tools.tool_list`).
    """

    request: JobRequest | None = None
    result: Mapping[str, Any] | None = None
    detail: Detail = field(default_factory=dict)
    tool_list: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The job ends here, completed: no predictor is woken. `tokens` are shown to readers of the token stream; `cache`
    says whose answer it is.
    """

    result: Mapping[str, Any]
    usage: Mapping[str, Any] | None = None
    detail: Detail = field(default_factory=dict)
    tokens: tuple[TokenBatch, ...] = ()
    cache: CacheUse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """The step does not apply; the job goes on unchanged."""

    reason: str
    detail: Detail = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The job ends here, failed, with an error for the caller. It is final: no retry, no dead letter."""

    error: JobError
    detail: Detail = field(default_factory=dict)


def wrong_setting(error: BadRequest) -> Refuse:
    """The end of a job whose plan has a setting that its step can not have."""
    message = f"the step's setting {error.field}: {error.message}"
    return Refuse(error=JobError(code="invalid_pipeline", message=message))


@dataclass(frozen=True, slots=True, kw_only=True)
class Withhold:
    """The job ends here, incomplete: its answer is deleted, and no reader has seen it. Of steps after the predictor
    whose plan holds the answer back (`Plan.hold`).
    """

    reason: str = CONTENT_FILTER
    detail: Detail = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """The answer is thrown away, and the job goes to its predictor once more, as its next attempt: with another
    `request`, and to another `model`, or with what it had for None. Of steps after the predictor whose plan holds the
    whole answer back. The handler says when to stop (`StepCall.job.history`).
    """

    request: JobRequest | None = None
    model: str | None = None
    detail: Detail = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitTurn:
    """The answer asks for tools: it is stored as a turn of the job, with its calls, in one script, and those that are
    pending are queued. Of the step `tools` alone.
    """

    turn: Turn
    detail: Detail = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCalls:
    """The answer was stored as a turn before: its pending calls are queued again. Of the step `tools` alone."""

    detail: Detail = field(default_factory=dict)


StepOutcome = Continue | Answer | Skip | Refuse | Withhold | Again | CommitTurn | QueueCalls


class SetAside(TorporError):
    """The job ends as a dead letter: to wait does not help, and an operator redrives it once the cause is gone."""


class NotInstalled(SetAside):
    """A package that the step needs is missing where the steps run, or is not the pinned one. To wait does not help."""

    code = "not_installed"


def not_installed(package: str) -> NotInstalled:
    """The error about a package of the extra `steps`."""
    return NotInstalled(
        f"{package} is not installed where the steps run: pip install 'torpor[steps]'"
    )


@contextmanager
def packages() -> Iterator[None]:
    """Around imports of packages that may be missing. Raises `NotInstalled`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise not_installed((error.name or "a package").partition(".")[0]) from error


class Handler(Protocol):
    """One step. Raises `eventing.errors.Unavailable` to be called again later, and `NotInstalled` where a package that
    it needs is missing; any other error counts as a try too.
    """

    async def __call__(self, call: StepCall) -> StepOutcome: ...

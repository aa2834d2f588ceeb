"""Plans: the steps that a job passes through before its predictor and after it, and how far it has come.

Called by the api and the broker (which make plans), the steps process, the stores and the views. A plan is made once,
when the job is recorded, of the configuration (`pipelines.yaml`, one entry a public model name) and the request; it
stands in the record under a version, so that a changed configuration does not touch a job under way. Pure.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import orjson

from eventing.errors import InvalidJob
from eventing.known_fields import known_fields, known_value

MODERATION_INPUT: Final = "moderation-input"
MODERATION_OUTPUT: Final = "moderation-output"
"""Steps that a request asks for, beside those of its model's plan (`eventing.job.moderation.inline`)."""
LIST_TOOLS_STEP: Final = "list-tools"
"""Asks the tool servers of a request for their tools, and pins them for the job."""
TOOLS_STEP: Final = "tools"
"""Commits an answer that asks for tools as a turn, and queues its calls; the first step after the predictor."""
STEP_ORDER: Final = (
    *("moderate-input", MODERATION_INPUT, "memory", "semantic-cache", "retrieve"),
    *(LIST_TOOLS_STEP, "route"),
)
"""The order of the steps that Torpor knows; each may be absent, and a step of another name may stand anywhere."""
GROUND_STEP: Final = "ground"
"""Compares an answer with its passages."""
STEPS_AFTER: Final = (TOOLS_STEP, "validate-output", MODERATION_OUTPUT, GROUND_STEP)
"""The steps that Torpor knows after the predictor, in their order; one of another name says `after: true`."""
ROUTE_STEP: Final = "route"
"""Chooses among the models of its setting `tiers`: a model whose plan has it needs no predictor of its own."""
EMBED_STEP: Final = "embed"
"""Answers embeddings: a model whose plan has it is served by the steps alone."""
MODERATE_STEP: Final = "moderate"
"""Answers moderations: a model whose plan has it is served by the steps alone."""
SERVING_STEPS: Final = (EMBED_STEP, MODERATE_STEP, ROUTE_STEP)
"""A model whose plan has one of these needs no predictor of its own name."""
KNOWN_STEPS: Final = (*STEP_ORDER, *STEPS_AFTER)
"""Both, in their order."""


class OnFailure(StrEnum):
    """What becomes of a job whose step is unavailable."""

    WAIT = "wait"  #: the step is tried again; when its tries are used up, the job fails as a dead letter
    CONTINUE = "continue"  #: the step is skipped, and the job says so


class Hold(StrEnum):
    """What readers of a job's answer are shown before its end."""

    NONE = "none"  #: every token as it comes
    WINDOW = "window"  #: the text that rules in the predictor have judged
    WHOLE = "whole"  #: nothing: a step after the predictor may withhold the answer, or have it made again


class StepStatus(StrEnum):
    """How far a step of a job is."""

    QUEUED = "queued"  #: waits for the steps before it, or for its own turn
    IN_PROGRESS = "in_progress"  #: its handler has begun
    COMPLETED = "completed"  #: done; the job went on, or was answered by it
    SKIPPED = "skipped"  #: did not apply, or was unavailable where that is allowed
    FAILED = "failed"  #: refused the request, or its tries were used up
    CANCELLED = "cancelled"  #: the job was cancelled while it ran
    NOT_RUN = "not_run"  #: the job ended before it


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One step with its settings. `timeout_ms` limits one run of its handler, 0 for the time of its delivery."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    on_failure: OnFailure = OnFailure.WAIT
    timeout_ms: int = 0
    skippable: bool = False  #: a request may leave it out
    after: bool = (
        False  #: it runs on the answer; the steps that Torpor knows have their place by name
    )

    @property
    def is_after(self) -> bool:
        """True for a step after the predictor."""
        return self.after or self.name in STEPS_AFTER

    @property
    def hold(self) -> Hold:
        """What this step holds back: its setting `hold`, `window` or `whole`; without it everything, where the step
        may withhold the answer (`mode: block`) or have it made again (`repairs`, `cascade`).
        """
        asked = self.settings.get("hold")
        if asked in (Hold.WINDOW, Hold.WHOLE):
            return Hold(asked)
        may_change = self.settings.get("mode") == "block" or any(
            self.settings.get(name) for name in ("repairs", "cascade")
        )
        return Hold.WHOLE if self.is_after and may_change else Hold.NONE

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the record: what differs from the defaults."""
        record: dict[str, Any] = {"name": self.name}
        if self.settings:
            record["settings"] = dict(self.settings)
        if self.on_failure is not OnFailure.WAIT:
            record["on_failure"] = str(self.on_failure)
        if self.timeout_ms:
            record["timeout_ms"] = self.timeout_ms
        if self.skippable:
            record["skippable"] = True
        if self.after:
            record["after"] = True
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in their order. `version` is a digest of them. A plan may be empty: made, and nothing is to be done."""

    steps: tuple[PlannedStep, ...]

    @property
    def version(self) -> str:
        return hashlib.sha256(self._steps_json()).hexdigest()[:16]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps)

    @property
    def first(self) -> str:
        """The name of the first step before the predictor; empty when there is none."""
        return next((step.name for step in self.before), "")

    def step(self, name: str) -> PlannedStep | None:
        """The step of this name."""
        return next((step for step in self.steps if step.name == name), None)

    @property
    def before(self) -> tuple[PlannedStep, ...]:
        """The steps before the predictor."""
        return tuple(step for step in self.steps if not step.is_after)

    @property
    def after(self) -> tuple[PlannedStep, ...]:
        """The steps after the predictor."""
        return tuple(step for step in self.steps if step.is_after)

    @property
    def first_after(self) -> str:
        """The name of the first step after the predictor; empty when there is none."""
        return next((step.name for step in self.after), "")

    @property
    def hold(self) -> Hold:
        """What readers are shown before the end: the strictest that a step asks for."""
        holds = {step.hold for step in self.steps}
        return next((each for each in (Hold.WHOLE, Hold.WINDOW) if each in holds), Hold.NONE)

    def next_after(self, name: str) -> str:
        """The name of the step after this one on its side of the predictor; empty after the last."""
        step = self.step(name)
        side = self.after if step is not None and step.is_after else self.before
        names = [each.name for each in side]
        place = names.index(name) + 1
        return names[place] if place < len(names) else ""

    def without(self, names: Collection[str]) -> "Plan":
        """The plan without these steps. Raises `InvalidJob` for a step that may not be left out, or that is not in
        the plan.
        """
        for name in names:
            step = self.step(name)
            if step is None or not step.skippable:
                raise InvalidJob(f"skip_steps: {name!r:.60} can not be left out", "skip_steps")
        return Plan(steps=tuple(step for step in self.steps if step.name not in names))

    def with_step(self, own: PlannedStep) -> "Plan":
        """The plan with a step that a request asks for, at its place in the order of known steps; in place of a
        planned one of that name.
        """
        others = [step for step in self.steps if step.name != own.name]
        before = KNOWN_STEPS[: KNOWN_STEPS.index(own.name)] if own.name in KNOWN_STEPS else ()
        place = max((n + 1 for n, step in enumerate(others) if step.name in before), default=0)
        if own.is_after:
            place = max(place, sum(not step.is_after for step in others))
        return Plan(steps=(*others[:place], own, *others[place:]))

    def to_json(self) -> bytes:
        return orjson.dumps({"version": self.version, "steps": [s.to_dict() for s in self.steps]})

    def _steps_json(self) -> bytes:
        steps = [step.to_dict() for step in self.steps]
        return orjson.dumps(steps, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """How a step of one job went. Times are store time in milliseconds, 0 for not yet; `attempts` counts the runs of
    its handler that began.
    """

    step: str
    status: StepStatus = StepStatus.QUEUED
    started_ms: int = 0
    ended_ms: int = 0
    attempts: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)


def plan_of_json(raw: bytes | str) -> Plan:
    """The plan that `to_json` of this version or another wrote."""
    record = orjson.loads(raw)
    steps = []
    for each in record["steps"]:
        known = known_fields(PlannedStep, each)
        known["on_failure"] = known_value(OnFailure, known.get("on_failure", OnFailure.WAIT))
        steps.append(PlannedStep(**known))
    return Plan(steps=tuple(steps))


Pipelines = Mapping[str, Plan]
"""The configured plan of each public model name that has one."""
NO_PIPELINES: Final[Pipelines] = {}


def plan_for(pipelines: Pipelines, model: str, skip_steps: Sequence[str] = ()) -> Plan | None:
    """The plan of a new job; None for a model that has none. Raises `InvalidJob` for a step in `skip_steps` that may
    not be left out.
    """
    plan = pipelines.get(model)
    if plan is None and not skip_steps:
        return None
    return (plan or Plan(steps=())).without(skip_steps)


def tiers_of(plan: Plan) -> tuple[str, ...]:
    """The models that a plan with `route` chooses among; empty for another plan."""
    step = plan.step(ROUTE_STEP)
    tiers = step.settings.get("tiers") if step else None
    if not isinstance(tiers, list | tuple):
        return ()  # the step itself refuses them
    names = [each.get("model") if isinstance(each, Mapping) else each for each in tiers]
    return tuple(name for name in names if isinstance(name, str))

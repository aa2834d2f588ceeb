"""Plans: the steps that a job passes through before its predictor and after it, and how far it has come.

Called by the api and the broker (which make plans), the steps process, the stores and the views. A plan is made once,
when the job is recorded, of the configuration (`pipelines.yaml`, one entry a public model name) and the request; it
stands in the record under a version, so that a changed configuration does not touch a job under way. Pure, once the
file is read.
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import orjson
import yaml

from eventing.errors import BadRequest, InvalidJob
from eventing.known_fields import known_fields, known_value
from eventing.process.once_loader import OnceLoader

MODERATION_INPUT: Final = "moderation-input"
MODERATION_OUTPUT: Final = "moderation-output"
"""Steps that a request asks for, beside those of its model's plan (`eventing.job.moderation.inline`)."""
STEP_ORDER: Final = (
    *("moderate-input", MODERATION_INPUT, "memory", "semantic-cache", "retrieve", "route"),
)
"""The order of the steps that Torpor knows; each may be absent, and a step of another name may stand anywhere."""
GROUND_STEP: Final = "ground"
"""Compares an answer with its passages."""
STEPS_AFTER: Final = ("validate-output", MODERATION_OUTPUT, GROUND_STEP)
"""The steps that Torpor knows after the predictor, in their order; one of another name says `after: true`."""
ROUTE_STEP: Final = "route"
"""Chooses among the models of its setting `tiers`: a model whose plan has it needs no predictor of its own."""
EMBED_STEP: Final = "embed"
"""Answers embeddings: a model whose plan has it is served by the steps alone."""
MODERATE_STEP: Final = "moderate"
"""Answers moderations: a model whose plan has it is served by the steps alone."""
SERVING_STEPS: Final = (EMBED_STEP, MODERATE_STEP, ROUTE_STEP)
"""A model whose plan has one of these needs no predictor of its own name."""
MOST_STEPS: Final = 16
_NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?\Z")
_STEP_FIELDS: Final = frozenset(
    {"step", "settings", "on_failure", "timeout_ms", "skippable", "after"}
)
_BESIDE_STEPS: Final = frozenset({"cache", "audit", "fallback"})
_LONGEST_MS: Final = 24 * 3600 * 1000
_ORDER: Final = (*STEP_ORDER, *STEPS_AFTER)


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
        before = _ORDER[: _ORDER.index(own.name)] if own.name in _ORDER else ()
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


def load_pipelines(path: Path) -> Pipelines:
    """The plans in a YAML file. Raises `BadRequest` naming the invalid field, or that the file cannot be read."""
    return parse_pipelines(read_pipelines(path))


def read_pipelines(path: Path) -> Any:
    """The document in a YAML file, as it stands there. Raises `BadRequest` when the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.load(text, OnceLoader)  # noqa: S506  a safe one
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BadRequest(f"cannot read pipelines from {path}: {reason}", "path") from error


def parse_pipelines(document: Any) -> Pipelines:
    """The plans in a document `{MODEL: {steps: [...], cache: {...}, audit: {...}, fallback: ...}}`; what reads the
    others: `eventing.job.cache`, `eventing.telemetry.audit`, `eventing.job.fallback`. A model without steps beside
    them has no plan. Raises `BadRequest` naming the field.
    """
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise pipelines_error("", "must be an object with one entry a model")
    return {
        _model(name): _plan(str(name), entry)
        for name, entry in document.items()
        if not (isinstance(entry, Mapping) and entry and entry.keys() <= _BESIDE_STEPS)
    }


def tiers_of(plan: Plan) -> tuple[str, ...]:
    """The models that a plan with `route` chooses among; empty for another plan."""
    step = plan.step(ROUTE_STEP)
    tiers = step.settings.get("tiers") if step else None
    if not isinstance(tiers, list | tuple):
        return ()  # the step itself refuses them
    names = [each.get("model") if isinstance(each, Mapping) else each for each in tiers]
    return tuple(name for name in names if isinstance(name, str))


def check_served(plans: Pipelines, cached: Collection[str], served: Collection[str]) -> None:
    """Raises `BadRequest` for an entry whose model is not served, unless its plan needs no predictor of that name, and
    for a tier of `route` that is not served. `cached` names the entries with a cache.
    """
    known = ", ".join(sorted(served))
    for name in dict.fromkeys((*plans, *cached)):
        plan = plans.get(name, Plan(steps=()))
        if name not in served and not any(plan.step(each) for each in SERVING_STEPS):
            raise pipelines_error(name, f"is none of the models that are served: {known}")
        for field_name, model in _asked_models(plan):
            where = f"{name}.steps: {field_name}: {model}"
            if model not in served:
                raise pipelines_error(where, f"is none of the models that are served: {known}")
            if field_name.endswith(_JUDGES) and any(
                each.endswith(_JUDGES) for each, _ in _asked_models(plans.get(model, _NOTHING))
            ):
                judge = field_name.rpartition(" ")[2]
                raise pipelines_error(
                    where, f"has a {judge} itself: it would wait for its own answers"
                )


_JUDGES: Final = (": guard", ": checker")
"""Settings that name a model which judges texts."""
_NOTHING: Final = Plan(steps=())


def _asked_models(plan: Plan) -> list[tuple[str, str]]:
    """The models of this installation that the steps of a plan ask, each with where it stands."""
    asked = [(f"{ROUTE_STEP}: tiers", tier) for tier in tiers_of(plan)]
    for step in plan.steps:
        cascade = step.settings.get("cascade")
        if step.is_after and isinstance(cascade, list):
            asked += [(f"{step.name}: cascade", tier) for tier in cascade]
        for judge in _JUDGES:
            settings = step.settings.get(judge.removeprefix(": "))
            if isinstance(settings, Mapping) and not settings.get("url"):
                asked.append((f"{step.name}{judge}", str(settings.get("model"))))
    return asked


def _model(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise pipelines_error(str(name), "is no name of a model")
    return name


def _plan(model: str, entry: Any) -> Plan:
    if not isinstance(entry, Mapping):
        raise pipelines_error(model, "must be an object with steps")
    for name in entry.keys() - {"steps"} - _BESIDE_STEPS:
        raise pipelines_error(f"{model}.{name}", "is not supported")
    steps = entry.get("steps")
    where = f"{model}.steps"
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise pipelines_error(where, "must be a list of steps")
    if len(steps) > MOST_STEPS:
        raise pipelines_error(where, f"may have {MOST_STEPS} steps, not {len(steps)}")
    plan = Plan(steps=tuple(_step(f"{where}[{i}]", step) for i, step in enumerate(steps)))
    _check_names(where, plan)
    return plan


def _check_names(where: str, plan: Plan) -> None:
    for name in plan.names:
        if plan.names.count(name) > 1:
            raise pipelines_error(where, f"has {name} twice")
    ours = [name for name in plan.names if name in _ORDER]
    if ours != sorted(ours, key=_ORDER.index):
        raise pipelines_error(where, f"must be in the order {', '.join(_ORDER)}")
    if plan.steps != (*plan.before, *plan.after):
        raise pipelines_error(
            where, "must have the steps after the predictor after those before it"
        )


def _step(where: str, entry: Any) -> PlannedStep:
    record = {"step": entry} if isinstance(entry, str) else entry
    if not isinstance(record, Mapping):
        raise pipelines_error(where, "must be the name of a step, or an object with it")
    for name in record.keys() - _STEP_FIELDS:
        raise pipelines_error(f"{where}.{name}", "is not supported")
    step, settings = record.get("step"), record.get("settings", {})
    if not isinstance(step, str) or not _NAME.match(step):
        raise pipelines_error(f"{where}.step", "must be a name of a-z, 0-9 and hyphens")
    if not isinstance(settings, Mapping):
        raise pipelines_error(f"{where}.settings", "must be an object")
    on_failure = record.get("on_failure", OnFailure.WAIT)
    if on_failure not in list(OnFailure):
        raise pipelines_error(f"{where}.on_failure", f"must be {' or '.join(OnFailure)}")
    # A check that may block and is skipped when it is down would let everything through.
    if on_failure == OnFailure.CONTINUE and settings.get("mode") == "block":
        raise pipelines_error(f"{where}.on_failure", "must be wait for a step that blocks")
    return PlannedStep(
        name=step,
        settings=dict(settings),
        on_failure=OnFailure(on_failure),
        timeout_ms=_timeout_ms(where, record.get("timeout_ms", 0)),
        skippable=_flag(f"{where}.skippable", record.get("skippable", False)),
        after=_after(where, step, record.get("after", False)),
    )


def _after(where: str, step: str, value: Any) -> bool:
    after = _flag(f"{where}.after", value)
    if after and step in STEP_ORDER:
        raise pipelines_error(f"{where}.after", f"must be false: {step} runs before the predictor")
    return after and step not in STEPS_AFTER


def _timeout_ms(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LONGEST_MS:
        raise pipelines_error(
            f"{where}.timeout_ms", f"must be whole milliseconds up to {_LONGEST_MS}"
        )
    return value


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise pipelines_error(where, "must be true or false")
    return value


def pipelines_error(field_name: str, reason: str) -> BadRequest:
    """An error in a pipelines file."""
    where = f"pipelines: {field_name}" if field_name else "pipelines"
    return BadRequest(f"{where} {reason}", field_name)

"""The plans in a pipelines file: read, checked and made. Pure, once the file is read.

Called by the settings of api, broker and steps, and by what checks an installation. What reads the other entries of a
model: `eventing.job.cache.cache`, `eventing.job.pipelines.audit` and `eventing.job.pipelines.fallback`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from eventing.errors import BadRequest
from eventing.job.plan import (
    KNOWN_STEPS,
    ROUTE_STEP,
    SERVING_STEPS,
    STEP_ORDER,
    STEPS_AFTER,
    OnFailure,
    Pipelines,
    Plan,
    PlannedStep,
    tiers_of,
)
from eventing.process.once_loader import OnceLoader

MOST_STEPS: Final = 16
_NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?\Z")
_STEP_FIELDS: Final = frozenset(
    {"step", "settings", "on_failure", "timeout_ms", "skippable", "after"}
)
_BESIDE_STEPS: Final = frozenset({"cache", "audit", "fallback"})
_LONGEST_MS: Final = 24 * 3600 * 1000


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
    """The plans in a document `{MODEL: {steps: [...], cache: {...}, audit: {...}, fallback: ...}}`. A model without
    steps beside the others has no plan. Raises `BadRequest` naming the field.
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
    ours = [name for name in plan.names if name in KNOWN_STEPS]
    if ours != sorted(ours, key=KNOWN_STEPS.index):
        raise pipelines_error(where, f"must be in the order {', '.join(KNOWN_STEPS)}")
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

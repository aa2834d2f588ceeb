"""Moderation that a request asks for: `moderation {model, policy}` of OpenAI's chat completions and responses. Pure.

Called by the broker's intake, which adds the steps to the job's plan, by these steps, and by the views. They stand
beside those that the plan has, so a caller makes the check of its own call stricter and never weaker.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from eventing.errors import InvalidJob
from eventing.job.call.moderation import MODERATION
from eventing.job.job import JobRequest
from eventing.job.plan import (
    MODERATE_STEP,
    MODERATION_INPUT,
    MODERATION_OUTPUT,
    Pipelines,
    PlannedStep,
    StepRecord,
)

INLINE: Final = "inline"
"""The setting of `moderate` that lets requests of other models ask for it."""
_URL: Final = "/v1/chat/completions"
_SIDES: Final = {"input": MODERATION_INPUT, "output": MODERATION_OUTPUT}


def inline_steps(request: JobRequest, pipelines: Pipelines) -> tuple[PlannedStep, ...]:
    """The steps that a request asks for, none for most. Raises `InvalidJob` for a model that it may not ask for."""
    asked = request.body.get(MODERATION) if request.url == _URL else None
    if not isinstance(asked, Mapping):
        return ()
    model, policy = asked["model"], asked.get("policy") or {}
    plan = pipelines.get(model)
    step = plan.step(MODERATE_STEP) if plan else None
    if step is None or step.settings.get(INLINE) is not True:
        where = f"body.{MODERATION}.model"
        raise InvalidJob(f"{where}: {model:.60} moderates no requests of other models", where)
    return tuple(
        PlannedStep(
            name=name,
            settings={"model": model, "mode": (policy.get(side) or {}).get("mode", "score")},
        )
        for side, name in _SIDES.items()
    )


def inline_names(pipelines: Pipelines) -> tuple[str, ...]:
    """The steps that requests may ask for, of an installation with these plans."""
    steps = [plan.step(MODERATE_STEP) for plan in pipelines.values()]
    is_allowed = any(step is not None and step.settings.get(INLINE) is True for step in steps)
    return tuple(_SIDES.values()) if is_allowed else ()


def side_result(model: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is said of a request or an answer: a result for each of its parts."""
    own = [{**each, "model": model, "type": "moderation_result"} for each in results]
    return {"type": "moderation_results", "model": model, "results": own}


def side_error(code: str, message: str) -> dict[str, Any]:
    """What is said of a request or an answer that could not be judged."""
    return {"type": "error", "code": code, "message": message}


def moderation_of(
    pipeline: Sequence[StepRecord], output: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The answer's `moderation`: what the steps recorded, with `output` in place of its record where that is newer;
    None for a job that asked for none.
    """
    records = {each.step: each for each in pipeline if each.step in _SIDES.values()}
    if not records:
        return None
    unjudged = side_error("not_judged", "it was not judged")
    found = {
        side: records[name].detail.get(MODERATION) or unjudged if name in records else unjudged
        for side, name in _SIDES.items()
    }
    return found | ({"output": dict(output)} if output else {})


def single_result(moderation: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a response has it: one result on each side, of its first part that is flagged."""
    return {side: _single(each) for side, each in moderation.items()}


def _single(side: Mapping[str, Any]) -> Mapping[str, Any]:
    results = side.get("results") or ()
    flagged = next((each for each in results if each.get("flagged")), None)
    return flagged or (results[0] if results else side)

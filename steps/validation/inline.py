"""The steps `moderation-input` and `moderation-output`: what a request asks for by `moderation {model, policy}`.

They judge by the rules and the guard of the moderation model that it names (its step `moderate`), as that stands in
this process's plans. `mode: block` refuses the request or withholds the answer, also where nothing could be judged;
`score` says in the answer what was found.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from eventing.errors import BadRequest, Unavailable
from eventing.job.call.moderation import MODERATION
from eventing.job.job import CONTENT_FILTER, JobError
from eventing.job.moderation.inline import moderation_of, side_error, side_result
from eventing.job.plan import MODERATE_STEP, Pipelines
from steps.handler import Continue, Refuse, StepCall, StepOutcome, Withhold, wrong_setting
from steps.validation.guard_forms import Role
from steps.validation.moderate import Moderator, NoVerdict, parse_moderation
from steps.validation.texts import choice_texts, request_texts

_MOST_RECORDED: Final = 8
"""Results that a step's record holds; the answer has them all."""


class InlineModeration:
    """What both steps do. Moderator and plans belong to the caller."""

    def __init__(self, moderator: Moderator, plans: Pipelines) -> None:
        self._moderator = moderator
        self._plans = plans

    async def input(self, call: StepCall) -> StepOutcome:
        """The handler of the step before the predictor."""
        try:
            said = await self._judged(call, "user", [list(request_texts(call.request.body))])
        except BadRequest as error:
            return wrong_setting(error)
        if _is_blocked(call, said):
            message = f"the request was blocked by moderation: {_found(said)}"
            refusal = JobError(code=CONTENT_FILTER, message=message, field="body.messages")
            return Refuse(error=refusal, detail={MODERATION: said})
        return Continue(detail={MODERATION: said})

    async def output(self, call: StepCall) -> StepOutcome:
        """The handler of the step after it."""
        candidate = call.candidate or {}
        choices = [list(choice_texts(each)) for each in candidate.get("choices") or ()]
        try:
            said = await self._judged(call, "assistant", choices)
        except BadRequest as error:
            return wrong_setting(error)
        recorded = said if len(said.get("results", ())) <= _MOST_RECORDED else {}
        if _is_blocked(call, said):
            return Withhold(detail={MODERATION: recorded})
        whole = moderation_of(call.job.pipeline, said)
        return Continue(result={**candidate, MODERATION: whole}, detail={MODERATION: recorded})

    async def _judged(self, call: StepCall, role: Role, parts: list[list[str]]) -> dict[str, Any]:
        """The results, or the error that there are none. Raises `Unavailable` where that would let something pass."""
        model = str(call.settings.get("model"))
        plan = self._plans.get(model)
        step = plan.step(MODERATE_STEP) if plan else None
        if step is None:
            raise BadRequest(f"model: {model:.60} moderates nothing", "model")
        rule = parse_moderation(step.settings)
        results = []
        try:
            for number, texts in enumerate(parts):
                asker = f"{call.job.id} {role} {call.job.attempt} {number}"
                results.append(await self._moderator.result(rule, role, texts, asker=asker))
        except NoVerdict as error:
            return side_error(error.code, error.message)
        except Unavailable as error:
            if call.settings.get("mode") == "block":
                raise
            return side_error(error.code, error.message)
        return side_result(model, results)


def _is_blocked(call: StepCall, said: Mapping[str, Any]) -> bool:
    if call.settings.get("mode") != "block":
        return False
    return said["type"] == "error" or any(each["flagged"] for each in said["results"])


def _found(said: Mapping[str, Any]) -> str:
    return ", ".join(sorted(set(_categories(said)))) or "it could not be judged"


def _categories(said: Mapping[str, Any]) -> Iterator[str]:
    for result in said.get("results", ()):
        yield from (name for name, is_found in result["categories"].items() if is_found)

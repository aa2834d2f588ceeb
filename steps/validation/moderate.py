"""The step `moderate`: answers `/v1/moderations` by rules and a guard model.

A plan that has it makes its model one that the steps serve alone (`pipelines.yaml`). The rules are those of the other
steps (`eventing.job.moderation.rules`); the `category` of each says where it counts in the answer. With `inline: true`
requests of other models may ask for it too (`steps.validation.inline`).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventing.errors import BadRequest, InvalidJob, TorporError
from eventing.job.call.moderation import MODERATION_URL
from eventing.job.job import JobError
from eventing.job.moderation.categories import moderation_result
from eventing.job.moderation.inline import INLINE
from eventing.job.moderation.policy import RULES
from eventing.job.moderation.rules import Rules, parse_rules
from steps.handler import Answer, Refuse, StepCall, StepOutcome, wrong_setting
from steps.validation.guard import judge
from steps.validation.guard_forms import SETTING as GUARD
from steps.validation.guard_forms import GuardSettings, Role, parse_guard
from steps.validation.model_client import ModelClient


@dataclass(frozen=True, slots=True, kw_only=True)
class ModerationRule:
    """What is looked for."""

    rules: Rules
    guard: GuardSettings | None

    @property
    def judged(self) -> frozenset[str]:
        """The categories that are looked for."""
        named = {rule.category for rule in self.rules.rules}
        return frozenset(named.union(self.guard.judged if self.guard else ()))


def parse_moderation(settings: Mapping[str, Any]) -> ModerationRule:
    """The rule in a step's settings. Raises `BadRequest` naming the field."""
    for name in settings.keys() - {RULES, GUARD, INLINE}:
        raise BadRequest(f"{name} is not supported", name)
    if not isinstance(settings.get(INLINE, False), bool):
        raise BadRequest("inline must be true or false", INLINE)
    rule = ModerationRule(
        rules=parse_rules(settings.get(RULES)), guard=parse_guard(settings.get(GUARD))
    )
    if not rule.rules.rules and rule.guard is None:
        raise BadRequest("rules must be a list with at least one rule, or guard a model", RULES)
    return rule


class NoVerdict(TorporError):
    """The guard gave an answer that is none."""

    code = "no_verdict"


class Moderator:
    """Judges texts. The client belongs to the caller."""

    def __init__(self, guards: ModelClient) -> None:
        self._guards = guards

    async def result(
        self, rule: ModerationRule, role: Role, texts: Sequence[str], *, asker: str
    ) -> dict[str, Any]:
        """One result for all texts. Raises `Unavailable` while the guard does not answer, `NoVerdict`, and
        `BadRequest` where it can not be asked.
        """
        # In a thread: a long text made to be slow takes seconds, and the process has other runs.
        found = await asyncio.to_thread(rule.rules.categories, texts)
        if rule.guard is not None:
            said = await judge(self._guards, rule.guard, role, "\n\n".join(texts), asker=asker)
            if not said.is_clear:
                raise NoVerdict("the guard model gave no verdict")
            found |= set(said.categories)
        return moderation_result(dict.fromkeys(found, 1.0), rule.judged)


class Moderate:
    """The handler: a result for each text, or one for all parts of an input. The moderator belongs to the caller."""

    def __init__(self, moderator: Moderator) -> None:
        self._moderator = moderator

    async def __call__(self, call: StepCall) -> StepOutcome:
        """Raises `Unavailable` while the guard does not answer."""
        try:
            inputs = judged_inputs(call.request.url, call.request.body)
        except InvalidJob as error:
            return Refuse(error=JobError(code=error.code, message=error.message, field=error.field))
        try:
            rule = parse_moderation(call.settings)
            results = [
                await self._moderator.result(rule, "user", texts, asker=f"{call.job.id} {number}")
                for number, texts in enumerate(inputs)
            ]
        except BadRequest as error:
            return wrong_setting(error)
        except NoVerdict as error:
            return Refuse(error=JobError(code=error.code, message=error.message))
        flagged = sum(each["flagged"] for each in results)
        result = {"model": call.request.model, "results": results}
        return Answer(result=result, detail={"texts": len(inputs), "flagged": flagged})


def judged_inputs(url: str, body: Mapping[str, Any]) -> list[list[str]]:
    """The texts of each result. Raises `InvalidJob` naming the field."""
    if url != MODERATION_URL:
        raise InvalidJob("this model judges texts, and answers no prompts", "body.model")
    given = body.get("input")
    if isinstance(given, str):
        return [[given]]
    if not isinstance(given, Sequence) or not given:
        raise InvalidJob("input must be a text, texts or parts", "body.input")
    if all(isinstance(each, str) for each in given):
        return [[each] for each in given]
    texts = []
    for place, part in enumerate(given):
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            where = f"body.input[{place}]"
            raise InvalidJob(f"{where}: this model judges texts, and no images", where)
        texts.append(part["text"])
    return [texts]

"""The step `moderate`: answers `/v1/moderations` by rules and a guard model.

A plan that has it makes its model one that the steps serve alone (`pipelines.yaml`). The rules are those of the other
steps (`eventing.job.moderation.rules`); the `category` of each says where it counts in the answer.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventing.errors import BadRequest, InvalidJob
from eventing.job.call_fields import MODERATION_URL
from eventing.job.job import JobError
from eventing.job.moderation.categories import moderation_result
from eventing.job.moderation.policy import RULES
from eventing.job.moderation.rules import Rules, parse_rules
from steps.handler import Answer, Refuse, StepCall, StepOutcome, wrong_setting
from steps.validation.guard import GuardClient
from steps.validation.guard_forms import SETTING as GUARD
from steps.validation.guard_forms import GuardSettings, parse_guard


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
    for name in settings.keys() - {RULES, GUARD}:
        raise BadRequest(f"{name} is not supported", name)
    rule = ModerationRule(
        rules=parse_rules(settings.get(RULES)), guard=parse_guard(settings.get(GUARD))
    )
    if not rule.rules.rules and rule.guard is None:
        raise BadRequest("rules must be a list with at least one rule, or guard a model", RULES)
    return rule


class Moderate:
    """The handler: a result for each text, or one for all parts of an input. The client belongs to the caller."""

    def __init__(self, guards: GuardClient) -> None:
        self._guards = guards

    async def __call__(self, call: StepCall) -> StepOutcome:
        """Raises `Unavailable` while the guard does not answer."""
        try:
            rule = parse_moderation(call.settings)
        except BadRequest as error:
            return wrong_setting(error)
        try:
            inputs = judged_inputs(call.request.url, call.request.body)
        except InvalidJob as error:
            return Refuse(error=JobError(code=error.code, message=error.message, field=error.field))
        results = []
        for number, texts in enumerate(inputs):
            # In a thread: a long text made to be slow takes seconds, and the process has other runs.
            found = await asyncio.to_thread(_found, rule.rules, texts)
            if rule.guard is not None:
                try:
                    said = await self._guards.judge(
                        rule.guard, "user", "\n\n".join(texts), asker=f"{call.job.id} {number}"
                    )
                except BadRequest as error:
                    return wrong_setting(error)
                if not said.is_clear:
                    message = f"the guard model gave no verdict on input {number}"
                    return Refuse(error=JobError(code="no_verdict", message=message))
                found |= set(said.categories)
            results.append(moderation_result(dict.fromkeys(found, 1.0), rule.judged))
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


def _found(rules: Rules, texts: Sequence[str]) -> set[str]:
    return {each.category for text in texts for each in rules.findings(text)}

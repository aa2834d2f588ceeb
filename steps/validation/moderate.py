"""The step `moderate`: answers `/v1/moderations` by rules, without a predictor.

A plan that has it makes its model one that the steps serve alone (`pipelines.yaml`). The rules are those of the other
steps (`eventing.job.moderation.rules`); the `category` of each says where it counts in the answer.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from eventing.errors import BadRequest, InvalidJob
from eventing.job.call_fields import MODERATION_URL
from eventing.job.job import JobError
from eventing.job.moderation.categories import moderation_result
from eventing.job.moderation.policy import RULES
from eventing.job.moderation.rules import Rules, parse_rules
from steps.handler import Answer, Refuse, StepCall, StepOutcome, wrong_setting


def parse_moderation(settings: Mapping[str, Any]) -> Rules:
    """The rules in a step's settings. Raises `BadRequest` naming the field."""
    for name in settings.keys() - {RULES}:
        raise BadRequest(f"{name} is not supported", name)
    rules = parse_rules(settings.get(RULES))
    if not rules.rules:
        raise BadRequest("rules must be a list with at least one rule", RULES)
    return rules


async def moderate(call: StepCall) -> StepOutcome:
    """The handler: a result for each text, or one for all parts of an input."""
    try:
        rules = parse_moderation(call.settings)
    except BadRequest as error:
        return wrong_setting(error)
    try:
        inputs = judged_inputs(call.request.url, call.request.body)
    except InvalidJob as error:
        return Refuse(error=JobError(code=error.code, message=error.message, field=error.field))
    # In a thread: a long text made to be slow takes seconds, and the process has other runs.
    results = await asyncio.to_thread(lambda: [_result(rules, texts) for texts in inputs])
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


def _result(rules: Rules, texts: Sequence[str]) -> dict[str, Any]:
    found = {each.category: 1.0 for text in texts for each in rules.findings(text)}
    return moderation_result(found, {rule.category for rule in rules.rules})

"""Whether an answer has something in it that the setting `rules` names.

Called by the step `validate-output`. With `hold: window` the predictor has judged the same rules while it made the
answer; the whole is judged here whatever it did.
"""

import asyncio

from eventing.job.moderation.policy import RULES
from eventing.job.moderation.rules import parse_rules
from steps.handler import StepCall
from steps.validation.texts import TOKENS, texts_in
from steps.validation.verdict import Verdict, not_allowed

SETTING = RULES


async def check_rules(call: StepCall) -> Verdict:
    """What the rules find in the answer's texts, reasoning and tool calls included."""
    rules = parse_rules(call.settings.get(SETTING))
    if not rules.rules:
        return Verdict()
    choices = (call.candidate or {}).get("choices")
    names = sorted(await asyncio.to_thread(rules.categories, texts_in(choices, without=TOKENS)))
    if not names:
        return Verdict(detail={"flagged": False})
    detail = {"flagged": True, "categories": names}
    return Verdict(problems=not_allowed(names), may_repair=False, detail=detail)

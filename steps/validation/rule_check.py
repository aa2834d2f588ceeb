"""Whether an answer has something in it that the setting `rules` names.

Called by the step `validate-output`. With `hold: window` the predictor has judged the same rules while it made the
answer; the whole is judged here whatever it did.
"""

import asyncio
from typing import Any, Final

from eventing.job.moderation.policy import RULES
from eventing.job.moderation.rules import Rules, parse_rules
from eventing.job.moderation.window import decoded
from steps.handler import StepCall
from steps.validation.moderate_input import texts_in
from steps.validation.verdict import Verdict

SETTING = RULES
TOKENS: Final = ("logprobs", "prompt_logprobs")
"""Tokens one by one: «ass» and «isting» are one word, which the text has whole."""


async def check_rules(call: StepCall) -> Verdict:
    """What the rules find in the answer's texts, reasoning and tool calls included."""
    rules = parse_rules(call.settings.get(SETTING))
    if not rules.rules:
        return Verdict()
    choices = (call.candidate or {}).get("choices")
    names = await asyncio.to_thread(_categories, rules, choices)
    if not names:
        return Verdict(detail={"flagged": False})
    problems = tuple(f"It has something in it that is not allowed: {name}." for name in names)
    return Verdict(
        problems=problems, may_repair=False, detail={"flagged": True, "categories": names}
    )


def _categories(rules: Rules, choices: Any) -> list[str]:
    """The categories of all that is found, each once; it may take seconds."""
    texts = [each for text in texts_in(choices, without=TOKENS) for each in (text, decoded(text))]
    return sorted({found.category for text in texts for found in rules.findings(text)})

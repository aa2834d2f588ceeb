"""Which rules of a plan judge an answer while it is made. Pure."""

from typing import Final

from eventing.job.moderation.rules import Rules, parse_rules
from eventing.job.plan import Hold, Plan

RULES: Final = "rules"
"""The setting of a step that holds its rules."""


def window_rules(plan: Plan | None) -> Rules | None:
    """The rules of the steps that hold an answer back by windows; None where none does. Raises `BadRequest` for rules
    that are wrong: an answer that is to be judged is not made without them.
    """
    held = [step for step in plan.steps if step.hold is Hold.WINDOW] if plan else []
    if not held:
        return None
    return Rules(
        tuple(rule for step in held for rule in parse_rules(step.settings.get(RULES)).rules)
    )

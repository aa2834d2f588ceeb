"""The step `moderate-input`: judges a request by rules and a guard model before a predictor is woken for it.

Settings: `rules` (`eventing.job.moderation.rules`), `guard` (`steps.validation.guard_forms`) and `mode`: `block`
(default: the job fails with `content_filter`, and waits while the guard is away) or `score` (it goes on, and its view
says what was found). What was found is in no log and no view, only its category.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventing.errors import BadRequest, Unavailable
from eventing.job.job import CONTENT_FILTER, JobError
from eventing.job.moderation.policy import RULES
from eventing.job.moderation.rules import Rules, parse_rules
from steps.handler import Continue, Refuse, StepCall, StepOutcome, wrong_setting
from steps.validation.guard import judge
from steps.validation.guard_forms import SETTING as GUARD
from steps.validation.guard_forms import GuardSettings, parse_guard
from steps.validation.model_client import ModelClient
from steps.validation.texts import JUDGED, request_texts, texts_in

NAME: Final = "moderate-input"
_MODES: Final = ("block", "score")
"""Fields of a body that a model reads; a caller writes the descriptions of tools and schemas, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRule:
    """What is looked for in requests, and what becomes of one in which it is found."""

    rules: Rules
    guard: GuardSettings | None
    is_blocked: bool


def parse_input_rule(settings: Mapping[str, Any]) -> InputRule:
    """The rule in a step's settings. Raises `BadRequest` naming the field."""
    for name in settings.keys() - {"mode", RULES, GUARD}:
        raise BadRequest(f"{name} is not supported", name)
    mode, rules = settings.get("mode", "block"), parse_rules(settings.get(RULES))
    if mode not in _MODES:
        raise BadRequest(f"mode must be {' or '.join(_MODES)}", "mode")
    guard = parse_guard(settings.get(GUARD))
    if not rules.rules and guard is None:
        raise BadRequest("rules must be a list with at least one rule, or guard a model", RULES)
    return InputRule(rules=rules, guard=guard, is_blocked=mode == "block")


class ModerateInput:
    """The handler. The client belongs to the caller."""

    def __init__(self, guards: ModelClient) -> None:
        self._guards = guards

    async def __call__(self, call: StepCall) -> StepOutcome:
        try:
            rule = parse_input_rule(call.settings)
        except BadRequest as error:
            return wrong_setting(error)
        body = call.request.body
        # In a thread: a long text made to be slow takes seconds, and the process has other runs.
        categories, field = await asyncio.to_thread(_found, rule.rules, body)
        if rule.is_blocked and _has_token_ids(body.get("prompt")):
            message = "a prompt of token ids can not be judged by this service's rules; send text"
            return Refuse(error=JobError(code=CONTENT_FILTER, message=message, field="body.prompt"))
        unjudged = ""
        if not (categories and rule.is_blocked):
            try:
                said, unjudged = await self._asked(rule, call)
            except BadRequest as error:
                return wrong_setting(error)
            categories |= set(said)
        detail: dict[str, Any] = {"flagged": bool(categories)}
        detail |= {"categories": sorted(categories)} if categories else {}
        detail |= {"guard": unjudged} if unjudged else {}
        if rule.is_blocked and (categories or unjudged):
            return Refuse(error=_refusal(categories, field), detail=detail)
        return Continue(detail=detail)

    async def _asked(self, rule: InputRule, call: StepCall) -> tuple[tuple[str, ...], str]:
        """The categories that the guard names, and why it gave no verdict, empty where it did. Raises `Unavailable`
        where that would let something pass, and `BadRequest` without an endpoint.
        """
        if rule.guard is None:
            return (), ""
        text, asker = "\n\n".join(request_texts(call.request.body)), f"{call.job.id} {NAME}"
        try:
            said = await judge(self._guards, rule.guard, "user", text, asker=asker)
        except Unavailable:
            if rule.is_blocked:
                raise
            return (), "unavailable"
        return said.categories, "" if said.is_clear else "no_verdict"


def _refusal(categories: Collection[str], field: str) -> JobError:
    names = ", ".join(sorted(categories)) or "it could not be judged"
    message = f"the request was blocked by this service's rules: {names}"
    return JobError(code=CONTENT_FILTER, message=message, field=field or "body")


def _has_token_ids(prompt: Any) -> bool:
    items = prompt if isinstance(prompt, list) else []
    return any(isinstance(each, int) or (isinstance(each, list) and each) for each in items)


def _found(rules: Rules, body: Mapping[str, Any]) -> tuple[set[str], str]:
    """The categories of what is found in the body, and the first field of it in which something is."""
    found: set[str] = set()
    first = ""
    for name in JUDGED:
        here = rules.categories(texts_in(body.get(name)))
        first = first or (f"body.{name}" if here else "")
        found |= here
    return found, first

"""The step `moderate-input`: judges a request by rules before anything is woken for it.

Settings: `rules` (`eventing.job.moderation.rules`) and `mode`: `block` (default: the job fails with `content_filter`)
or `score` (it goes on, and its view says what was found). What the rules found is in no log and no view, only its
category.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eventing.errors import BadRequest
from eventing.job.job import CONTENT_FILTER, JobError
from eventing.job.moderation.policy import RULES
from eventing.job.moderation.rules import Finding, Rules, parse_rules
from eventing.job.moderation.window import decoded
from steps.handler import Continue, Refuse, StepCall, StepOutcome, wrong_setting

NAME: Final = "moderate-input"
_MEDIA: Final = ("url", "image_url", "file_data")
_MODES: Final = ("block", "score")
_JUDGED: Final = (
    *("messages", "prompt", "input", "instructions", "suffix"),
    *("tools", "functions", "response_format", "text"),
)
"""Fields of a body that a model reads; a caller writes the descriptions of tools and schemas, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRule:
    """What is looked for in requests, and what becomes of one in which it is found."""

    rules: Rules
    is_blocked: bool


def parse_input_rule(settings: Mapping[str, Any]) -> InputRule:
    """The rule in a step's settings. Raises `BadRequest` naming the field."""
    for name in settings.keys() - {"mode", RULES}:
        raise BadRequest(f"{name} is not supported", name)
    mode, rules = settings.get("mode", "block"), parse_rules(settings.get(RULES))
    if mode not in _MODES:
        raise BadRequest(f"mode must be {' or '.join(_MODES)}", "mode")
    if not rules.rules:
        raise BadRequest("rules must be a list with at least one rule", RULES)
    return InputRule(rules=rules, is_blocked=mode == "block")


async def moderate_input(call: StepCall) -> StepOutcome:
    """The handler."""
    try:
        rule = parse_input_rule(call.settings)
    except BadRequest as error:
        return wrong_setting(error)
    # In a thread: a long text made to be slow takes seconds, and the process has other runs.
    found, field = await asyncio.to_thread(_findings, rule.rules, call.request.body)
    if rule.is_blocked and _has_token_ids(call.request.body.get("prompt")):
        message = "a prompt of token ids can not be judged by this service's rules; send text"
        return Refuse(error=JobError(code=CONTENT_FILTER, message=message, field="body.prompt"))
    detail = {"flagged": bool(found), **_categories(found)}
    if found and rule.is_blocked:
        names = ", ".join(detail["categories"])
        message = f"the request was blocked by this service's rules: {names}"
        return Refuse(
            error=JobError(code=CONTENT_FILTER, message=message, field=field), detail=detail
        )
    return Continue(detail=detail)


def _has_token_ids(prompt: Any) -> bool:
    items = prompt if isinstance(prompt, list) else []
    return any(isinstance(each, int) or (isinstance(each, list) and each) for each in items)


def _categories(found: Sequence[Finding]) -> dict[str, Any]:
    return {"categories": sorted({each.category for each in found})} if found else {}


def _findings(rules: Rules, body: Mapping[str, Any]) -> tuple[list[Finding], str]:
    """What is found in the body's texts, and the first field of it in which something is."""
    found: list[Finding] = []
    first = ""
    for name in _JUDGED:
        for text in texts_in(body.get(name)):
            here = rules.findings(text) or rules.findings(decoded(text))
            first = first or (f"body.{name}" if here else "")
            found += here
    return found, first


def texts_in(value: Any, *, without: Collection[str] = ()) -> Iterator[str]:
    """Every text in a value, as deep as it is; of objects the values only, and not of the members `without`. Data
    URLs of media are left out; anywhere else a text is judged whatever it begins with.
    """
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, Mapping):
            waiting += [
                part
                for name, part in each.items()
                if name not in without and not (name in _MEDIA and _is_data_url(part))
            ]
        elif isinstance(each, Sequence) and not isinstance(each, bytes):
            waiting += each


def _is_data_url(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("data:")

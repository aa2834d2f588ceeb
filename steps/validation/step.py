"""The step `validate-output`: judges the answer, has it repaired within bounds, and withholds what must not be shown.

Settings: `mode`, `score` (default: the answer is shown with the verdict) or `block` (what stays wrong is withheld);
`repairs`, how often the model is asked again with what was wrong; `cascade`, the models that are asked next, in turn,
as often as `cascade_per_day` allows the tenant; and one setting for each check that has some (`format`, `rules`,
`guard`). `hold: window` shows an answer while it is made, as far as its `rules` have judged it in the predictor;
without it a `block` holds back the whole. It is repeatable: how often was asked is in the job's history.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from eventing.clock import Clock
from eventing.errors import BadRequest
from eventing.job.job import REJECTED, Job, JobRequest
from eventing.job.moderation.rules import parse_rules
from steps.handler import Again, Continue, StepCall, StepOutcome, Withhold, wrong_setting
from steps.validation.cascade import (
    PER_DAY,
    CascadeLimit,
    most_per_day,
    parse_cascade,
    parse_per_day,
    usable,
)
from steps.validation.format_rules import SETTING as FORMAT
from steps.validation.format_rules import answer_texts, check_format, parse_format
from steps.validation.guard_check import GuardCheck
from steps.validation.guard_forms import SETTING as GUARD
from steps.validation.guard_forms import parse_guard
from steps.validation.model_client import ModelClient
from steps.validation.rule_check import SETTING as RULES
from steps.validation.rule_check import check_rules
from steps.validation.verdict import Check, Verdict

NAME: Final = "validate-output"
MOST_REPAIRS: Final = 3
_MODES: Final = ("score", "block")
_FIELDS: Final = ("mode", "hold", "repairs", "cascade", PER_DAY)
_ASK: Final = "The answer above is not valid."
_REQUEST: Final = "Answer again: only the corrected answer, without any remark."
_PROMPT_MARK: Final = "\n\nAn answer to this was:\n"
_QUOTED: Final = 20_000
"""Characters of a wrong answer that its repair is shown."""


def checks(guards: ModelClient) -> dict[str, Check]:
    """The checks, each under the name of its setting. The guard comes last: it is the dearest."""
    return {FORMAT: check_format, RULES: check_rules, GUARD: GuardCheck(guards)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRule:
    """What becomes of an answer that is not valid."""

    mode: str = "score"
    repairs: int = 0
    cascade: tuple[str, ...] = ()
    cascade_per_day: Mapping[str, int] = field(default_factory=dict)  #: by tenant


def parse_rule(
    settings: Mapping[str, Any], names: Collection[str] = (FORMAT, RULES, GUARD)
) -> ValidationRule:
    """The rule in a step's settings. Raises `BadRequest` naming the field."""
    for name in settings.keys() - {*_FIELDS, *names}:
        raise BadRequest(f"{name} is not supported", name)
    parse_guard(settings.get(GUARD))
    parse_format(settings.get(FORMAT))
    parse_rules(settings.get(RULES))
    mode, repairs = settings.get("mode", "score"), settings.get("repairs", 0)
    if mode not in _MODES:
        raise BadRequest(f"mode must be {' or '.join(_MODES)}", "mode")
    if (
        isinstance(repairs, bool)
        or not isinstance(repairs, int)
        or not 0 <= repairs <= MOST_REPAIRS
    ):
        raise BadRequest(f"repairs must be a whole number up to {MOST_REPAIRS}", "repairs")
    tiers, numbers = (
        parse_cascade(settings.get("cascade", ())),
        parse_per_day(settings.get(PER_DAY)),
    )
    _check_hold(settings, mode)
    return ValidationRule(mode=mode, repairs=repairs, cascade=tiers, cascade_per_day=numbers)


def _check_hold(settings: Mapping[str, Any], mode: str) -> None:
    """By windows an answer is shown while it is made: only rules can judge it so, and only to block."""
    hold = settings.get("hold")
    if hold is None:
        return
    if hold not in ("window", "whole"):
        raise BadRequest("hold must be window or whole", "hold")
    if hold == "whole":
        return
    if settings.get("repairs") or settings.get("cascade"):
        raise BadRequest("hold must be whole where an answer may be made again", "hold")
    if mode != "block" or not settings.get(RULES):
        raise BadRequest("hold: window is of mode block with rules", "hold")
    for name in settings.keys() - {*_FIELDS, RULES}:
        raise BadRequest(f"hold must be whole where {name} judges the answer", "hold")


class ValidateOutput:
    """The handler."""

    def __init__(self, checks: Mapping[str, Check], clock: Clock, limit: CascadeLimit) -> None:
        self._checks = checks
        self._clock = clock
        self._limit = limit

    async def __call__(self, call: StepCall) -> StepOutcome:
        try:
            rule = parse_rule(call.settings, self._checks)
            verdicts = await self._verdicts(call)
        except BadRequest as error:
            return wrong_setting(error)
        wrong = {name: each for name, each in verdicts.items() if each.problems}
        detail: dict[str, Any] = {"valid": not wrong, **_tries(call)}
        detail |= {name: dict(each.detail) for name, each in verdicts.items() if each.detail}
        if not wrong:
            return Continue(detail=detail)
        detail["failed"] = sorted(wrong)
        if all(each.may_repair for each in wrong.values()) and self._has_time(call):
            problems = [text for each in wrong.values() for text in each.problems]
            again = _next_try(rule, call, problems)
            if again is not None and await self._is_within_limit(rule, call, again):
                return replace(again, detail=detail)
            if again is not None:
                detail["cascade"] = "used up for today"
        if rule.mode == "block":
            return Withhold(detail=detail)
        return Continue(detail=detail)

    async def _is_within_limit(self, rule: ValidationRule, call: StepCall, again: Again) -> bool:
        """False when the tenant has had its number of answers by better models today."""
        most = most_per_day(rule.cascade_per_day, call.job.tenant)
        if again.model is None or most is None:
            return True
        return await self._limit.take(call.job, rejected(call.job), most)

    async def _verdicts(self, call: StepCall) -> dict[str, Verdict]:
        """What each check says; those after one whose answer must not be shown are not asked."""
        verdicts: dict[str, Verdict] = {}
        for name, check in self._checks.items():
            verdicts[name] = verdict = await check(call)
            if verdict.problems and not verdict.may_repair:
                break
        return verdicts

    def _has_time(self, call: StepCall) -> bool:
        """True when another answer that takes as long as the last one comes before the deadline."""
        if not call.deadline_ms or not call.job.history:
            return True
        last = call.job.history[-1]
        return self._clock.wall_ms() + last.ended_ms - last.started_ms < call.deadline_ms


def _tries(call: StepCall) -> dict[str, Any]:
    """How often was asked, and which model answered if that is another than was asked for."""
    count = rejected(call.job)
    if not count:
        return {}
    told: dict[str, Any] = {"asked_again": count}
    asked, answered = call.job.request.model, call.request.model
    if answered in call.settings.get("cascade", ()):
        reason = f"{count} answers were not valid" if count > 1 else "an answer was not valid"
        told |= {"asked": asked, "answered": answered, "reason": reason}
    return told


def rejected(job: Job) -> int:
    """How many answers of the job were thrown away."""
    return sum(each.outcome == REJECTED for each in job.history)


def _next_try(rule: ValidationRule, call: StepCall, problems: list[str]) -> Again | None:
    """The same model with what was wrong, as often as allowed; then one model after another. None when all were
    asked.
    """
    count = rejected(call.job)
    if count < rule.repairs:
        return Again(request=repair_request(call, problems))
    tier, models = count - rule.repairs, usable(rule.cascade, call.job)
    if tier < len(models):
        return Again(request=repair_request(call, problems), model=models[tier])
    return None


def repair_request(call: StepCall, problems: list[str]) -> JobRequest:
    """The request with the wrong answer and what is wrong with it, in place of an earlier one."""
    texts = answer_texts(call.candidate or {})
    wrong, said = texts[0][:_QUOTED] if texts else "", "\n".join(f"- {each}" for each in problems)
    asks = f"{_ASK} What is wrong:\n{said}\n{_REQUEST}"
    body = dict(call.request.body)
    if isinstance(messages := body.get("messages"), list):
        body["messages"] = [
            *_without_repair(messages),
            {"role": "assistant", "content": wrong},
            {"role": "user", "content": asks},
        ]
    elif isinstance(prompt := body.get("prompt"), str):
        first = prompt.partition(_PROMPT_MARK)[0]
        body["prompt"] = f"{first}{_PROMPT_MARK}{wrong}\n\n{asks}\n"
    return replace(call.request, body=body)


def _without_repair(messages: list[Any]) -> list[Any]:
    last = messages[-1] if messages else None
    content = last.get("content") if isinstance(last, Mapping) else None
    is_repair = isinstance(content, str) and content.startswith(f"{_ASK} What is wrong:")
    return messages[:-2] if is_repair else messages

"""The step `ground`: says how far an answer stands in the passages that it was given, and may withhold it.

Settings: `mode`, `annotate` (default: the answer is shown with the verdict) or `block` (an answer that
cites a passage which there is not is withheld, and one below `min_score`); `min_score`, 0 to 1 (default 0: the score
withholds nothing, since it is low for a right answer in other words too); `checker`, a model that is asked as well, and
whose «unsupported» withholds an answer in `block`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eventing.errors import BadRequest, Unavailable
from eventing.job.moderation.claim import Claim
from eventing.job.passage import last_user, text_of, without_links
from eventing.job.plan import GROUND_STEP, Plan
from steps.grounding.checker import SETTING as CHECKER
from steps.grounding.checker import Checked, CheckerSettings, check
from steps.grounding.support import Span, Support, support
from steps.handler import Continue, Skip, StepCall, StepOutcome, Withhold, wrong_setting
from steps.validation.format_rules import answer_texts
from steps.validation.model_client import ModelClient, parse_model

NAME: Final = GROUND_STEP
_MODES: Final = ("annotate", "block")
_FIELDS: Final = ("mode", "min_score", "hold", CHECKER)
_RETRIEVE: Final = "retrieve"
_MOST_SPANS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingRule:
    """What becomes of an answer that its passages do not support."""

    mode: str = "annotate"
    min_score: float = 0.0
    checker: CheckerSettings | None = None


def parse_rule(settings: Mapping[str, Any]) -> GroundingRule:
    """The rule in a step's settings. Raises `BadRequest` naming the field."""
    for name in settings.keys() - set(_FIELDS):
        raise BadRequest(f"{name} is not supported", name)
    mode, least = settings.get("mode", "annotate"), settings.get("min_score", 0.0)
    if mode not in _MODES:
        raise BadRequest(f"mode must be {' or '.join(_MODES)}", "mode")
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1:
        raise BadRequest("min_score must be a number from 0 to 1", "min_score")
    if settings.get("hold", "whole") != "whole":
        raise BadRequest("hold must be whole: the verdict is of the whole answer", "hold")
    checker = parse_model(CheckerSettings, settings.get(CHECKER))
    return GroundingRule(mode=mode, min_score=float(least), checker=checker)


class Ground:
    """The handler; the client of its checker belongs to the caller. The verdict stands in
    `pipeline[].detail.grounding`, and in the answer; of several choices it is the worst one's.
    """

    def __init__(self, client: ModelClient) -> None:
        self._client = client

    async def __call__(self, call: StepCall) -> StepOutcome:
        try:
            rule = parse_rule(call.settings)
            return await self._judged(call, rule)
        except BadRequest as error:
            return wrong_setting(error)

    async def _judged(self, call: StepCall, rule: GroundingRule) -> StepOutcome:
        if not call.passages:
            return Skip(reason="no passages")
        hosts = _link_hosts(call.job.plan)
        # Judged is what a client sees, so that the spans are places in that.
        texts = [without_links(each, hosts) for each in answer_texts(call.candidate or {}) if each]
        if not texts:
            return Skip(reason="the answer has no text")
        found = [support(text, [each.text for each in call.passages]) for text in texts]
        judged = [each.score for each in found if each.score is not None]
        citations_ok = all(each.citations_ok for each in found)
        if not judged and citations_ok and rule.checker is None:
            return Skip(reason="no word of the answer can be compared")
        score = min(judged, default=1.0)
        verdict = _verdict(score, found, citations_ok=citations_ok)
        said, is_refused = await self._checker_says(call, rule, texts)
        detail = {"grounding": verdict | said}
        if rule.mode == "block" and (score < rule.min_score or not citations_ok or is_refused):
            return Withhold(detail=detail)
        return Continue(detail=detail)

    async def _checker_says(
        self, call: StepCall, rule: GroundingRule, texts: Sequence[str]
    ) -> tuple[dict[str, Any], bool]:
        """What the checker says of each choice as callers are shown it, and whether that is no clear «supported». Where
        the step blocks, a checker that is away raises `Unavailable`: nothing unchecked is let through.
        """
        if rule.checker is None:
            return {}, False
        passages, question = tuple(each.text for each in call.passages), _question(call)
        checked: list[Checked] = []
        try:
            for number, text in enumerate(texts):
                claim = Claim(question=question, answer=text, passages=passages)
                asker = f"{call.job.id} {CHECKER} {call.job.attempt} {number}"
                checked.append(await check(self._client, rule.checker, claim, asker=asker))
        except Unavailable:
            if rule.mode == "block":
                raise
            return {CHECKER: {"model": rule.checker.model, "verdict": "unavailable"}}, True
        verdicts = {each.verdict for each in checked}
        order = ("unsupported", "unclear", "supported")
        worst = next(each for each in order if each in verdicts)
        spans = _spans([each.unsupported for each in checked])
        shown = {"model": rule.checker.model, "verdict": worst, "unsupported": spans}
        return {CHECKER: shown}, worst != "supported"


def _verdict(score: float, found: Sequence[Support], *, citations_ok: bool) -> dict[str, Any]:
    """As callers are shown it."""
    return {
        "score": round(score, 3),
        "unsupported": _spans([each.unsupported for each in found]),
        "citations_ok": citations_ok,
    }


def _spans(choices: Sequence[Sequence[Span]]) -> list[dict[str, int]]:
    """Places in the answer; with several choices each says in which one."""
    spans = [
        {"start": span.start, "end": span.end} | ({"choice": index} if len(choices) > 1 else {})
        for index, each in enumerate(choices)
        for span in each
    ]
    return spans[:_MOST_SPANS]


def _question(call: StepCall) -> str:
    """The last user message, as its author wrote it."""
    messages = call.job.request.body.get("messages")
    place = last_user(messages) if isinstance(messages, list) else None
    return text_of(messages[place]) if isinstance(messages, list) and place is not None else ""


def _link_hosts(plan: Plan | None) -> list[str]:
    """Hosts that links of the answer may lead to, as the views have them."""
    step = plan.step(_RETRIEVE) if plan else None
    hosts = step.settings.get("allowed_hosts", ()) if step else ()
    return [str(host).lower() for host in hosts]

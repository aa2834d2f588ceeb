"""The step `ground`: says how far an answer stands in the passages that it was given, and may withhold it.

Settings: `mode`, `annotate` (default: the answer is shown with the verdict) or `block` (an answer that
cites a passage which there is not is withheld, and one below `min_score`); `min_score`, 0 to 1 (default 0: the score
withholds nothing, since it is low for a right answer in other words too).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eventing.errors import BadRequest
from eventing.job.passage import without_links
from eventing.job.plan import Plan
from steps.grounding.support import Support, support
from steps.handler import Continue, Skip, StepCall, StepOutcome, Withhold, wrong_setting
from steps.validation.format_rules import answer_texts

NAME: Final = "ground"
_MODES: Final = ("annotate", "block")
_FIELDS: Final = ("mode", "min_score", "hold")
_RETRIEVE: Final = "retrieve"
_MOST_SPANS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingRule:
    """What becomes of an answer that its passages do not support."""

    mode: str = "annotate"
    min_score: float = 0.0


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
    return GroundingRule(mode=mode, min_score=float(least))


async def ground(call: StepCall) -> StepOutcome:
    """The verdict stands in `pipeline[].detail.grounding`; of several choices it is the worst one's."""
    try:
        rule = parse_rule(call.settings)
    except BadRequest as error:
        return wrong_setting(error)
    if not call.passages:
        return Skip(reason="no passages")
    hosts = _link_hosts(call.job.plan)
    texts = [each for each in answer_texts(call.candidate or {}) if each]
    if not texts:
        return Skip(reason="the answer has no text")
    passages = [each.text for each in call.passages]
    # Judged is what a client sees, so that the spans are places in that.
    found = [support(without_links(text, hosts), passages) for text in texts]
    judged = [each.score for each in found if each.score is not None]
    citations_ok = all(each.citations_ok for each in found)
    if not judged and citations_ok:
        return Skip(reason="no word of the answer can be compared")
    score = min(judged, default=1.0)
    detail = {"grounding": _verdict(score, found, citations_ok=citations_ok)}
    if rule.mode == "block" and (score < rule.min_score or not citations_ok):
        return Withhold(detail=detail)
    return Continue(detail=detail)


def _verdict(score: float, found: Sequence[Support], *, citations_ok: bool) -> dict[str, Any]:
    """As callers are shown it: a span of an answer with several choices says which one."""
    spans = [
        {"start": span.start, "end": span.end} | ({"choice": index} if len(found) > 1 else {})
        for index, each in enumerate(found)
        for span in each.unsupported
    ]
    return {
        "score": round(score, 3),
        "unsupported": spans[:_MOST_SPANS],
        "citations_ok": citations_ok,
    }


def _link_hosts(plan: Plan | None) -> list[str]:
    """Hosts that links of the answer may lead to, as the views have them."""
    step = plan.step(_RETRIEVE) if plan else None
    hosts = step.settings.get("allowed_hosts", ()) if step else ()
    return [str(host).lower() for host in hosts]

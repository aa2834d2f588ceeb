"""Which of several models answers a request: the cheapest one, unless something asks for more. Pure.

Called by `steps.route.step`. The rule counts words and looks for marks. A router that was trained on answers recovers a
little more (`bench/routing.py`), but needs answers of both models that were judged; the rule needs nothing and
can say why in words.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from eventing.errors import BadRequest
from eventing.job.job import JobRequest

_LOW_EFFORT: Final = ("none", "minimal", "low")
_HIGH_EFFORT: Final = ("high", "xhigh", "max")
_CODE: Final = re.compile(
    r"```|\b(def|class|return|import|function|SELECT|public static|#include)\b.*[({:;]|</\w+>|=>|\w+\(\)"
)
_MATHS: Final = re.compile(
    r"\$[^$]+\$|\\(frac|sum|int|sqrt|begin)\b|\d\s*[+*^=<>]\s*\d|\d\s+[-/]\s+\d|\b(prove|integral|derivative|equation)\b",
    re.IGNORECASE,
)
_SETTINGS: Final = frozenset(
    {"tiers", "words", "answer_tokens", "tools", "formats", "marks", "holdout"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A model, and the tenants that may be sent to it; all for none."""

    model: str
    tenants: Collection[str] = ()

    def takes(self, tenant: str) -> bool:
        return not self.tenants or tenant in self.tenants


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRule:
    """Tiers from the cheapest to the best, and what asks for one tier more each. A limit of 0 asks for nothing."""

    tiers: Sequence[Tier] = field(default=())
    words: int = 150  #: of the prompt
    answer_tokens: int = 1000  #: that the caller allows
    tools: bool = True
    formats: bool = True  #: an answer that has to fit a schema
    marks: bool = (
        False  #: of code and of mathematics: on the benchmark they lose more than they find
    )
    holdout: float = (
        0.02  #: share of jobs that always go to the best tier, so that regret can be measured
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TierChoice:
    """The model, and why: in words, and by the rules' names."""

    model: str
    reason: str
    rules: tuple[str, ...]
    instead_of: str = ""  #: the model that the rule would have chosen for a job of the holdout


def choose(
    rule: TierRule,
    request: JobRequest,
    *,
    tenant: str,
    job_id: str,
    may_use: Callable[[str], bool] = lambda _: True,
) -> TierChoice | None:
    """The model for this request; None when its tenant or its key may be sent to no tier. The same job always gets the
    same one.
    """
    tiers = [tier.model for tier in rule.tiers if tier.takes(tenant) and may_use(tier.model)]
    if not tiers:
        return None
    effort = request.body.get("reasoning_effort")
    if effort in _LOW_EFFORT:
        return TierChoice(model=tiers[0], reason=f"reasoning effort is {effort}", rules=("effort",))
    if effort in _HIGH_EFFORT:
        return TierChoice(
            model=tiers[-1], reason=f"reasoning effort is {effort}", rules=("effort",)
        )
    reasons = dict(_reasons(rule, request.body))
    tier = tiers[min(len(reasons), len(tiers) - 1)]
    if _share(job_id) < rule.holdout:
        return TierChoice(model=tiers[-1], reason="holdout", rules=("holdout",), instead_of=tier)
    if not reasons:
        return TierChoice(model=tier, reason="short and plain", rules=("plain",))
    return TierChoice(model=tier, reason=", ".join(reasons.values()), rules=tuple(reasons))


def _reasons(rule: TierRule, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What asks for a better tier: the rule's name, and the words."""
    text = prompt_text(body)
    words = len(text.split())
    if rule.words and words > rule.words:
        yield "words", f"{words} words"
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    if rule.answer_tokens and isinstance(asked, int) and asked > rule.answer_tokens:
        yield "answer_tokens", f"up to {asked} tokens asked for"
    if rule.tools and body.get("tools"):
        yield "tools", "tools"
    form = body.get("response_format")
    if rule.formats and isinstance(form, Mapping) and form.get("type") == "json_schema":
        yield "format", "a schema"
    if rule.marks and _CODE.search(text):
        yield "code", "code"
    elif rule.marks and _MATHS.search(text):
        yield "maths", "mathematics"


def prompt_text(body: Mapping[str, Any]) -> str:
    """What the user wrote: all user messages of a chat, or the prompt."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return prompt
    found: list[str] = []
    for message in body.get("messages") or ():
        if message.get("role") != "user":
            continue
        content = message.get("content")
        parts = [{"text": content}] if isinstance(content, str) else content or ()
        found += [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return "\n".join(found)


def _share(job_id: str) -> float:
    """Where the job stands between 0 and 1."""
    return int(hashlib.sha256(job_id.encode()).hexdigest()[:8], 16) / 2**32


def parse_rule(settings: Mapping[str, Any]) -> TierRule:
    """The rule in a step's settings. Raises `BadRequest` naming the field."""
    for name in settings.keys() - _SETTINGS:
        raise BadRequest(f"{name} is not supported", name)
    tiers = settings.get("tiers")
    if not isinstance(tiers, Sequence) or isinstance(tiers, str) or not tiers:
        raise BadRequest("must be a list of models, the cheapest first", "tiers")
    given: dict[str, Any] = {"tiers": tuple(_tier(i, tier) for i, tier in enumerate(tiers))}
    for name in ("words", "answer_tokens"):
        given[name] = _number(settings, name, most=10**9)
    for name in ("tools", "formats", "marks"):
        given[name] = settings.get(name, getattr(_DEFAULT, name))
        if not isinstance(given[name], bool):
            raise BadRequest("must be true or false", name)
    given["holdout"] = _number(settings, "holdout", most=1)
    return TierRule(**given)


def _tier(place: int, tier: Any) -> Tier:
    where = f"tiers[{place}]"
    if isinstance(tier, str) and tier:
        return Tier(model=tier)
    if not isinstance(tier, Mapping) or not isinstance(tier.get("model"), str):
        raise BadRequest("must be the name of a model, or an object with model", where)
    tenants = tier.get("tenants", [])
    if not isinstance(tenants, list) or not all(isinstance(each, str) for each in tenants):
        raise BadRequest("must be a list of tenants", f"{where}.tenants")
    return Tier(model=tier["model"], tenants=frozenset(tenants))


def _number(settings: Mapping[str, Any], name: str, *, most: float) -> Any:
    default = getattr(_DEFAULT, name)
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise BadRequest(f"must be a number between 0 and {most}", name)
    return value


_DEFAULT: Final = TierRule()

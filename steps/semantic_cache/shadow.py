"""Whether a rule may serve a tenant: it must have agreed with fresh answers often enough. Pure.

Called by the step, which serves or only compares, and by the writer, which compares. Until a rule has passed it is in
shadow: the job runs as if nothing had been found, and its answer is compared with the one that would have been given.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

from eventing.job.job import JobId
from steps.semantic_cache.agreement import Verdict

AGREED: Final = "agreed"
DIFFERED: Final = "differed"
COMPLAINED: Final = "complained"
_Z: Final = 1.96
_SIMILAR_ANSWERS: Final = 0.85
_NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How often a rule may be wrong, after how many comparisons, and the share of hits that go on being compared."""

    error_rate: float = 0.02
    least: int = 200
    holdout: float = 0.05


def count_field(model: str, rule: Verdict | str, result: str) -> str:
    """The name of a count in a tenant's hash."""
    return f"{rule} {result} {model}"


def may_serve(counts: Mapping[str, int], model: str, rule: Verdict, budget: Budget) -> bool:
    """True when the upper end of the 95 % interval of the rule's error rate is within the budget. A complaint is an
    error that no comparison found.
    """
    agreed, differed, complained = (
        counts.get(count_field(model, rule, result), 0) for result in (AGREED, DIFFERED, COMPLAINED)
    )
    errors = differed + complained
    compared = agreed + errors
    return compared >= budget.least and upper_bound(errors, compared) <= budget.error_rate


def upper_bound(errors: int, compared: int) -> float:
    """The upper end of Wilson's interval of a rate, at 95 %."""
    if compared == 0:
        return 1.0
    rate, z2 = errors / compared, _Z * _Z
    middle = rate + z2 / (2 * compared)
    spread = _Z * sqrt(rate * (1 - rate) / compared + z2 / (4 * compared * compared))
    return (middle + spread) / (1 + z2 / compared)


def is_held_out(job_id: JobId, share: float) -> bool:
    """True for a fixed share of jobs, whose hits are compared instead of served; the same in every run of a step."""
    digest = hashlib.sha256(f"holdout {job_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def answer_text(result: Mapping[str, Any] | None) -> str:
    """The text of a chat's only answer; empty for anything else, as a tool call."""
    choices = (result or {}).get("choices") or []
    message = choices[0].get("message") if len(choices) == 1 else None
    if not isinstance(message, Mapping) or message.get("tool_calls"):
        return ""
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def answers_agree(kept: str, fresh: str, similarity: float) -> bool:
    """True when two answers say the same as far as code can tell: equal, or near with the same numbers."""
    if kept == fresh:
        return True
    same_numbers = set(_NUMBER.findall(kept)) == set(_NUMBER.findall(fresh))
    return same_numbers and similarity >= _SIMILAR_ANSWERS

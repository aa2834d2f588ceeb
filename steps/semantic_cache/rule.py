"""The rule of the semantic cache: which found answer may be given. Pure.

Called by the step with the candidates that the vectors found. Each kind of agreement is a rule of its own, so that a
tenant's shadow phase can pass one and not another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from steps.semantic_cache.agreement import Verdict, agree
from steps.semantic_cache.canonical import canonical
from steps.semantic_cache.typo import IsWord

SIMILARITY: Final = 0.8
"""Least cosine for two questions that differ in harmless words only."""
NEAR_SIMILARITY: Final = 0.95
"""Least cosine where articles or a plural differ as well."""
VERIFIED_SIMILARITY: Final = 0.75
"""Least cosine at which a verifier model is asked."""

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Candidate(Generic[C]):
    """A question that was answered, and its cosine to the one that is asked."""

    text: str
    similarity: float
    of: C


@dataclass(frozen=True, slots=True)
class Match(Generic[C]):
    """The best candidate, and the rule that found it. `Verdict.OPEN` means that a verifier must agree first."""

    candidate: Candidate[C]
    rule: Verdict


def best_match(
    text: str, candidates: Iterable[Candidate[C]], is_word: IsWord, *, has_verifier: bool = False
) -> Match[C] | None:
    """The candidate whose answer may be given: the strictest rule first, then the nearest."""
    asked = canonical(text)
    found = []
    for candidate in candidates:
        rule = agree(asked, canonical(candidate.text), is_word).verdict
        if candidate.similarity >= _LEAST[rule] and (rule is not Verdict.OPEN or has_verifier):
            found.append(Match(candidate, rule))
    return min(found, key=lambda m: (_ORDER[m.rule], -m.candidate.similarity), default=None)


_ORDER: Final = {rule: place for place, rule in enumerate(Verdict)}
_LEAST: Final = {
    Verdict.SAME: SIMILARITY,
    Verdict.NEAR: NEAR_SIMILARITY,
    Verdict.OPEN: VERIFIED_SIMILARITY,
    Verdict.DIFFERENT: 2.0,
}

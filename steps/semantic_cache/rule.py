"""The rule of the semantic cache: which found answer may be given. Pure.

Called by the step with the candidates that the vectors found. Each kind of agreement is a rule of its own, so that a
tenant's shadow phase can pass one and not another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from steps.semantic_cache.agreement import Verdict, agree
from steps.semantic_cache.canonical import canonical
from steps.semantic_cache.spelling import IsWord

C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """The least cosine for each rule: two questions that differ in harmless words, in articles or a plural too, and
    in other words, for which a verifier model is asked.
    """

    same: float = 0.8
    near: float = 0.95
    verified: float = 0.75

    def of(self, rule: Verdict) -> float:
        """The least cosine at which the rule serves; above 1 for one that never does."""
        match rule:
            case Verdict.SAME:
                return self.same
            case Verdict.NEAR:
                return self.near
            case Verdict.OPEN:
                return self.verified
            case Verdict.DIFFERENT:
                return 2.0


_LEAST: Final = Least()


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
    text: str,
    candidates: Iterable[Candidate[C]],
    is_word: IsWord,
    *,
    least: Least = _LEAST,
    has_verifier: bool = False,
) -> Match[C] | None:
    """The candidate whose answer may be given: the strictest rule first, then the nearest."""
    asked = canonical(text)
    found = []
    for candidate in candidates:
        rule = agree(asked, canonical(candidate.text), is_word).verdict
        if candidate.similarity >= least.of(rule) and (rule is not Verdict.OPEN or has_verifier):
            found.append(Match(candidate, rule))
    return min(found, key=lambda m: (_ORDER[m.rule], -m.candidate.similarity), default=None)


_ORDER: Final = {rule: place for place, rule in enumerate(Verdict)}

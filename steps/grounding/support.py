"""How much of an answer stands in its passages: words, numbers, neighbours and citations. Pure, no model.

Called by the step `ground`. It compares words and does not understand them: an answer that says the same in other
words scores low, and a false one made of the passages' own words scores high (`bench/grounding.py` has the figures).
Linear in the lengths of its texts, of which every one may be hostile.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_UNSPACED: Final = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Scripts without blanks between words (Thai, Kana, Han), and Hangul: each character counts as a word."""
_WORD: Final = re.compile(
    rf"\d+(?:[.,]\d+)*|[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W\d_])+(?:['\u2019][^\W\d_]+)*"
)
_CITATION: Final = re.compile(r"[\[\u3010](\d{1,3})(?:\u2020[^\]\u3011\n]{0,100})?[\]\u3011]")
_FUNCTION_WORD_TEXT: Final = """
    a an the of in on at to for from by with and or but nor so as is are was were be been being am do does did have
    has had this that these those it its he she his her they their them him who whom whose which what when where why
    how there here than then also both all any each other such same only own very can could will would shall should
    may might must into over under about between through during before after above below out up down off again
    further once i you we me my your our us if because while until more most some few
"""
_FUNCTION_WORDS: Final = frozenset(_FUNCTION_WORD_TEXT.split())
_UNJUDGED: Final = frozenset({"yes", "no", "not"})
"""They answer a question that passages do not repeat: nothing is said of them, for or against."""
_NUMBER_TEXT: Final = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS: Final = {word: str(number) for number, word in enumerate(_NUMBER_TEXT.split())}
_ENDINGS: Final = ("ies", "ing", "ed", "es", "s", "ly", "e", "y")
_SHORTEST_STEM: Final = 4


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` (excluded) of an answer."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """What was found. `score` is the share of content words and of neighbouring words that stand in the passages, 0 to
    1, or None for an answer without a content word; `unsupported` are the words that stand in none.
    """

    score: float | None
    unsupported: tuple[Span, ...]
    citations_ok: bool


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    start: int
    end: int

    @property
    def is_content(self) -> bool:
        return self.text not in _FUNCTION_WORDS and self.text not in _UNJUDGED


def support(answer: str, passages: Sequence[str]) -> Support:
    """How the passages support the answer."""
    known: set[str] = set()
    neighbours: set[tuple[str, str]] = set()
    for passage in passages:
        texts = [each.text for each in _words(passage)]
        known.update(texts)
        neighbours.update(pairwise(texts))
    # A citation is no word of the answer; blanks of its length keep the places of the others.
    words = _words(_CITATION.sub(lambda match: " " * len(match[0]), answer))
    content = [each for each in words if each.is_content]
    missing = [each for each in content if each.text not in known]
    pairs = [(one.text, other.text) for one, other in pairwise(words)]
    broken = sum(pair not in neighbours for pair in pairs)
    judged = len(content) + len(pairs)
    return Support(
        score=1 - (len(missing) + broken) / judged if content else None,
        unsupported=_spans(content, {each.start for each in missing}),
        citations_ok=all(
            1 <= int(match[1]) <= len(passages) for match in _CITATION.finditer(answer)
        ),
    )


def _words(text: str) -> list[_Word]:
    return [_Word(_normal(match[0]), *match.span()) for match in _WORD.finditer(text)]


def _normal(word: str) -> str:
    """The word without case, accents and the endings of English inflection; a number as its digits."""
    if word[0].isdigit():
        return word.replace(",", "")
    decomposed = unicodedata.normalize("NFKD", word.lower())
    plain = "".join(c for c in decomposed if not unicodedata.combining(c))
    plain = plain.replace("\u2019", "'").removesuffix("'s")
    if plain in _NUMBERS:
        return _NUMBERS[plain]
    for ending in _ENDINGS:
        if plain.endswith(ending) and len(plain) - len(ending) >= _SHORTEST_STEM:
            return plain.removesuffix(ending)
    return plain


def _spans(content: Sequence[_Word], missing: set[int]) -> tuple[Span, ...]:
    """Content words that stand in no passage; neighbours among them are one span."""
    found: list[Span] = []
    was_missing = False
    for word in content:
        is_missing = word.start in missing
        if is_missing and was_missing:
            found[-1] = Span(found[-1].start, word.end)
        elif is_missing:
            found.append(Span(word.start, word.end))
        was_missing = is_missing
    return tuple(found)

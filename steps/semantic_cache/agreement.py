"""Whether the answer to one question may be given to another. Pure; the vocabulary is an argument.

Called by the step for the best candidates that the vectors find, and by the shadow phase. The distance of two vectors
says that two texts are about one subject, not that they ask the same («turn on» and «turn off» are at 0.95), so it
only proposes.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from steps.semantic_cache import polarity, words
from steps.semantic_cache.canonical import Canonical, Token
from steps.semantic_cache.spelling import IsWord, is_typo

_MOST_TYPOS: Final = 2


class Verdict(StrEnum):
    """What code can tell of two questions."""

    SAME = "same"  #: they differ in nothing but harmless words: the answer may be given
    NEAR = "near"  #: articles differ as well: the answer may be given if the vectors are very near
    OPEN = "open"  #: other words, but no number, name, sign or negation differs: a verifier model may decide
    DIFFERENT = "different"  #: something that changes the answer differs


@dataclass(frozen=True, slots=True)
class Agreement:
    """A verdict, and what differs, in one word."""

    verdict: Verdict
    reason: str = ""


def agree(a: Canonical, b: Canonical, is_word: IsWord) -> Agreement:
    """Compare two questions."""
    if a.strict or b.strict:
        return _strict(a, b)
    if not a.tokens or not b.tokens:
        return Agreement(Verdict.DIFFERENT, "empty")
    if len(a.tokens) == len(b.tokens) and _is_same(a, b, is_word):
        if _other_name(a, b):
            return Agreement(Verdict.DIFFERENT, "names")
        return Agreement(Verdict.SAME)
    if _light(a) == _light(b) and _are_questions(a, b):
        return Agreement(Verdict.NEAR, "articles")
    if reason := polarity.difference(a, b):
        return Agreement(Verdict.DIFFERENT, reason)
    return Agreement(Verdict.OPEN, "words")


def _strict(a: Canonical, b: Canonical) -> Agreement:
    same = a.strict and b.strict and a.texts == b.texts
    return Agreement(Verdict.SAME) if same else Agreement(Verdict.DIFFERENT, "text")


def _is_same(a: Canonical, b: Canonical, is_word: IsWord) -> bool:
    typos = 0
    for one, other in zip(a.tokens, b.tokens, strict=True):
        if one.text == other.text:
            continue
        if (
            _may_be_name(one, a)
            or _may_be_name(other, b)
            or not is_typo(one.text, other.text, is_word)
        ):
            return False
        typos += 1
    return typos <= _MOST_TYPOS


def _are_questions(a: Canonical, b: Canonical) -> bool:
    """Questions long enough that an article does not make another («what is the time», «what is time»). A command
    is none: «book a room», «book rooms».
    """
    return all(
        len(of.tokens) >= _SHORTEST_LIGHT and of.texts[0] in words.QUESTION_STARTS for of in (a, b)
    )


def _light(of: Canonical) -> tuple[str, ...]:
    """The form without articles."""
    after = (*of.texts[1:], "")
    return tuple(
        text
        for text, follows in zip(of.texts, after, strict=True)
        if text not in ("a", "the") or follows in _COUNTED
    )


_SHORTEST_LIGHT: Final = 6
_COUNTED: Final = words.word_set("few little lot lots number bit couple")
"""«A few» are some, «few» are not many; «a number» are several."""


def _may_be_name(token: Token, of: Canonical) -> bool:
    return of.casing.tells_names and token.raw[:1].isupper() and not token.is_first


def _other_name(a: Canonical, b: Canonical) -> bool:
    """True when a word is a name in one text and none in the other."""
    for one, other in zip(a.tokens, b.tokens, strict=True):
        if one.raw.casefold() != other.raw.casefold() or one.raw == other.raw or one.text == "i":
            continue
        if one.is_first or other.is_first or _shape(one.raw) == _shape(other.raw):
            continue
        if a.casing.tells_names and b.casing.tells_names:
            return True
        # A text without capitals, or of capitals alone, does not tell «us» from «US».
        told = one if a.casing.tells_names else other if b.casing.tells_names else None
        is_plain = told is not None and _shape(told.raw) == "lower"
        if one.text in words.CASE_HOMOGRAPHS and not is_plain:
            return True
    return False


def _shape(raw: str) -> str:
    if raw.islower() or raw.isdigit():
        return "lower"
    if raw.isupper() and len(raw) > 1:
        return "upper"
    return "title" if raw[1:].islower() or len(raw) == 1 else "mixed"

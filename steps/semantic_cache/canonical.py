"""One question in a form in which harmless differences are gone: equal forms ask the same.

Called by `agreement`. Pure. The form is a sequence, so that a changed order of words («from A to B», «is A better than
B») is another question; every word, number, sign and unit that `words` does not name stays in it.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from steps.semantic_cache import words

LONGEST: Final = 600
"""Characters; a longer text must be equal byte for byte."""

_TOKEN: Final = re.compile(
    r"(?P<ordinal>\d+(?:st|nd|rd|th)\b)"
    r"|(?P<number>\.?\d+(?:[.,:/]\d+)*)"
    r"|(?P<word>[^\W\d_]+(?:'[^\W\d_]+)*)"
    r"|(?P<mark>[.,;!?…]+)"
    r"|(?P<sign>\S)",
    re.IGNORECASE,
)
_MADE_STRICT: Final = re.compile(r"""["`«»“”„‚‹›{}\[\]<>=\\|^~_]|\w:(?!\d)|:\s|://|\n\s*\S|\t""")
_TYPOGRAPHY: Final = str.maketrans(
    {"’": "'", "‘": "'", "‐": "-", "‑": "-", "–": "-", "—": "-", "\u00a0": " "}
)
_THOUSANDS: Final = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?\Z")
_INITIALS: Final = re.compile(r"\b(?:[^\W\d_]\.){2,}")
MARK: Final = ","
_MARKS: Final = frozenset((MARK, "?"))
_LETTER: Final = re.compile(r"(?<!\S)[b-hj-z](?:'?s)?(?![^\s?!,])", re.IGNORECASE)
"""A letter that stands alone: «how many r's are in ...»."""


class Token(NamedTuple):
    """A piece of the form, and how the caller wrote it (empty for a piece that code put in)."""

    text: str
    raw: str = ""
    is_first: bool = False  #: opens a sentence, so that its capital means nothing


class Casing(StrEnum):
    """How a text uses capitals."""

    LOWER = "lower"
    UPPER = "upper"
    TITLE = "title"
    SENTENCE = "sentence"

    @property
    def tells_names(self) -> bool:
        return self is Casing.SENTENCE


@dataclass(frozen=True, slots=True)
class Canonical:
    """The form of one text. A `strict` one is the text itself."""

    tokens: tuple[Token, ...]
    casing: Casing
    strict: bool

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(token.text for token in self.tokens)


def canonical(text: str) -> Canonical:
    """The form of a text."""
    text = unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY).strip()
    text = _INITIALS.sub(lambda found: found.group().replace(".", ""), text)
    casing = _casing(text)
    tokens = _tokens(text)
    if _is_strict(text, tokens):
        return Canonical((Token(text, text),), casing, strict=True)
    for change in (_without_hesitations, _without_courtesy, _contracted, _without_courtesy, _marks,
                   _numbers, _question, _spelled, _fronted, _framed, _cost):  # fmt: skip
        tokens = change(tokens)
    return Canonical(tuple(tokens), casing, strict=False)


def _tokens(text: str) -> list[Token]:
    found: list[Token] = []
    is_first = True
    for match in _TOKEN.finditer(text):
        raw, kind = match.group(), match.lastgroup
        if kind == "mark":
            found.append(Token("?" if "?" in raw else MARK, raw))
            is_first = is_first or raw[0] not in ",;"
            continue
        found.append(Token(_folded(raw, found), raw, is_first))
        is_first = False
    return found


def _folded(raw: str, before: Sequence[Token]) -> str:
    """In small letters, but for a unit after a number: MB is not Mb."""
    is_unit = bool(before) and before[-1].text[-1:].isdigit() and raw.isalpha() and len(raw) <= 3
    if is_unit and raw.lower() not in ("am", "pm") and not raw.islower():
        return raw
    return raw.casefold()


def _is_strict(text: str, tokens: Sequence[Token]) -> bool:
    if len(text) > LONGEST or _MADE_STRICT.search(text) or _LETTER.search(text):
        return True
    # A language of which no list here knows the words.
    if any(c.isalpha() and not unicodedata.name(c, "").startswith("LATIN") for c in text):
        return True
    return not words.STRICT_WORDS.isdisjoint(token.text for token in tokens)


def _casing(text: str) -> Casing:
    found = [w for w in re.findall(r"[^\W\d_]+", text) if w not in ("I", "i")]
    long = [w for w in found if len(w) > 3]
    if not found or all(w.islower() for w in found):
        return Casing.LOWER
    if all(w.isupper() for w in found):
        return Casing.UPPER
    if len(long) > 1 and len(found) > 3 and all(w[0].isupper() for w in found):
        return Casing.TITLE
    return Casing.SENTENCE


def _without_hesitations(tokens: list[Token]) -> list[Token]:
    found: list[Token] = []
    for place, token in enumerate(tokens):
        before = found[-1].text if found else ""
        is_pause = token.text in words.HESITATIONS and (token.raw.islower() or not found)
        is_last = place == len(tokens) - 1
        if is_pause and not is_last and (not found or before in words.BEFORE_HESITATION):
            continue
        found.append(token)
    return found


def _without_courtesy(tokens: list[Token]) -> list[Token]:
    """Without «hi», «please» and «thanks» at both ends, with the marks beside them."""
    found = list(tokens)
    while cut := _opening([token.text for token in found]):
        found = found[cut:]
    if found:
        found[0] = found[0]._replace(is_first=True)
    while cut := _closing([token.text for token in found]):
        asks = [token for token in found[-cut:] if token.text == "?"][:1]
        found = [*found[:-cut], *asks]
    return found


def _opening(texts: Sequence[str]) -> int:
    """How many tokens at the start are courtesy. A greeting is one before a mark or a question only: «hi-fi»."""
    if texts and texts[0] in _MARKS:
        return 1
    for length in (3, 2, 1):
        head, after = tuple(texts[:length]), "".join(texts[length : length + 1])
        if head == ("please",) and after:
            return length
        if head in words.OPENINGS and after in _MARKS | words.QUESTION_STARTS:
            return length
        if head in words.GREETINGS_WITH_MARK and after in _MARKS and after:
            return length
    return 0


def _closing(texts: Sequence[str]) -> int:
    """How many tokens at the end are courtesy, marks included; 0 for none."""
    end = len(texts)
    while end and texts[end - 1] in _MARKS:
        end -= 1
    for length in range(min(5, end - 1), 0, -1):
        tail, before = tuple(texts[end - length : end]), texts[end - length - 1]
        if tail in words.CLOSINGS or (before in _MARKS and tail in words.CLOSINGS_WITH_MARK):
            return len(texts) - end + length
    return 0


def _contracted(tokens: list[Token]) -> list[Token]:
    found: list[Token] = []
    for token in tokens:
        if whole := words.CONTRACTIONS.get((token.text,)):
            found += [Token(text, "", token.is_first and not n) for n, text in enumerate(whole)]
        elif token.text.endswith("'s"):
            found += [token._replace(text=token.text[:-2], raw=token.raw[:-2]), Token("'s")]
        else:
            found.append(token)
    return found


def _marks(tokens: list[Token]) -> list[Token]:
    """Without the marks at the end, but for the question mark of what is no question by its first word («cancel my
    order?»). `_fronted` takes away those inside.
    """
    end = len(tokens)
    while end and tokens[end - 1].text in _MARKS:
        end -= 1
    asks = any(token.text == "?" for token in tokens[end:])
    found = [t._replace(text=MARK) if t.text == "?" else t for t in tokens[:end]]
    if asks and found and found[0].text not in words.QUESTION_STARTS:
        found.append(Token("?"))
    return found


def _numbers(tokens: list[Token]) -> list[Token]:
    found: list[Token] = []
    for token in tokens:
        text = words.NUMBERS.get(token.text, token.text)
        if _THOUSANDS.match(text):
            text = text.replace(",", "")
        tens = found and token.text in words.NUMBERS and found[-1].text in _TENS
        if tens and len(text) == 1 and text != "0" and not found[-1].raw.isdigit():
            text = str(int(found.pop().text) + int(text))
        found.append(token._replace(text=text))
    return found


_TENS: Final = frozenset(str(n) for n in range(20, 100, 10))


def _question(tokens: list[Token]) -> list[Token]:
    """Without «can you tell me» before a question word."""
    for length in (6, 5, 4, 3, 2):
        head = tuple(token.text for token in tokens[:length])
        after = tokens[length].text if len(tokens) > length else ""
        if head in words.QUESTION_OPENINGS and after in words.QUESTION_WORDS:
            rest = tokens[length:]
            if rest[-1].text == "?":
                rest = rest[:-1]
            return [rest[0]._replace(is_first=True), *rest[1:]]
    return tokens


def _spelled(tokens: list[Token]) -> list[Token]:
    named = _replaced(tokens, words.NAMES, may_be_name=True)
    return _replaced(_replaced(named, words.SPELLINGS), words.SYNONYMS)


def _fronted(tokens: list[Token]) -> list[Token]:
    """«In the app, how do I ...» as «how do I ... in the app»."""
    texts = [token.text for token in tokens]
    if texts.count(MARK) == 1 and texts[0] in words.FRONTED:
        cut = texts.index(MARK)
        rest = tokens[cut + 1 :]
        if rest and rest[0].text in words.QUESTION_STARTS:
            front = [tokens[0]._replace(is_first=True), *tokens[1:cut]]
            end = [t for t in rest if t.text != "?"]
            return [*end, *front]
    return tokens  # «let us eat, grandma»


def _framed(tokens: list[Token]) -> list[Token]:
    for length in (7, 6, 5, 4, 3, 2):
        head = tuple(token.text for token in tokens[:length])
        frame = words.FRAMES.get(head)
        after = tokens[length].text if len(tokens) > length else ""
        if frame and after and after not in words.KEEPS_HOW:
            return [*(Token(text, "", True) for text in frame), *tokens[length:]]
    return tokens


def _cost(tokens: list[Token]) -> list[Token]:
    """«How much does X cost» and «what is the price of X» as one."""
    texts = [token.text for token in tokens]
    cost = [Token(text, "", True) for text in ("what", "does")]
    if texts[:3] == ["how", "much", "does"] and texts[-1] == "cost" and texts[3] != "it":
        return [*cost, *tokens[3:]]
    is_price = texts[:3] == ["what", "is", "the"] and texts[3:5] in (
        ["price", "of"],
        ["cost", "of"],
    )
    if is_price and len(texts) > 5:
        return [*cost, *tokens[5:], Token("cost")]
    return tokens


def _replaced(tokens: list[Token], table: words.Table, *, may_be_name: bool = False) -> list[Token]:
    """Each phrase of the table by the one that it reads as, the longest first; not in what may be a name («the
    Harbour Centre»).
    """
    longest = max(map(len, table))
    found: list[Token] = []
    place = 0
    while place < len(tokens):
        for length in range(min(longest, len(tokens) - place), 0, -1):
            piece = tokens[place : place + length]
            new = table.get(tuple(token.text for token in piece))
            if new is not None and (may_be_name or not any(map(_is_capital, piece))):
                found += _as_one(piece, new)
                place += length
                break
        else:
            found.append(tokens[place])
            place += 1
    return found


def _is_capital(token: Token) -> bool:
    return token.raw[:1].isupper() and not token.is_first and len(token.raw) > 1


def _as_one(piece: Sequence[Token], new: Iterable[str]) -> list[Token]:
    raw = piece[0].raw if len(piece) == 1 else ""
    return [Token(text, raw, piece[0].is_first and not n) for n, text in enumerate(new)]

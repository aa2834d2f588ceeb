"""The rules of a step's settings, and what they find in a text. Pure.

    rules:
      - words: [hummingbird, "project x"]   # whole words, in any case
        category: secrets                    # what a finding is called; the kind of the rule without it
      - regex: "(?i)internal use only"       # RE2: linear time, no look-around, no back references
        longest: 200                         # characters of the longest beginning that does not match yet
      - personal_data: [card, iban, email, phone, us_ssn, dni, cpf, nir, secret]

RE2 (PyPI `google-re2`) takes a time that grows with the text only, whatever a pattern or a text looks like. What is
judged is `plain_letters` of a text, so that a word is not hidden by wide letters or by characters that are not seen.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from unicodedata import category, normalize

import re2

from eventing.errors import BadRequest
from eventing.job.moderation.personal_data import DETECTORS

_UNSEEN: Final = frozenset({"Cf", "Cc", "Mn"})
_KINDS: Final = ("words", "regex", "personal_data")
_FIELDS: Final = frozenset({*_KINDS, "category", "longest"})
_MOST_RULES: Final = 200
_MOST_KEPT: Final = 32
"""Settings whose rules stay compiled: each answer is judged by some, and RE2 keeps 128 patterns only."""
_MOST_WORDS: Final = 5000
_LONGEST_WORD: Final = 200
_DEFAULT_LONGEST: Final = 200
_MOST_LONGEST: Final = 4000
_MEMORY_BYTES: Final = 16 * 1024 * 1024
"""Of one compiled pattern; RE2 refuses one that needs more."""


def plain_letters(text: str) -> str:
    """The text with wide and styled letters as plain ones, and without characters that are not seen. A text in pieces
    gives the same, piece by piece.
    """
    if text.isascii():
        return text
    return "".join(
        normalize("NFKC", each) for each in text if category(each) not in _UNSEEN or each in "\n\t"
    )


def decoded(text: str) -> str:
    """A text without the escapes of JSON, which the arguments of a tool call have; as it is where it is no JSON."""
    try:
        value = json.loads(text)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


@dataclass(frozen=True, slots=True)
class Finding:
    """A place in a text that a rule names. `kind` says which rule; the text itself is in no finding, so that it can
    be logged and shown.
    """

    category: str
    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern, and which parts of a match count. `longest` is in characters: of the longest beginning of a match
    that is none yet. More text makes a match longer, or none, only where it reaches the text's end.
    """

    category: str
    kind: str
    pattern: Any
    longest: int
    real: Callable[[str], Iterator[tuple[int, int]]]
    is_word: bool = True  #: not within a longer word
    is_beginning: bool = False  #: what follows a match belongs to it

    def findings(self, text: str) -> Iterator[Finding]:
        """Every match in the text that counts."""
        for match in self.pattern.finditer(text):
            first, last = match.span()
            for start, end in self.real(text[first:last]):
                if not self.is_word or self._is_whole(text, first + start, first + end):
                    yield Finding(self.category, self.kind, first + start, first + end)

    def _is_whole(self, text: str, start: int, end: int) -> bool:
        """True when a match is not a part of a longer word: «ass» is not found in «assisting»."""
        before, after = text[max(start - 1, 0) : start], text[end : end + 1]
        is_glued = after.isalnum() and text[end - 1].isalnum() and not self.is_beginning
        return not is_glued and not (before.isalnum() and text[start].isalnum())

    def touches_end(self, text: str) -> int | None:
        """Where a match begins that reaches the text's end, and could be longer or none at all with more of it."""
        for match in self.pattern.finditer(text):
            if match.end() == len(text) and match.start() < match.end():
                return int(match.start())
        return None


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a step."""

    rules: tuple[Rule, ...] = ()

    @property
    def longest(self) -> int:
        """The largest `longest` of any rule."""
        return max((rule.longest for rule in self.rules), default=0)

    def findings(self, text: str) -> list[Finding]:
        """Everything that is found in a whole text, in the order of rules; places are those of its plain letters."""
        plain = plain_letters(text)
        return [found for rule in self.rules for found in rule.findings(plain)]

    def categories(self, texts: Iterable[str]) -> set[str]:
        """The categories of all that is found in whole texts, also without the escapes of JSON; it may take seconds."""
        forms = (form for text in texts for form in {text, decoded(text)})
        return {found.category for form in forms for found in self.findings(form)}


def parse_rules(value: Any) -> Rules:
    """The rules of the setting `rules`; equal ones are compiled once. Raises `BadRequest` naming the rule."""
    if value is None:
        return Rules()
    try:
        return _parsed_text(json.dumps(value))
    except (TypeError, RecursionError):
        return _parsed(value)  # something that no JSON holds, which is named


@lru_cache(maxsize=_MOST_KEPT)
def _parsed_text(text: str) -> Rules:
    return _parsed(json.loads(text))


def _parsed(value: Any) -> Rules:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRequest("rules must be a list", "rules")
    if len(value) > _MOST_RULES:
        raise BadRequest(f"rules may be {_MOST_RULES}, not {len(value)}", "rules")
    return Rules(
        tuple(rule for n, each in enumerate(value) for rule in _rules(f"rules[{n}]", each))
    )


def _rules(where: str, entry: Any) -> Iterator[Rule]:
    if not isinstance(entry, Mapping):
        raise BadRequest(f"{where} must be an object", where)
    for name in entry.keys() - _FIELDS:
        raise BadRequest(f"{where}.{name} is not supported", f"{where}.{name}")
    kinds = [kind for kind in _KINDS if kind in entry]
    if len(kinds) != 1:
        raise BadRequest(f"{where} must have one of {', '.join(_KINDS)}", where)
    if "longest" in entry and kinds != ["regex"]:
        raise BadRequest(f"{where}.longest is of a regex only", f"{where}.longest")
    name = entry.get("category", "")
    if not isinstance(name, str) or len(name) > 64:
        raise BadRequest(f"{where}.category must be a text", f"{where}.category")
    match kinds[0]:
        case "words":
            yield _words(where, entry["words"], name)
        case "regex":
            yield _regex(where, entry, name)
        case _:
            yield from _personal_data(where, entry["personal_data"], name)


def _words(where: str, words: Any, named: str) -> Rule:
    field = f"{where}.words"
    if not isinstance(words, Sequence) or isinstance(words, str) or not words:
        raise BadRequest(f"{field} must be a list of words", field)
    if len(words) > _MOST_WORDS:
        raise BadRequest(f"{field} may be {_MOST_WORDS}, not {len(words)}", field)
    for word in words:
        if not isinstance(word, str) or not 0 < len(word.strip()) <= _LONGEST_WORD:
            raise BadRequest(f"{field}: {word!r:.80} is no word", field)
    # White space in a text of several words may be more than one blank, or a line's end.
    parts = [
        r"\s{1,3}".join(map(re2.escape, plain_letters(word).split()))
        for word in sorted(words, key=len)
    ]
    longest = max(len(word) + 2 * len(word.split()) for word in words)
    pattern = _compiled(field, "(?i:" + "|".join(reversed(parts)) + ")")
    return Rule(named or "words", "words", pattern, longest, _whole)


def _regex(where: str, entry: Mapping[str, Any], named: str) -> Rule:
    field = f"{where}.regex"
    pattern, longest = entry["regex"], entry.get("longest", _DEFAULT_LONGEST)
    if not isinstance(pattern, str) or not pattern:
        raise BadRequest(f"{field} must be a regular expression", field)
    if (
        isinstance(longest, bool)
        or not isinstance(longest, int)
        or not 0 < longest <= _MOST_LONGEST
    ):
        raise BadRequest(f"{where}.longest must be characters up to {_MOST_LONGEST}", where)
    compiled = _compiled(field, pattern)
    if compiled.search("") is not None:
        raise BadRequest(f"{field} matches the empty text", field)
    return Rule(named or "regex", "regex", compiled, longest, _whole, is_word=False)


def _personal_data(where: str, names: Any, named: str) -> Iterator[Rule]:
    field = f"{where}.personal_data"
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise BadRequest(f"{field} must be a list of {', '.join(DETECTORS)}", field)
    for name in names:
        detector = DETECTORS.get(name) if isinstance(name, str) else None
        if detector is None:
            raise BadRequest(f"{field}: {name!r:.40} is none of {', '.join(DETECTORS)}", field)
        yield Rule(
            named or ("secrets" if name == "secret" else "pii"),
            name,
            _compiled(field, detector.pattern),
            detector.longest,
            detector.real,
            is_beginning=detector.is_beginning,
        )


def _whole(text: str) -> Iterator[tuple[int, int]]:
    if text:
        yield 0, len(text)


def _compiled(field: str, pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY_BYTES
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        reason = error.args[0] if error.args else "it is wrong"
        words = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise BadRequest(f"{field}: {words} (RE2 has no look-around)", field) from None

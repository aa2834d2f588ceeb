"""Facts of a conversation, word for word: the sentences that hold a name, a number, a date, an id or a path. Pure.

Called by the memory step, which puts them into the prompt, and by what checks a summary. No model is asked: a fact is
a piece of what was said, so it can be neither reworded nor lost by a summary. It is made again of the items each
time, so it goes with its item.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from eventing.store.conversation.conversation import NumberedItem, item_text

_LONGEST: Final = 240
"""Characters of a fact; of a longer sentence only what is around its values is kept."""
_AROUND: Final = 80
_LONGEST_WORD: Final = 200
"""A longer word is data, not a value that was named."""
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD: Final = re.compile(r"\S+")
_DIGIT: Final = re.compile(r"\d")
_NUMBER: Final = re.compile(r"\d+(?:[.,:/\-]\d+)*")
_CAPITALS: Final = re.compile(r"\W*[A-Z][A-Z0-9_-]{2,}\W*\Z")
_QUOTED: Final = re.compile(
    r"""(?<!\w)(?:"[^"\n]{1,80}"|'[^'\n]{2,80}'(?!\w)|`[^`\n]{1,80}`|«[^»\n]{1,80}»)"""
)
_NAME: Final = re.compile(
    r"(?<=[\w,;:)] )(?!I\b)[A-Z][a-z]\w*"  # a capital that does not begin its sentence
    r"|(?i:\b(?:named|called|name is|name's)\s+\w+)"
)


@dataclass(frozen=True, slots=True)
class Fact:
    """A piece of what was said, and where. `is_value` when it holds more than names."""

    seq: int
    role: str
    text: str
    is_value: bool


def facts_of(items: Iterable[NumberedItem]) -> list[Fact]:
    """The facts in the messages of users and assistants, in order, each once."""
    found: list[Fact] = []
    seen: set[str] = set()
    for numbered in items:
        role = str(numbered.item.get("role", ""))
        if numbered.item.get("type") != "message" or role not in ("user", "assistant"):
            continue
        for text, is_value in _pieces(item_text(numbered.item)):
            if text not in seen:
                seen.add(text)
                found.append(Fact(numbered.seq, role, text, is_value))
    return found


def within(facts: Sequence[Fact], most_bytes: int) -> list[Fact]:
    """The facts that fit, in order. Two thirds are for values and a third for names, or what the other leaves; in each
    what users said goes before what was answered, and the oldest and the newest by turns.
    """
    values = _ranked([fact for fact in facts if fact.is_value])
    names = _ranked([fact for fact in facts if not fact.is_value])
    kept = _first(values, most_bytes * 2 // 3)
    for more in (names, values):
        left = most_bytes - sum(map(_size, kept))
        kept += _first([fact for fact in more if fact not in kept], left)
    chosen = set(map(id, kept))
    return [fact for fact in facts if id(fact) in chosen]


def _ranked(facts: Sequence[Fact]) -> list[Fact]:
    ranked: list[Fact] = []
    for is_users in (True, False):
        own = [fact for fact in facts if (fact.role == "user") is is_users]
        half = -(-len(own) // 2)
        by_turns = zip_longest(own[:half], reversed(own[half:]))
        ranked += [fact for pair in by_turns for fact in pair if fact is not None]
    return ranked


def _first(facts: Sequence[Fact], most_bytes: int) -> list[Fact]:
    """Those that fit, without those that do not."""
    kept: list[Fact] = []
    for fact in facts:
        if _size(fact) <= most_bytes:
            most_bytes -= _size(fact)
            kept.append(fact)
    return kept


def _size(fact: Fact) -> int:
    return len(fact.text.encode()) + 4


def numbers_in(text: str) -> frozenset[str]:
    """The numbers in a text, separators of thousands left out."""
    return frozenset(re.sub(r"(?<=\d),(?=\d{3}\b)", "", found) for found in _NUMBER.findall(text))


def _pieces(text: str) -> Iterable[tuple[str, bool]]:
    """The sentences with a value or a name, shortened to what is around these. Linear in the text, whatever it is."""
    for sentence in map(str.strip, _SENTENCE_END.split(text)):
        places = [word.span() for word in _WORD.finditer(sentence) if _is_value(word[0])]
        places += [quoted.span() for quoted in _QUOTED.finditer(sentence)]
        is_value = bool(places)
        places = places or [name.span() for name in _NAME.finditer(sentence)]
        if places and len(sentence) <= _LONGEST:
            yield sentence, is_value
        elif places:
            for start, end in _joined(places):
                yield sentence[start:end].strip(), is_value


def _is_value(word: str) -> bool:
    """Whether it holds a number, or is an address, a path, or an id in capitals."""
    if len(word) > _LONGEST_WORD:
        return False
    if _DIGIT.search(word) or "@" in word[1:-1] or "://" in word or "\\" in word:
        return True
    slashes = word.count("/")
    is_path = slashes > 1 or (slashes == 1 and (word[0] == "/" or "." in word[:-1]))
    return (is_path and len(word) > slashes) or _CAPITALS.match(word) is not None


def _joined(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The places with some text around each; those that overlap as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(places):
        wide = (max(0, start - _AROUND), end + _AROUND)
        if joined and wide[0] <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], wide[1]))
        else:
            joined.append(wide)
    return joined

"""Which words are English, and whether one word is a mistyping of another.

Called by `agreement`, with `is_word` as an argument, and by the step, which reads the vocabulary first. A pair counts
as a mistyping only if one of the two is a word and the other is none, so that two words («desert», «dessert»), two
names and two codes never do.
"""

from collections.abc import Callable
from functools import cache
from typing import Final

from steps.embedding.model_file import TOKENIZER, read_verified
from steps.handler import packages
from steps.semantic_cache.words import word_set

IsWord = Callable[[str], bool]

_SHORTEST: Final = 7
"""Letters of the right word: in shorter ones too many words are one letter apart."""
_DOUBLING: Final = ("ing", "ed", "er", "or")
"""Endings before which a letter is doubled in one word and not in another: «canning», «caning»."""


def is_typo(a: str, b: str, is_word: IsWord) -> bool:
    """True when one is a word and the other is it with two neighbouring letters exchanged, one letter left out, or
    one too many; first and last letter stay. Another letter in a place («arteritis», «arthritis») does not count.
    """
    if not (a.isalpha() and b.isalpha() and a.isascii() and b.isascii()) or is_word(a) == is_word(
        b
    ):
        return False
    right, wrong = (a, b) if is_word(a) else (b, a)
    if right.endswith(_DOUBLING):
        return False
    if len(right) < _SHORTEST or right[0] != wrong[0] or right[-1] != wrong[-1]:
        return False
    if len(right) == len(wrong):
        return _is_exchanged(right, wrong)
    short, long = sorted((right, wrong), key=len)
    return len(long) == len(short) + 1 and any(
        long[:i] + long[i + 1 :] == short for i in range(1, len(long) - 1)
    )


def _is_exchanged(a: str, b: str) -> bool:
    apart = [i for i in range(len(a)) if a[i] != b[i]]
    if len(apart) != 2 or apart[1] != apart[0] + 1:
        return False
    return a[apart[0]] == b[apart[1]] and a[apart[1]] == b[apart[0]]


_RARE: Final = word_set("""
    averse ordnance interment payee lessee proscribe ordinand forego forbear calender canvass complacent corporal
    dairy diary eminent marital cavalry statue angel quiet lightening moral personnel perspective veracity uninterested
    intestate prostrate corporeal apprise ordinal causality statins stationery
    """)
"""Words that the model does not know and that are one letter from one which it does."""


@cache
def vocabulary() -> frozenset[str]:
    """About 20,000 words in small letters. Read at the first call, in some 100 ms. Raises `NotInstalled`."""
    with packages():  # settings are judged where it is not installed
        from tokenizers import Tokenizer

    names = Tokenizer.from_str(read_verified(TOKENIZER).decode()).get_vocab()
    return _RARE | {word for word in names if word.isalpha()}


def is_word(text: str) -> bool:
    """True for a word of the vocabulary, and for the plural of one."""
    known = vocabulary()
    return text in known or (text.endswith("s") and text[:-1] in known)

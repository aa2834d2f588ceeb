"""Whether one word is a mistyping of another. Pure.

Called by `agreement` with the vocabulary of the embedding model as `is_word`. A pair counts only if one of the two is
a word and the other is none, so that two words («desert», «dessert»), two names and two codes never do.
"""

from collections.abc import Callable
from typing import Final

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

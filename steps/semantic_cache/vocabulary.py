"""The English words of the embedding model's vocabulary, to tell a mistyped word from another word."""

from functools import cache
from typing import Final

from tokenizers import Tokenizer

from steps.embedding.model_file import TOKENIZER, read_verified
from steps.semantic_cache.words import word_set

_RARE: Final = word_set("""
    averse ordnance interment payee lessee proscribe ordinand forego forbear calender canvass complacent corporal
    dairy diary eminent marital cavalry statue angel quiet lightening moral personnel perspective veracity uninterested
    intestate prostrate corporeal apprise ordinal causality statins stationery
    """)
"""Words that the model does not know and that are one letter from one which it does."""


@cache
def vocabulary() -> frozenset[str]:
    """About 20,000 words in small letters. Read at the first call, in some 100 ms. Raises `Unavailable`."""
    names = Tokenizer.from_str(read_verified(TOKENIZER).decode()).get_vocab()
    return _RARE | {word for word in names if word.isalpha()}


def is_word(text: str) -> bool:
    """True for a word of the vocabulary, and for the plural of one."""
    known = vocabulary()
    return text in known or (text.endswith("s") and text[:-1] in known)

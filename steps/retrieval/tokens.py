"""Where the tokens of a text are: word pieces of the packaged embedding model, whichever model embeds.

Called by the steps process. Loaded at the first call; a text is read whole, however long.
"""

from functools import cache
from typing import TYPE_CHECKING

from steps.embedding.model_file import TOKENIZER, read_verified
from steps.handler import packages
from steps.retrieval.chunker import Offsets

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def word_pieces(text: str) -> Offsets:
    """Where each word piece begins and ends. Raises `NotInstalled`."""
    offsets: Offsets = _tokenizer().encode(text, add_special_tokens=False).offsets
    return offsets


@cache
def _tokenizer() -> "Tokenizer":
    with packages():
        from tokenizers import Tokenizer

    made = Tokenizer.from_buffer(read_verified(TOKENIZER))
    made.no_truncation()
    made.no_padding()
    return made

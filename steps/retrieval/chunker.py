"""Cuts a text into chunks of some tokens that overlap, and says which pieces of it are embedded. Pure.

Called by `steps.retrieval.ingest`. An embedding model reads fewer tokens than a chunk has (MiniLM 256 of 800), and
what it does not read would not be found. So a text is embedded in windows that the model reads whole, each once, and
a chunk's vector is the mean of those of its windows: an overlap of half costs nothing.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from eventing.store.vector_store.record import Chunking

Offsets = Sequence[tuple[int, int]]
"""Where each token of a text begins and ends, in characters."""
Tokenizer = Callable[[str], Offsets]
WINDOW_TOKENS: Final = 250
"""Tokens of a window at most; the model adds two of its own."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A chunk: its text, and the numbers of its windows, from `first` to `last` (not included)."""

    text: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Chunks:
    """A cut text."""

    windows: tuple[str, ...]
    chunks: tuple[Cut, ...]


def cut(text: str, tokenize: Tokenizer, chunking: Chunking) -> Chunks:
    """Chunks of at most `chunking.size` tokens; none of a text without tokens."""
    offsets = [(start, end) for start, end in tokenize(text) if end > start]
    stride = chunking.size - chunking.overlap
    starts = _window_starts(len(offsets), stride)
    if not starts:
        return Chunks((), ())
    ends = [*starts[1:], len(offsets)]
    windows = tuple(_slice(text, offsets, a, b) for a, b in zip(starts, ends, strict=True))
    chunks: list[Cut] = []
    for start in range(0, len(offsets), stride):
        end = min(start + chunking.size, len(offsets))
        first, last = bisect_left(starts, start), bisect_left(starts, end)
        chunks.append(Cut(_slice(text, offsets, start, end), first, last))
        if end == len(offsets):
            break
    return Chunks(windows, tuple(chunks))


def _window_starts(tokens: int, stride: int) -> list[int]:
    """Windows of one size that begin where chunks do: a stride is cut into as few as the model can read."""
    parts = -(-stride // WINDOW_TOKENS)
    size = -(-stride // parts)
    return [
        start + at
        for start in range(0, tokens, stride)
        for at in range(0, stride, size)
        if start + at < tokens
    ]


def _slice(text: str, offsets: Offsets, first: int, last: int) -> str:
    """The text of tokens, with what stands between them."""
    return text[offsets[first][0] : offsets[last - 1][1]]

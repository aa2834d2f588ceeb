"""Chunks and their windows."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.store.vector_store.record import Chunking
from steps.retrieval.chunker import WINDOW_TOKENS, Chunks, cut


def words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def numbered(count: int) -> str:
    return " ".join(str(n) for n in range(count))


def chunks_of(count: int, size: int = 800, overlap: int = 400) -> Chunks:
    return cut(numbered(count), words, Chunking(size=size, overlap=overlap))


def test_chunks_of_the_default_have_eight_hundred_tokens_and_share_four_hundred() -> None:
    whole = chunks_of(1700)

    spans = [(int(c.text.split()[0]), int(c.text.split()[-1])) for c in whole.chunks]
    assert spans == [(0, 799), (400, 1199), (800, 1599), (1200, 1699)]


def test_a_short_text_is_one_chunk() -> None:
    (chunk,) = chunks_of(10).chunks

    assert chunk.text == numbered(10)


def test_a_text_without_tokens_has_no_chunk() -> None:
    assert cut(" \n ", words, Chunking()) == Chunks((), ())


def test_a_text_as_long_as_a_chunk_is_one_chunk() -> None:
    assert len(chunks_of(800).chunks) == 1
    assert len(chunks_of(801).chunks) == 2


def test_every_token_is_embedded_once_where_chunks_overlap_by_half() -> None:
    whole = chunks_of(4000)

    assert " ".join(whole.windows).split() == numbered(4000).split()
    assert [(c.first, c.last) for c in whole.chunks][:3] == [(0, 4), (2, 6), (4, 8)]


@given(
    count=st.integers(1, 3000),
    size=st.integers(100, 900),
    share=st.floats(0, 0.5),
)
def test_chunks_and_windows_cover_the_text(count: int, size: int, share: float) -> None:
    overlap = int(size * share)
    whole = chunks_of(count, size, overlap)
    words_of = [c.text.split() for c in whole.chunks]

    assert {word for chunk in words_of for word in chunk} == set(numbered(count).split())
    assert all(len(chunk) <= size for chunk in words_of)
    assert all(len(window.split()) <= WINDOW_TOKENS for window in whole.windows)
    for one, after in pairwise(words_of):
        assert one[-overlap:] == after[:overlap] or not overlap
    for chunk, inside in zip(whole.chunks, words_of, strict=True):
        assert whole.windows[chunk.first].split()[0] == inside[0]
        assert chunk.last > chunk.first


def test_text_between_tokens_stays() -> None:
    (chunk,) = cut("# Title\n\n  a  b\n", words, Chunking()).chunks

    assert chunk.text == "# Title\n\n  a  b"


@pytest.mark.parametrize("size", [100, 250, 251, 501, 4096])
def test_windows_begin_where_chunks_do(size: int) -> None:
    whole = chunks_of(9000, size, size // 2)

    starts = {window.split()[0] for window in whole.windows}
    assert {chunk.text.split()[0] for chunk in whole.chunks} <= starts

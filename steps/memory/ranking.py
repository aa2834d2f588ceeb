"""Which of the things that were said fit a question: BM25 and cosine, each with that of its neighbours, fused by
reciprocal rank.

Called by `steps.memory.recall` in a thread. What a message means stands partly in the one before it, so that a hit
there counts for the next. The weights are those that find most in LoCoMo (`bench/conversation_recall.py`).
"""

import re
import sqlite3
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Scores = NDArray[np.float64]

_RANKED: Final = 100
_RRF_CONSTANT: Final = 10
"""Smaller than the usual 60: of a conversation a handful of items is wanted, and the first ranks matter most."""
_VECTOR_WEIGHT: Final = 0.5
_WORDS_AROUND: Final = (0.5, 0.3)
_MEANING_AROUND: Final = (0.3, 0.3)
"""Shares of the scores of the items before and after that an item is given."""
_MOST_WORDS: Final = 64
_WORD: Final = re.compile(r"\w+")
_STOP_WORDS: Final = frozenset(
    _WORD.findall(
        "a an the is are was were be been do does did has have had of to in on at for with and or not what when where "
        "who which how why that this it its his her he she they them their as by from would could about s t"
    )
)


def rank(
    texts: Sequence[str], vectors: Sequence[Vector | None], query: str, wanted: Vector
) -> list[int]:
    """The places of the texts, those that fit best first; at most a hundred of each ranking."""
    words = _with_neighbours(_bm25(texts, query), _WORDS_AROUND)
    meaning = _with_neighbours(_cosines(vectors, wanted), _MEANING_AROUND)
    fused: dict[int, float] = {}
    for scores, weight in ((words, 1.0), (meaning, _VECTOR_WEIGHT)):
        for place, row in enumerate(_best(scores), start=1):
            fused[row] = fused.get(row, 0.0) + weight / (_RRF_CONSTANT + place)
    return sorted(fused, key=lambda row: (-fused[row], row))


def _bm25(texts: Sequence[str], query: str) -> Scores:
    """A score a text, 0 where no word is in it."""
    scores = np.zeros(len(texts))
    words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query)))
    words = ([word for word in words if word not in _STOP_WORDS] or words)[:_MOST_WORDS]
    if not words:
        return scores
    table = sqlite3.connect(":memory:")
    try:
        table.execute(
            "CREATE VIRTUAL TABLE said USING fts5(text, content='', tokenize='porter unicode61')"
        )
        table.executemany("INSERT INTO said(rowid, text) VALUES (?, ?)", enumerate(texts))
        sql = "SELECT rowid, -bm25(said) FROM said WHERE said MATCH ?"
        for row, score in table.execute(sql, (" OR ".join(f'"{word}"' for word in words),)):
            scores[row] = score
    finally:
        table.close()
    return scores


def _cosines(vectors: Sequence[Vector | None], wanted: Vector) -> Scores:
    """A cosine a text; 0 where there is no vector yet."""
    scores = np.zeros(len(vectors))
    rows = [row for row, vector in enumerate(vectors) if vector is not None]
    if rows:
        scores[rows] = np.stack([v for v in vectors if v is not None]) @ wanted
    return scores


def _with_neighbours(scores: Scores, around: tuple[float, float]) -> Scores:
    before, after = around
    made = scores.copy()
    made[1:] += before * scores[:-1]
    made[:-1] += after * scores[1:]
    return made


def _best(scores: Scores) -> list[int]:
    """The rows that have a score, best first."""
    ordered = np.argsort(-scores, kind="stable")[:_RANKED]
    return [int(row) for row in ordered if scores[row] > 0]

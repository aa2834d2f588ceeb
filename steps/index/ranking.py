"""One index in the memory of a process: a matrix for exact cosine, and an SQLite FTS5 table for BM25.

Called by `steps.index.embedded`, in a thread, one call at a time. Rows are only ever added: a chunk that is
replaced or deleted leaves a dead row, and `is_sparse` says when to build the whole again. Must not know Redis.
"""

import math
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from steps.index.filter import Filter, matches
from steps.index.index import MOST_WORDS, RANKED, Chunk, Query, Vector, fuse, normalised

_WORD: Final = re.compile(r"\w+")
_FEWEST_DEAD: Final = 1000
_LEAST_WEIGHT: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Scored:
    """A ranked chunk, as `steps.index.index.Hit` has it."""

    id: str
    cosine: float
    bm25: float
    fused: float


class Ranking:
    """The chunks of one index, for one dimension."""

    def __init__(self, dim: int) -> None:
        self._matrix: Vector = np.zeros((256, dim), dtype=np.float32)
        self._groups: NDArray[np.int32] = np.full(256, -1, dtype=np.int32)  #: -1 is a dead row
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._attributes: list[Mapping[str, Any]] = []  #: by group
        self._group_of: dict[bytes, int] = {}
        self._words = sqlite3.connect(":memory:", check_same_thread=False)
        self._words.execute(
            "CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='unicode61')"
        )

    def close(self) -> None:
        self._words.close()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size_bytes(self) -> int:
        """What the matrix takes; the words take about as much as their text."""
        return self._matrix.nbytes

    @property
    def is_sparse(self) -> bool:
        """True when more rows are dead than alive."""
        dead = len(self._ids) - len(self._rows)
        return dead > max(_FEWEST_DEAD, len(self._rows))

    def put(self, chunks: Iterable[Chunk]) -> None:
        """Add chunks, each in place of an earlier one of its id."""
        texts = []
        for chunk in chunks:
            self._forget(chunk.id)
            row = len(self._ids)
            if row == len(self._matrix):
                self._grow()
            self._ids.append(chunk.id)
            self._rows[chunk.id] = row
            if chunk.vector is not None:
                self._matrix[row] = chunk.vector
            self._groups[row] = self._group(chunk.attributes)
            texts.append((row, chunk.text))
        self._words.executemany("INSERT INTO words(rowid, text) VALUES (?, ?)", texts)

    def delete(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            self._forget(id_)

    def ids_where(self, wanted: Filter) -> list[str]:
        """Ids of the chunks that pass the filter."""
        return [self._ids[row] for row in np.flatnonzero(self._allowed(wanted))]

    def search(self, query: Query) -> list[Scored]:
        """The best chunks, best first."""
        allowed = self._allowed(query.filter)
        cosines = self._cosines(query.vector)
        by_vector = [] if cosines is None else _best(cosines, allowed, max(RANKED, query.k))
        by_text = self._by_text(query, allowed, max(RANKED, query.k))
        fused = fuse(
            [self._ids[row] for row in by_vector],
            [self._ids[row] for row, _ in by_text],
            embedding_weight=query.embedding_weight if by_vector else 0.0,
            text_weight=query.text_weight if query.text else 0.0,
        )
        scores = {self._ids[row]: score for row, score in by_text}
        return [
            Scored(
                id_,
                0.0 if cosines is None else float(cosines[self._rows[id_]]),
                scores.get(id_, 0.0),
                score,
            )
            for id_, score in fused[: query.k]
        ]

    def _cosines(self, vector: Vector | None) -> Vector | None:
        if vector is None:
            return None
        cosines: Vector = self._matrix[: len(self._ids)] @ normalised(vector)
        return cosines

    def _by_text(
        self, query: Query, allowed: NDArray[np.bool_], most: int
    ) -> list[tuple[int, float]]:
        """Rows by BM25, best first. Words that stand in more than half of the chunks are left out: FTS5 weighs them
        at a millionth, and most of the time would go to them. A query by nothing else, and a small index, keep them.
        """
        words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query.text)))[:MOST_WORDS]
        weights = {word: self._weight(word) for word in words}
        is_small = len(self._ids) <= RANKED
        rare = [word for word in words if is_small or weights[word] > _LEAST_WEIGHT]
        if not rare and not query.least_share:
            rare = words
        if not rare:
            return []
        phrase = " OR ".join(f'"{word}"' for word in rare)
        sql = "SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? ORDER BY rank"
        least = query.least_share * sum(weights[word] for word in rare)
        found: list[tuple[int, float]] = []
        for row, score in self._words.execute(sql, (phrase,)):
            if score < least or len(found) == most:
                break
            if allowed[row]:
                found.append((row, score))
        return found

    def _weight(self, word: str) -> float:
        """The inverse document frequency of a word, as FTS5 has it: what BM25 gives a passage of average length that
        holds it once.
        """
        rows = len(self._ids)
        sql = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
        count = int(self._words.execute(sql, (f'"{word}"', rows // 2 + 1)).fetchone()[0])
        return max(_LEAST_WEIGHT, math.log((rows - count + 0.5) / (count + 0.5)))

    def _allowed(self, wanted: Filter | None) -> NDArray[np.bool_]:
        """Which rows may be found: those alive, of attributes that pass."""
        groups = self._groups[: len(self._ids)]
        if wanted is None:
            return groups >= 0
        passing = np.array([matches(wanted, one) for one in self._attributes] + [False])
        return np.asarray(passing[groups], dtype=np.bool_)  # a dead row's -1 is the last

    def _group(self, attributes: Mapping[str, Any]) -> int:
        """Chunks with the same attributes, mostly those of a file, are judged once."""
        name = orjson.dumps(dict(attributes), option=orjson.OPT_SORT_KEYS)
        if name not in self._group_of:
            self._group_of[name] = len(self._attributes)
            self._attributes.append(attributes)
        return self._group_of[name]

    def _forget(self, id_: str) -> None:
        row = self._rows.pop(id_, None)
        if row is not None:
            self._groups[row] = -1

    def _grow(self) -> None:
        more = len(self._matrix)
        empty = np.zeros((more, self._matrix.shape[1]), dtype=np.float32)
        self._matrix = np.concatenate([self._matrix, empty])
        self._groups = np.concatenate([self._groups, np.full(more, -1, dtype=np.int32)])


def _best(cosines: Vector, allowed: NDArray[np.bool_], most: int) -> Sequence[int]:
    """The allowed rows with the highest cosines, best first."""
    rows = np.flatnonzero(allowed)
    if len(rows) > most:
        rows = rows[np.argpartition(-cosines[rows], most - 1)[:most]]
    ordered = rows[np.argsort(-cosines[rows], kind="stable")]
    return [int(row) for row in ordered]

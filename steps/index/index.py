"""The interface of every vector index: six verbs, and the values they take and give.

Called by retrieval and memory. Each verb takes the tenant and the index's name first; there is no default for
either, so that no search can leave its tenant. Engines are `steps.index.embedded` and the adapters beside it; one
contract suite (tests/contract/index) runs over all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from eventing.errors import WrongState
from steps.index.filter import Filter

Vector = NDArray[np.float32]
Attribute = str | float | bool
RRF_CONSTANT: Final = 60
"""Of reciprocal rank fusion, as Cormack, Clarke and Buettcher (2009) chose it."""
RANKED: Final = 100
"""How deep each of the two rankings is read before they are fused."""
MOST_WORDS: Final = 64
"""Words of a query that are looked for; the first ones of a longer text."""
WORD_CHARACTERS: Final = 200
"""Longer words are not looked for."""
_SHARE: Final = 1 / 3


class ModelMismatch(WrongState):
    """The index was built with another embedding model, revision or dimension: vectors of two models cannot be
    compared.
    """

    code = "embedding_model_mismatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A passage with its vector. One without a vector changes only the attributes of a stored chunk."""

    id: str
    text: str = ""
    vector: Vector | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is searched for: by `vector`, by the words of `text`, or by both, fused with these weights."""

    text: str = ""
    vector: Vector | None = None
    k: int = 10
    filter: Filter | None = None
    embedding_weight: float = 1.0
    text_weight: float = 1.0

    @property
    def least_share(self) -> float:
        """Of the weight of the query's words: what a passage must hold to be ranked by them. With vectors beside it, a
        passage that shares only a word or two of a sentence is noise: by its rank alone it would outweigh what is near.
        """
        return _SHARE if self.vector is not None and self.embedding_weight else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A found chunk. `cosine` is 0 when it was found by words alone, `bm25` (higher is better) when by its vector
    alone; `fused` is the reciprocal rank score as a share of the highest possible one. The three are different
    scales.
    """

    id: str
    text: str
    attributes: Mapping[str, Attribute]
    cosine: float
    bm25: float
    fused: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStats:
    """Size of an index, and the model of its vectors; all zero and empty for an index that does not exist."""

    chunks: int = 0
    dim: int = 0
    model_revision: str = ""
    version: int = 0


class Index(Protocol):
    """Any engine. Every verb may raise `Unavailable`."""

    async def create(self, tenant: str, name: str, *, dim: int, model_revision: str) -> None:
        """Make the index, unless it exists. Raises `ModelMismatch` when it exists for another model."""

    async def put(
        self, tenant: str, name: str, chunks: Sequence[Chunk], *, model_revision: str
    ) -> None:
        """Store chunks; one with a known id is replaced. Raises `ModelMismatch`, also for an index that was not
        created.
        """

    async def delete(
        self, tenant: str, name: str, *, ids: Sequence[str] = (), where: Filter | None = None
    ) -> int:
        """Delete these chunks, and those that match `where`; the whole index when neither is given. Gives the
        number of deleted chunks.
        """

    async def search(
        self, tenant: str, name: str, query: Query, *, model_revision: str
    ) -> list[Hit]:
        """The best `query.k` chunks, best first; none from an index that does not exist. The filter is applied
        before the ranking, so it never leaves fewer results than there are. Raises `ModelMismatch`.
        """

    async def version(self, tenant: str, name: str) -> int:
        """A number that grows with every change; 0 for an index that does not exist."""

    async def stats(self, tenant: str, name: str) -> IndexStats: ...

    async def aclose(self) -> None:
        """Let go of memory and connections; what is stored stays."""


def normalised(vector: Vector) -> Vector:
    """The vector with length 1, as float32; a zero vector stays zero."""
    flat = np.asarray(vector, dtype=np.float32).reshape(-1)
    length = float(np.linalg.norm(flat))
    return flat / np.float32(length) if length > 0 else flat


def check_model(stats: "IndexStats", revision: str, dim: int) -> None:
    """Raises `ModelMismatch` where the index is built by another model."""
    if (stats.model_revision, stats.dim) != (revision, dim):
        raise mismatch(stats.model_revision, stats.dim)


def mismatch(revision: str, dim: int) -> ModelMismatch:
    """The error that names what an index is built by."""
    built = f"by {revision} with {dim} dimensions" if revision else "by no model: create it first"
    return ModelMismatch(f"the index is built {built}")


def fuse(
    by_vector: Sequence[str], by_text: Sequence[str], *, embedding_weight: float, text_weight: float
) -> list[tuple[str, float]]:
    """Reciprocal rank fusion of two rankings of ids, best first; 1.0 is the score of the first of both."""
    scores: dict[str, float] = {}
    for ranking, weight in ((by_vector, embedding_weight), (by_text, text_weight)):
        for rank, id_ in enumerate(ranking, start=1):
            scores[id_] = scores.get(id_, 0.0) + weight / (RRF_CONSTANT + rank)
    best = (embedding_weight + text_weight) / (RRF_CONSTANT + 1)
    ranked = sorted(scores.items(), key=lambda each: (-each[1], each[0]))
    return [(id_, score / best if best else 0.0) for id_, score in ranked if score > 0]

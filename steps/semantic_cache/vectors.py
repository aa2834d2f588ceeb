"""The vectors of partitions as this process knows them: a look-up reads what has changed, not everything.

Called by `steps.semantic_cache.entries`, which asks the store. A vector that is gone from the store leaves this
process at the next look-up in its partition, and at the latest when other partitions push it out.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
VERSION: Final = b"version"
"""The field of a partition's hash that changes with every vector; the others are entries."""
_MOST_PARTITIONS: Final = 64


@dataclass(frozen=True, slots=True)
class Known:
    """A partition at one version: names, and their vectors in the same order."""

    version: bytes
    names: tuple[bytes, ...]
    matrix: Matrix


class KnownVectors:
    """The partitions that were looked up last."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Known] = OrderedDict()

    def get(self, key: str) -> Known | None:
        """The partition as it was at the last look-up."""
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def forget(self, key: str) -> None:
        """The partition is gone."""
        self._known.pop(key, None)

    def update(
        self, key: str, version: bytes, names: Sequence[bytes], new: Mapping[bytes, bytes]
    ) -> Known:
        """The partition with these names, of which `new` has the vectors that were not known."""
        before = self._known.get(key)
        rows = dict(zip(before.names, before.matrix, strict=True)) if before else {}
        rows |= {name: np.frombuffer(raw, np.float32) for name, raw in new.items()}
        kept = [name for name in names if name in rows]
        matrix = np.stack([rows[name] for name in kept]) if kept else np.empty((0, 0), np.float32)
        known = self._known[key] = Known(version, tuple(kept), matrix)
        self._known.move_to_end(key)
        while len(self._known) > _MOST_PARTITIONS:
            self._known.popitem(last=False)
        return known


def nearest(known: Known, vector: Matrix, *, least: float, limit: int) -> list[tuple[str, float]]:
    """The names of the nearest vectors and their cosines, nearest first: an exact scan."""
    if not known.names or known.matrix.shape[1] != len(vector):
        return []
    cosines = known.matrix @ vector
    order = np.argsort(-cosines, kind="stable")[:limit]
    return [(known.names[i].decode(), float(cosines[i])) for i in order if cosines[i] >= least]

"""What every embedder gives, and the embedder that the settings ask for."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from steps.embedding.http_embedder import HttpEmbedder
from steps.embedding.packaged import PackagedEmbedder
from steps.embedding.settings import EmbeddingSettings

Vectors: TypeAlias = NDArray[np.float32]


class Embedder(Protocol):
    """Vectors of unit length, so that a dot product is the cosine.

    Vectors of two revisions cannot be compared: what keeps vectors keeps `revision` beside them.
    """

    @property
    def dim(self) -> int: ...

    @property
    def revision(self) -> str: ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One row a text, in order: float32, shape (n, dim). Raises `Unavailable` and `NotInstalled`."""
        ...

    async def aclose(self) -> None: ...


def open_embedder(settings: EmbeddingSettings) -> Embedder:
    """The embedder of these settings. Loads nothing and dials nothing before the first `embed`."""
    if settings.embedding_url:
        return HttpEmbedder(
            url=settings.embedding_url,
            model=settings.embedding_model,
            dim=settings.embedding_dim,
            token=settings.embedding_token.get_secret_value(),
            timeout_s=settings.embedding_timeout_s,
        )
    return PackagedEmbedder(threads=settings.embedding_threads)

"""An embedding model behind an OpenAI-compatible endpoint: vLLM, our own api and predictor, or another server."""

from collections.abc import Sequence
from typing import Any, Final

import aiohttp
import numpy as np
from numpy.typing import NDArray

from eventing.errors import Unavailable
from steps.embedding.packaged import unit

_BATCH: Final = 64


class HttpEmbedder:
    """Vectors of the model `model` at `url`. Close it with `aclose`."""

    def __init__(
        self, *, url: str, model: str, dim: int, token: str = "", timeout_s: float = 10.0
    ) -> None:
        self.dim: Final = dim
        self.revision: Final = f"{model}@{url}"
        self._endpoint = f"{url.rstrip('/')}/embeddings"
        self._model = model
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, one row a text. Raises `Unavailable` for any answer that is not these."""
        found = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            found[start : start + len(batch)] = await self._one(batch)
        return found

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _one(self, texts: list[str]) -> NDArray[np.float32]:
        self._session = self._session or aiohttp.ClientSession(timeout=self._timeout)
        body = {"model": self._model, "input": texts, "encoding_format": "float"}
        try:
            async with self._session.post(
                self._endpoint, json=body, headers=self._headers, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise Unavailable(f"the embedding endpoint answered {answer.status}")
                said = await answer.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable("the embedding endpoint does not answer") from error
        return unit(self._rows(said, len(texts)))

    def _rows(self, said: Any, count: int) -> NDArray[np.float32]:
        try:
            data = sorted(said["data"], key=lambda row: row["index"])
            rows = np.asarray([row["embedding"] for row in data], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise Unavailable("the embedding endpoint's answer holds no vectors") from error
        if rows.shape != (count, self.dim):
            raise Unavailable(
                f"the embedding endpoint gave vectors of shape {rows.shape}, not {(count, self.dim)}"
            )
        if not np.isfinite(rows).all():
            raise Unavailable("the embedding endpoint gave numbers that are not finite")
        return rows

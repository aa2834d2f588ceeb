"""all-MiniLM-L6-v2 (int8, ONNX) in this process: 384 numbers a text, about 4 ms for a short one on one core.

Loaded at the first call, in a thread that also computes; `import` costs nothing. A text is read up to 256 word
pieces, as the model was trained. A long list is computed in small batches, one a thread at a time, so that a short
call waits for one batch of them and not for the list. Two batches on two cores take less of both than one batch cut
over two.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from steps.embedding.model_file import MODEL, TOKENIZER, read_verified
from steps.handler import packages

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

DIM: Final = 384
MAX_PIECES: Final = 256
REVISION: Final = f"all-MiniLM-L6-v2-int8@{MODEL.sha256[:12]}"
_BATCH: Final = 16
_BATCH_CHARACTERS: Final = 4_000
"""About 1,000 pieces: the layers of more do not stay in a core's cache."""
_READ_CHARACTERS: Final = 1_000
"""What 256 pieces of a text are, about."""
_FRAME: Final = 2
"""Pieces that open and close every text."""


class PackagedEmbedder:
    """The packaged model on the CPU. Close it with `aclose`, which ends its threads."""

    dim: Final = DIM
    revision: Final = REVISION

    def __init__(self, *, threads: int = 1) -> None:
        self._threads = threads
        self._workers = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="embedding")
        self._loading = threading.Lock()
        self._tokenizer: Tokenizer | None = None
        self._session: Any = None

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, one row a text. Raises `NotInstalled`."""
        found = np.empty((len(texts), DIM), np.float32)
        loop, batches = asyncio.get_running_loop(), iter(batches_of(texts))

        async def compute() -> None:
            for rows in batches:
                batch = [texts[i] for i in rows]
                found[rows] = await loop.run_in_executor(self._workers, self._compute, batch)

        await asyncio.gather(*(compute() for _ in range(self._threads)))
        return found

    async def count_pieces(self, texts: Sequence[str]) -> list[int]:
        """Word pieces of each text, also those that the model does not read any more."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, self._count, list(texts))

    async def aclose(self) -> None:
        """End the threads; a batch that runs is let end."""
        await asyncio.to_thread(self._workers.shutdown, cancel_futures=True)

    def _compute(self, texts: list[str]) -> NDArray[np.float32]:
        encoded = self._encode(texts)
        longest = max(len(found.ids) for found in encoded)
        ids = np.zeros((len(texts), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, found in enumerate(encoded):
            ids[row, : len(found.ids)] = found.ids
            mask[row, : len(found.ids)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        known = {name.name for name in self._session.get_inputs()}
        states = self._session.run(None, {name: inputs[name] for name in inputs if name in known})[
            0
        ]
        return pool(states, mask)

    def _count(self, texts: list[str]) -> list[int]:
        return [
            len(found.ids) + sum(len(each.ids) - _FRAME for each in found.overflowing)
            for found in self._encode(texts)
        ]

    def _encode(self, texts: list[str]) -> "list[Encoding]":
        with self._loading:
            tokenizer = self._tokenizer or self._load()
        return tokenizer.encode_batch(texts)

    def _load(self) -> "Tokenizer":
        with packages():
            import onnxruntime
            from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        tokenizer = Tokenizer.from_str(read_verified(TOKENIZER).decode())
        # The file pads every text to 128 pieces, five times the time of a short one.
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=MAX_PIECES)
        self._session = onnxruntime.InferenceSession(
            read_verified(MODEL), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = tokenizer
        return tokenizer


def batches_of(texts: Sequence[str]) -> Iterator[list[int]]:
    """Numbers of the texts, of a like length together: a batch is padded to its longest."""
    rows: list[int] = []
    for row in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        size = (len(rows) + 1) * min(len(texts[row]), _READ_CHARACTERS)
        is_full = len(rows) == _BATCH or size > _BATCH_CHARACTERS
        if rows and is_full:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def pool(states: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """The mean over the pieces that are text, at unit length."""
    weights = mask[..., None].astype(np.float32)
    means = (states * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1.0)
    return unit(means)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row at length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[np.float32] = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return found

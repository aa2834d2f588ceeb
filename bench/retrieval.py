"""How fast files are indexed and searched: `python -m bench.retrieval [--chunks 10000] [--tokens 50]`.

The packaged embedder, the embedded index on an embedded Valkey. `--tokens` is the size of a chunk; chunks of 800
tokens that share 400 cost about eight times those of 50. Says the load of the machine beside the figures.
"""

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from eventing.redis.connection import connect
from eventing.store.vector_store.record import Chunking
from steps.embedding.packaged import PackagedEmbedder
from steps.index.embedded import EmbeddedIndex
from steps.index.index import Chunk, Query
from steps.retrieval.chunker import cut
from steps.retrieval.tokens import word_pieces
from tests.redis_server import RedisServer

_WORDS = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l", "m")]


def text_of(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(_WORDS, k=words))


async def measure(url: str, chunks: int, tokens: int, overlap: int, threads: int) -> None:
    draw, redis = random.Random(7), connect(url, timeout_s=10)
    index, embedder = EmbeddedIndex(redis), PackagedEmbedder(threads=threads)
    await index.create("bench", "docs", dim=embedder.dim, model_revision=embedder.revision)
    await embedder.embed(["warm"])
    print(
        f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {threads} threads of the embedder"
    )
    began_s, done = time.perf_counter(), 0
    while done < chunks:
        whole = cut(text_of(draw, 4000), word_pieces, Chunking(size=tokens, overlap=overlap))
        vectors = await embedder.embed(whole.windows)
        some = [
            Chunk(
                id=f"{done + n:06}",
                text=each.text,
                vector=vectors[each.first : each.last].mean(axis=0),
                attributes={"file": done},
            )
            for n, each in enumerate(whole.chunks)
        ][: chunks - done]
        await index.put("bench", "docs", some, model_revision=embedder.revision)
        done += len(some)
    took_s = time.perf_counter() - began_s
    print(
        f"{done} chunks of {tokens}/{overlap} tokens in {took_s:.1f} s ({done / took_s:.0f} a second)"
    )
    began_s = time.perf_counter()
    query = Query(text="warm", vector=(await embedder.embed(["warm"]))[0])
    await index.search("bench", "docs", query, model_revision=embedder.revision)
    print(f"first search, which reads the index: {time.perf_counter() - began_s:.2f} s")
    times_ms = []
    for _ in range(200):
        asked = text_of(draw, 8)
        began_s = time.perf_counter()
        query = Query(text=asked, vector=(await embedder.embed([asked]))[0])
        await index.search("bench", "docs", query, model_revision=embedder.revision)
        times_ms.append((time.perf_counter() - began_s) * 1000)
    times_ms.sort()
    p50, p99 = statistics.median(times_ms), times_ms[197]
    print(f"embed and search: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    await index.aclose()
    await embedder.aclose()
    await redis.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--overlap", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), options=["--appendonly", "no"])
        server.start()
        try:
            asyncio.run(
                measure(server.url, asked.chunks, asked.tokens, asked.overlap, asked.threads)
            )
        finally:
            server.kill()


if __name__ == "__main__":
    main()

"""What the embedded index promises beyond the contract: processes follow each other's changes."""

import numpy as np
from redis.asyncio import Redis

from eventing.redis import keys
from steps.index.embedded import EmbeddedIndex
from steps.index.index import Query
from tests.contract.index.test_index import REVISION, chunk, filled, ids, search, unit


async def test_a_process_finds_what_another_one_put(redis: Redis) -> None:
    writer, reader = EmbeddedIndex(redis), EmbeddedIndex(redis)
    await filled(writer, chunk("a", 0))
    assert ids(await search(reader, Query(vector=unit(0)))) == ["a"]

    await writer.put("acme", "docs", [chunk("b", 0)], model_revision=REVISION)
    await writer.delete("acme", "docs", ids=["a"])

    assert ids(await search(reader, Query(vector=unit(0)))) == ["b"]
    await writer.aclose()
    await reader.aclose()


async def test_a_process_behind_a_trimmed_stream_reads_the_whole(redis: Redis) -> None:
    writer, reader = EmbeddedIndex(redis), EmbeddedIndex(redis)
    await filled(writer, chunk("a", 0))
    await search(reader, Query(vector=unit(0)))
    await writer.delete("acme", "docs", ids=["a"])
    await writer.put("acme", "docs", [chunk("b", 0)], model_revision=REVISION)
    await redis.xtrim(keys.index("acme", "docs", "changes"), maxlen=0)

    assert ids(await search(reader, Query(vector=unit(0)))) == ["b"]
    await writer.put("acme", "docs", [chunk("c", 0)], model_revision=REVISION)
    assert sorted(ids(await search(reader, Query(vector=unit(0))))) == ["b", "c"]
    await writer.aclose()
    await reader.aclose()


async def test_an_index_made_again_is_not_taken_for_the_earlier_one(redis: Redis) -> None:
    writer, reader = EmbeddedIndex(redis), EmbeddedIndex(redis)
    await filled(writer, chunk("a", 0))
    await search(reader, Query(vector=unit(0)))
    await writer.delete("acme", "docs")
    await filled(writer, chunk("b", 0))

    assert ids(await search(reader, Query(vector=unit(0)))) == ["b"]
    await writer.aclose()
    await reader.aclose()


async def test_rankings_that_take_too_much_memory_are_read_again(redis: Redis) -> None:
    index = EmbeddedIndex(redis, most_bytes=1)
    for name in ("one", "two"):
        await filled(index, chunk(name, 0), name=name)

    for _ in range(2):
        for name in ("one", "two"):
            assert ids(await search(index, Query(vector=unit(0)), name=name)) == [name]
    assert len(index._views) == 1
    await index.aclose()


async def test_replaced_chunks_do_not_grow_the_memory_for_ever(redis: Redis) -> None:
    index = EmbeddedIndex(redis)
    chunks = [chunk(f"{n:03}", n % 8) for n in range(200)]
    await filled(index, *chunks)
    for _ in range(8):
        await index.put("acme", "docs", chunks, model_revision=REVISION)
        await search(index, Query(vector=unit(0)))

    (view,) = index._views.values()
    assert view.ranking is not None
    assert len(view.ranking._ids) <= 1400
    assert len(view.ranking) == 200
    await index.aclose()


async def test_a_deleted_index_leaves_no_key(redis: Redis) -> None:
    index = EmbeddedIndex(redis)
    await filled(index, *(chunk(f"{n:03}", n % 8) for n in range(450)))

    assert await index.delete("acme", "docs") == 450
    assert await redis.keys("*") == []
    await index.aclose()


async def test_vectors_lie_in_the_store_as_float32_bytes(redis: Redis) -> None:
    index = EmbeddedIndex(redis)
    await filled(index, chunk("a", 2, "apples", lang="en"))

    stored = await redis.hgetall(keys.index("acme", "docs", "chunk:") + "a")

    assert np.frombuffer(stored[b"vector"], dtype=np.float32).tolist() == unit(2).tolist()
    assert (stored[b"text"], stored[b"attributes"]) == (b"apples", b'{"lang":"en"}')
    await index.aclose()

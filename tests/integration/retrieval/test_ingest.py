"""Files are indexed once, whatever comes twice, late, or dies."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from eventing.errors import NotFound, Unavailable
from eventing.redis import keys
from eventing.store.vector_store.note import Note
from eventing.store.vector_store.record import (
    Chunking,
    FileSettings,
    FileStatus,
    StoreSettings,
    VectorStore,
)
from steps.embedding.packaged import PackagedEmbedder
from steps.index.filter import Comparison
from steps.index.index import Hit, Query
from steps.retrieval.ingest import FILE, FILENAME, MOST_TRIES, Ingester
from tests.integration.retrieval.conftest import TENANT, Library

SMALL = Chunking(size=100, overlap=50)


async def found(library: Library, store: VectorStore, text: str) -> list[Hit]:
    query = Query(text=text, k=50)
    return await library.index.search(
        store.tenant, store.id, query, model_revision=library.embedder.revision
    )


async def status(library: Library, note: Note) -> FileStatus:
    return (await library.stores.files(note.store_id, [note.file_id]))[0].status


@pytest.fixture
async def store(library: Library) -> VectorStore:
    return await library.stores.create(TENANT, StoreSettings())


async def test_a_file_is_cut_embedded_and_found(
    library: Library, store: VectorStore, redis: Redis
) -> None:
    text = " ".join(f"word{n}" for n in range(230))
    note = await library.add(store, text, "guide.md", attributes={"lang": "en"}, chunking=SMALL)

    assert await library.ingester.handle(note) is FileStatus.COMPLETED

    (hit,) = await found(library, store, "word229")
    assert hit.attributes == {"lang": "en", FILE: note.file_id, FILENAME: "guide.md"}
    assert hit.text.split()[0] == "word150"
    whole = await library.stores.get(TENANT, store.id)
    assert (whole.counts.completed, whole.counts.in_progress) == (1, 0)
    assert whole.usage_bytes > len(text)
    assert (await library.index.stats(TENANT, store.id)).chunks == 4
    assert await redis.zcard(keys.UNINDEXED) == 0
    assert await library.deps.texts.names(store.id) != []


async def test_a_repeated_event_does_the_work_once(library: Library, store: VectorStore) -> None:
    note = await library.add(store, "one two three")

    together = await asyncio.gather(*(library.ingester.handle(note) for _ in range(5)))
    assert together == [FileStatus.COMPLETED] * 5
    for _ in range(3):
        assert await library.ingester.handle(note) is None

    assert library.embedder.count == 1
    assert (await library.stores.get(TENANT, store.id)).counts.completed == 1


async def test_two_processes_on_one_file_end_it_once(library: Library, store: VectorStore) -> None:
    note = await library.add(store, "one two three")
    other = Ingester(library.deps)

    ends = await asyncio.gather(library.ingester.handle(note), other.handle(note))

    assert sorted(map(str, ends)) == ["None", "completed"]
    assert (await library.stores.get(TENANT, store.id)).counts.completed == 1
    assert (await library.index.stats(TENANT, store.id)).chunks == 1


async def test_a_file_that_cannot_be_read_fails_with_its_reason(
    library: Library, store: VectorStore, redis: Redis
) -> None:
    note = await library.add(store, b"PK\x03\x04", "a.docx")

    assert await library.ingester.handle(note) is FileStatus.FAILED

    (file,) = await library.stores.files(store.id, [note.file_id])
    assert file.error is not None
    assert file.error.code == "unsupported_file"
    assert await redis.zcard(keys.UNINDEXED) == 0


@pytest.mark.parametrize("package", ["onnxruntime", "pypdf"])
async def test_a_file_fails_at_once_where_a_package_is_missing_and_says_which(
    library: Library,
    store: VectorStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('', name={package!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    embedder = PackagedEmbedder()
    ingester = Ingester(replace(library.deps, embedder=embedder))
    note = await library.add(store, b"%PDF-1.7" if package == "pypdf" else b"words", "a")

    assert await ingester.handle(note) is FileStatus.FAILED

    await embedder.aclose()
    (file,) = await library.stores.files(store.id, [note.file_id])
    assert file.error is not None
    assert file.error.code == "server_error"
    assert f"{package} is not installed" in file.error.message


async def test_a_file_that_kills_every_try_ends_failed(
    library: Library, store: VectorStore
) -> None:
    """A killed process leaves its try counted; the next one begins another."""
    note = await library.add(store, "poison")
    (file,) = await library.stores.files(store.id, [note.file_id])
    for number in range(1, MOST_TRIES + 1):
        assert await library.stores.begin(note, file.generation) == number

    assert await library.ingester.handle(note) is FileStatus.FAILED

    (file,) = await library.stores.files(store.id, [note.file_id])
    assert file.error is not None
    assert (file.error.code, library.embedder.count) == ("server_error", 0)


async def test_an_embedder_that_is_away_costs_no_try(library: Library, store: VectorStore) -> None:
    note = await library.add(store, "one two")
    embed = library.embedder.embed

    async def away(texts: object) -> object:
        raise Unavailable("away")

    library.embedder.embed = away  # type: ignore[method-assign, assignment]
    for _ in range(2 * MOST_TRIES):
        with pytest.raises(Unavailable):
            await library.ingester.handle(note)
    library.embedder.embed = embed  # type: ignore[method-assign]

    assert await library.ingester.handle(note) is FileStatus.COMPLETED


async def test_a_try_that_was_cut_off_is_made_again_without_a_trace(
    library: Library, store: VectorStore
) -> None:
    text = " ".join(f"word{n}" for n in range(12_000))
    note = await library.add(store, text, chunking=SMALL)
    embed = library.embedder.embed
    begun = asyncio.Event()

    async def slow(texts: object) -> object:
        if library.embedder.count > 128:
            begun.set()
            await asyncio.sleep(3600)
        return await embed(texts)  # type: ignore[arg-type]

    library.embedder.embed = slow  # type: ignore[method-assign, assignment]
    doomed = Ingester(library.deps)
    task = asyncio.ensure_future(doomed.handle(note))
    await begun.wait()
    for running in list(doomed._running.values()):
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    library.embedder.embed = embed  # type: ignore[method-assign]

    assert await library.ingester.handle(note) is FileStatus.COMPLETED
    stats = await library.index.stats(TENANT, store.id)
    (file,) = await library.stores.files(store.id, [note.file_id])
    assert stats.chunks == file.chunks == 239


async def test_a_removed_file_leaves_no_chunk_and_no_text(
    library: Library, store: VectorStore, redis: Redis
) -> None:
    await library.ingester.handle(await library.add(store, "apples and pears", "1.md"))
    note = await library.add(store, "apples and plums", "2.md")
    await library.ingester.handle(note)

    await library.ingester.handle(await library.stores.remove_file(store, note.file_id))

    assert [hit.text for hit in await found(library, store, "apples")] == ["apples and pears"]
    assert len(await library.deps.texts.names(store.id)) == 1
    assert await redis.zcard(keys.UNINDEXED) == 0


async def test_a_file_removed_while_it_is_indexed_leaves_no_chunk(
    library: Library, store: VectorStore
) -> None:
    note = await library.add(store, "apples")
    embed = library.embedder.embed

    async def removing(texts: object) -> object:
        await library.stores.remove_file(store, note.file_id)
        return await embed(texts)  # type: ignore[arg-type]

    library.embedder.embed = removing  # type: ignore[method-assign, assignment]

    assert await library.ingester.handle(note) is None

    assert await found(library, store, "apples") == []
    assert await library.deps.texts.names(store.id) == []


async def test_a_cancelled_file_leaves_no_chunk(library: Library, store: VectorStore) -> None:
    note = await library.add(store, "apples")
    await library.stores.end(note, "", FileStatus.CANCELLED)

    assert await library.ingester.handle(note) is None

    assert await status(library, note) is FileStatus.CANCELLED
    assert await found(library, store, "apples") == []


async def test_a_deleted_store_leaves_nothing(library: Library, redis: Redis) -> None:
    store = await library.store_of("apples", "pears")

    await library.ingester.handle(await library.stores.delete(store))

    assert await redis.keys(f"*{store.id}*") == []
    assert await library.deps.texts.names(store.id) == []
    with pytest.raises(NotFound):
        await library.stores.get(TENANT, store.id)


async def test_changed_attributes_reach_the_index(library: Library, store: VectorStore) -> None:
    text = " ".join(f"word{n} apples" for n in range(300))
    note = await library.add(store, text, attributes={"lang": "en"}, chunking=SMALL)
    await library.ingester.handle(note)
    (file,) = await library.stores.files(store.id, [note.file_id])
    embedded = library.embedder.count

    changed = await library.stores.set_file(
        store, file, file.settings.with_attributes({"lang": "de"})
    )
    await library.ingester.handle(changed)

    query = Query(text="apples", k=50, filter=Comparison("lang", "eq", "de"))
    hits = await library.index.search(
        TENANT, store.id, query, model_revision=library.embedder.revision
    )
    assert len(hits) == file.chunks
    assert library.embedder.count == embedded
    assert await library.stores.due(10) == []


async def test_attributes_changed_while_it_is_indexed_are_not_lost(
    library: Library, store: VectorStore, redis: Redis
) -> None:
    note = await library.add(store, "apples", attributes={"lang": "en"})
    embed = library.embedder.embed

    async def changing(texts: object) -> object:
        (file,) = await library.stores.files(store.id, [note.file_id])
        settings: FileSettings = replace(file.settings, attributes={"lang": "de"})
        await library.stores.set_file(store, file, settings)
        return await embed(texts)  # type: ignore[arg-type]

    library.embedder.embed = changing  # type: ignore[method-assign, assignment]
    await library.ingester.handle(note)
    assert await redis.zcard(keys.UNINDEXED) == 1

    await library.ingester.handle(note)

    (hit,) = await found(library, store, "apples")
    assert hit.attributes["lang"] == "de"
    assert await redis.zcard(keys.UNINDEXED) == 0


async def test_a_forged_event_touches_no_other_tenants_store(library: Library) -> None:
    store = await library.store_of("apples")
    (file_id,) = await library.stores.file_ids(store.id)

    for forged in (
        Note(store_id=store.id, file_id=file_id, tenant="globex"),
        Note(store_id=store.id, file_id="", tenant="globex"),
    ):
        await library.ingester.handle(forged)

    assert len(await found(library, store, "apples")) == 1
    assert len(await library.deps.texts.names(store.id)) == 1

"""Makes the chunks of a file what its record says: indexed, changed, or gone.

Called by the steps process for each event about vector stores. What is done follows from the record alone, and every
write repeats without harm, so events may come twice, late or out of order, and a process may die anywhere: the next
event begins again. A file that broke or killed three tries ends `failed`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog

from eventing.errors import NotFound, Unavailable
from eventing.store.file_store import FileStore
from eventing.store.objects.object_store import ObjectStore
from eventing.store.vector_store.note import Note
from eventing.store.vector_store.record import (
    FileError,
    FileStatus,
    VectorStoreFile,
)
from eventing.store.vector_store.store import VectorStores
from eventing.store.vector_store.text_object import text_object_name
from steps.embedding.embedder import Embedder
from steps.handler import NotInstalled
from steps.index.filter import Comparison
from steps.index.index import Attribute, Chunk, Index, Vector
from steps.retrieval import metrics
from steps.retrieval.chunker import Chunks, Cut, Tokenizer, cut
from steps.retrieval.text import FileUnreadable, text_of

MOST_TRIES: Final = 3
MOST_FILE_BYTES: Final = 64 * 1024 * 1024
FILE: Final = "torpor.file"
"""Attribute of a chunk: the id of its file. Callers' names never begin like that."""
FILENAME: Final = "torpor.filename"
_WINDOWS_AT_ONCE: Final = 32
_CHUNKS_AT_ONCE: Final = 32

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestDeps:
    """The dependencies of an `Ingester`."""

    stores: VectorStores
    files: FileStore
    texts: ObjectStore
    index: Index
    embedder: Embedder
    tokenize: Tokenizer


class Ingester:
    """Handles events about vector stores, any number concurrently, each file once at a time."""

    def __init__(self, deps: IngestDeps) -> None:
        self._deps = deps
        self._running: dict[Note, asyncio.Task[FileStatus | None]] = {}
        # One file at a time: they share the embedder, and a file that kills the process costs no other one a try.
        self._one_file = asyncio.Lock()

    async def handle(self, note: Note) -> FileStatus | None:
        """Do what the note's record says; gives the status of a file that this call ended. Raises `Unavailable`;
        any other error is to be retried too.
        """
        # A broker that has lost sight of a delivery sends it again.
        task = self._running.get(note)
        if task is None:
            task = self._running[note] = asyncio.ensure_future(self._handle(note))
            task.add_done_callback(lambda _: self._running.pop(note, None))
        return await asyncio.shield(task)

    async def _handle(self, note: Note) -> FileStatus | None:
        deps = self._deps
        stores = await deps.stores.read([note.store_id])
        is_mine = bool(stores) and stores[0].tenant == note.tenant
        if not is_mine or not note.file_id:
            await self._drop(note)
            return None
        found = await deps.stores.files(note.store_id, [note.file_id])
        if found and found[0].status is FileStatus.IN_PROGRESS:
            async with self._one_file:
                return await self._index(note, found[0])
        if found and found[0].status is FileStatus.COMPLETED:
            await self._follow(note, found[0])
            return None
        await self._remove_chunks(note)
        await deps.stores.clear(note, found[0].settings_json if found else b"")
        return None

    async def _drop(self, note: Note) -> None:
        """The index of a vector store that was deleted, or has expired."""
        stores = await self._deps.stores.read([note.store_id])
        if stores and stores[0].counts.total:
            return  # it is in use again
        await self._deps.index.delete(note.tenant, note.store_id)
        await self._deps.texts.remove(note.store_id)
        await self._deps.stores.clear(note, stores[0].settings_json if stores else b"")

    async def _remove_chunks(self, note: Note) -> None:
        where = Comparison(FILE, "eq", note.file_id)
        await self._deps.index.delete(note.tenant, note.store_id, where=where)
        for name in await self._deps.texts.names(note.store_id):
            if name.startswith(f"{note.file_id}."):
                await self._deps.texts.remove(f"{note.store_id}/{name}")

    async def _follow(self, note: Note, file: VectorStoreFile) -> None:
        """Give the chunks of an indexed file its attributes of now."""
        attributes = _attributes(file)
        ids = [_chunk_id(file.id, number) for number in range(file.chunks)]
        for start in range(0, len(ids), _CHUNKS_AT_ONCE):
            some = [Chunk(id=id_, attributes=attributes) for id_ in ids[start:][:_CHUNKS_AT_ONCE]]
            await self._deps.index.put(
                note.tenant, note.store_id, some, model_revision=self._deps.embedder.revision
            )
        await self._deps.stores.clear(note, file.settings_json)

    async def _index(self, note: Note, file: VectorStoreFile) -> FileStatus | None:
        stores, generation = self._deps.stores, file.generation
        number = await stores.begin(note, generation)
        if not number:
            return None
        if number > MOST_TRIES:
            message = f"the file could not be indexed in {MOST_TRIES} tries"
            return await self._fail(
                note, generation, FileError(code="server_error", message=message)
            )
        try:
            file = (await stores.files(note.store_id, [note.file_id]) or [file])[0]
            usage_bytes, chunks = await self._put(note, file)
        except FileUnreadable as error:
            reason = FileError(code=error.code, message=error.message)
            return await self._fail(note, generation, reason)
        except NotInstalled as error:
            reason = FileError(code="server_error", message=error.message)
            return await self._fail(note, generation, reason)
        except (Unavailable, asyncio.CancelledError):
            await asyncio.shield(stores.begin(note, generation, count=-1))
            raise
        status = FileStatus.COMPLETED
        is_ended = await stores.end(
            note, generation, status, usage_bytes=usage_bytes, chunks=chunks
        )
        metrics.FILES.labels(str(status)).inc()
        _log.info("indexed", action="index", file_id=note.file_id, chunks=chunks)
        if not is_ended:  # removed or added again meanwhile: the event about that follows
            await self._handle_again(note)
        return status if is_ended else None

    async def _handle_again(self, note: Note) -> None:
        found = await self._deps.stores.files(note.store_id, [note.file_id])
        if not found or found[0].status is not FileStatus.IN_PROGRESS:
            await self._handle(note)

    async def _fail(self, note: Note, generation: str, error: FileError) -> FileStatus:
        with suppress(NotInstalled):  # chunks of a file that failed are not found
            await self._remove_chunks(note)
        await self._deps.stores.end(note, generation, FileStatus.FAILED, error=error)
        metrics.FILES.labels(str(FileStatus.FAILED)).inc()
        _log.warning("not indexed", action="index", file_id=note.file_id, reason=error.code)
        return FileStatus.FAILED

    async def _put(self, note: Note, file: VectorStoreFile) -> tuple[int, int]:
        """Index the file; gives the bytes of its chunks' texts, and their number."""
        deps, embedder = self._deps, self._deps.embedder
        text = await text_of(await self._data(note), file.settings.filename)
        whole = await asyncio.to_thread(cut, text, deps.tokenize, file.settings.chunking)
        if not whole.chunks:
            raise FileUnreadable("invalid_file", "the file holds no words")
        await deps.index.create(
            note.tenant, note.store_id, dim=embedder.dim, model_revision=embedder.revision
        )
        attributes, usage_bytes = _attributes(file), 0
        async for start, chunks in self._embedded(whole):
            some = [
                Chunk(
                    id=_chunk_id(file.id, number),
                    text=each.text,
                    vector=vector,
                    attributes=attributes,
                )
                for number, (each, vector) in enumerate(chunks, start)
            ]
            await deps.index.put(note.tenant, note.store_id, some, model_revision=embedder.revision)
            usage_bytes += sum(len(each.text.encode()) for each, _ in chunks)
            metrics.CHUNKS.inc(len(some))
        name = text_object_name(note.store_id, file.id, file.generation)
        await deps.texts.write(name, text.encode("utf-8", "replace"))
        return usage_bytes, len(whole.chunks)

    async def _embedded(self, whole: Chunks) -> AsyncIterator[tuple[int, list[tuple[Cut, Vector]]]]:
        """Chunks with their vectors, some at a time. Windows are embedded once, and kept while a chunk needs them."""
        vectors: dict[int, Vector] = {}
        for start in range(0, len(whole.chunks), _CHUNKS_AT_ONCE):
            some = whole.chunks[start : start + _CHUNKS_AT_ONCE]
            for number in [each for each in vectors if each < some[0].first]:
                del vectors[number]
            missing = [n for n in range(some[0].first, some[-1].last) if n not in vectors]
            for at in range(0, len(missing), _WINDOWS_AT_ONCE):
                numbers = missing[at : at + _WINDOWS_AT_ONCE]
                texts = [whole.windows[number] for number in numbers]
                vectors |= zip(numbers, await self._deps.embedder.embed(texts), strict=True)
            yield start, [(each, _mean(vectors, each)) for each in some]

    async def _data(self, note: Note) -> bytes:
        try:
            card = await self._deps.files.card(note.tenant, note.file_id)
        except NotFound as error:
            raise FileUnreadable("invalid_file", "the file was deleted, or has expired") from error
        if card.bytes > MOST_FILE_BYTES:
            message = f"a file may have {MOST_FILE_BYTES} bytes to be indexed"
            raise FileUnreadable("unsupported_file", message)
        return b"".join([piece async for piece in self._deps.files.pieces(card)])


def _mean(vectors: dict[int, Vector], chunk: Cut) -> Vector:
    windows: Sequence[Vector] = [vectors[number] for number in range(chunk.first, chunk.last)]
    mean: Vector = np.mean(windows, axis=0, dtype=np.float32)
    return mean


def _chunk_id(file_id: str, number: int) -> str:
    return f"{file_id}:{number:06}"


def _attributes(file: VectorStoreFile) -> dict[str, Attribute]:
    own: dict[str, Attribute] = {FILE: file.id, FILENAME: file.settings.filename}
    return {**file.settings.attributes, **own}

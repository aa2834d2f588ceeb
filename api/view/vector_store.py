"""OpenAI's vector store objects, as callers are shown them. Pure.

Called by the routes of vector stores.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal

from typing_extensions import TypedDict

from api.http.described import described
from api.view.page import Page
from eventing.store.vector_store.record import (
    FileBatch,
    FileStatus,
    StoreStatus,
    VectorStore,
    VectorStoreFile,
)


class FileCountsView(TypedDict):
    """Files by status."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int


class StoreExpiry(TypedDict):
    """How long it is kept unused."""

    anchor: Literal["last_active_at"]
    days: int


@described
class VectorStoreView(TypedDict):
    """OpenAI's vector store."""

    id: str
    object: Literal["vector_store"]
    created_at: int
    """All times are seconds since 1970"""
    name: str
    description: str | None
    usage_bytes: int
    """Of the texts of its chunks"""
    file_counts: FileCountsView
    status: StoreStatus
    """`in_progress` while files are being indexed; those that are can be found"""
    expires_after: StoreExpiry | None
    expires_at: int | None
    last_active_at: int
    metadata: Mapping[str, str]


class VectorStoreList(Page):
    """A page of vector stores."""

    data: list[VectorStoreView]


class LastError(TypedDict):
    """Why a file could not be indexed."""

    code: str
    message: str


class StaticChunking(TypedDict):
    """Tokens of a chunk, and how many of them it shares with the next one."""

    max_chunk_size_tokens: int
    chunk_overlap_tokens: int


class ChunkingView(TypedDict):
    """How the text is cut into chunks."""

    type: Literal["static"]
    static: StaticChunking


@described
class VectorStoreFileView(TypedDict):
    """OpenAI's file of a vector store."""

    id: str
    """Of the file, as `/v1/files` has it"""
    object: Literal["vector_store.file"]
    usage_bytes: int
    created_at: int
    vector_store_id: str
    status: FileStatus
    last_error: LastError | None
    chunking_strategy: ChunkingView
    attributes: Mapping[str, str | float | bool]


class VectorStoreFileList(Page):
    """A page of a vector store's files."""

    data: list[VectorStoreFileView]


class FileBatchView(TypedDict):
    """OpenAI's batch of files of a vector store."""

    id: str
    object: Literal["vector_store.files_batch"]
    created_at: int
    vector_store_id: str
    status: FileStatus
    file_counts: FileCountsView


class TextContent(TypedDict):
    """A part of a text."""

    type: Literal["text"]
    text: str


class FileContent(TypedDict):
    """The text of a file, as it was read out of it."""

    object: Literal["vector_store.file_content.page"]
    data: list[TextContent]
    has_more: bool
    next_page: str | None


class SearchResult(TypedDict):
    """A passage."""

    file_id: str
    filename: str
    score: float
    attributes: Mapping[str, str | float | bool]
    content: list[TextContent]


@described
class SearchResults(TypedDict):
    """Passages, best first."""

    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[SearchResult]
    has_more: bool
    """Always false: ask for more with `max_num_results`"""
    next_page: str | None


def store_view(store: VectorStore, now_s: int) -> VectorStoreView:
    """What the caller is shown of a vector store."""
    settings = store.settings
    days = settings.expires_after_days
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": store.created_at,
        "name": settings.name,
        "description": settings.description,
        "usage_bytes": store.usage_bytes,
        "file_counts": _counts(store),
        "status": store.status(now_s),
        "expires_after": {"anchor": "last_active_at", "days": days} if days else None,
        "expires_at": store.expires_at or None,
        "last_active_at": store.last_active_at,
        "metadata": dict(settings.metadata),
    }


def file_view(file: VectorStoreFile) -> VectorStoreFileView:
    """What the caller is shown of a file in a vector store."""
    error, chunking = file.error, file.settings.chunking
    return {
        "id": file.id,
        "object": "vector_store.file",
        "usage_bytes": file.usage_bytes,
        "created_at": file.created_at,
        "vector_store_id": file.store_id,
        "status": file.status,
        "last_error": {"code": error.code, "message": error.message} if error else None,
        "chunking_strategy": {
            "type": "static",
            "static": {
                "max_chunk_size_tokens": chunking.size,
                "chunk_overlap_tokens": chunking.overlap,
            },
        },
        "attributes": dict(file.settings.attributes),
    }


def batch_view(batch: FileBatch) -> FileBatchView:
    """What the caller is shown of a batch of files."""
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "created_at": batch.created_at,
        "vector_store_id": batch.store_id,
        "status": batch.status,
        "file_counts": _counts(batch),
    }


def _counts(owner: VectorStore | FileBatch) -> FileCountsView:
    counts = owner.counts
    return {**asdict(counts), "total": counts.total}  # type: ignore[typeddict-item]

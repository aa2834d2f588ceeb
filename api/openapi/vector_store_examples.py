"""One example of each body that the calls on vector stores take or answer.

Called by `api.openapi.examples`. Pure; must not know any call.
"""

from collections.abc import Mapping
from typing import Any, Final

_AT_S: Final = 1_764_000_000
_STORE_ID: Final = "vs_0123456789abcdef01234567"
_FILE_ID: Final = "file-0123456789abcdef01234567"
_COUNTS: Final = {"in_progress": 0, "completed": 1, "failed": 0, "cancelled": 0, "total": 1}
_EXPIRES_AFTER: Final = {"anchor": "last_active_at", "days": 7}
_STORE: Final = {
    "id": _STORE_ID,
    "object": "vector_store",
    "created_at": _AT_S,
    "name": "handbook",
    "description": None,
    "usage_bytes": 4096,
    "file_counts": _COUNTS,
    "status": "completed",
    "expires_after": _EXPIRES_AFTER,
    "expires_at": _AT_S + 7 * 24 * 3600,
    "last_active_at": _AT_S,
    "metadata": {"team": "ads"},
}
_STATIC: Final = {
    "type": "static",
    "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400},
}
_FILE: Final = {
    "id": _FILE_ID,
    "object": "vector_store.file",
    "usage_bytes": 4096,
    "created_at": _AT_S,
    "vector_store_id": _STORE_ID,
    "status": "completed",
    "last_error": None,
    "chunking_strategy": _STATIC,
    "attributes": {"language": "en", "year": 2026},
}


def _listed(entry: Mapping[str, Any]) -> dict[str, Any]:
    ends = {"first_id": entry["id"], "last_id": entry["id"]}
    return {"object": "list", "data": [entry], "has_more": False, **ends}


VECTOR_STORE_EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "VectorStore": _STORE,
    "VectorStoreList": _listed(_STORE),
    "VectorStoreRequest": {"name": "handbook", "file_ids": [_FILE_ID]},
    "VectorStoreUpdate": {"name": "handbook", "expires_after": _EXPIRES_AFTER},
    "VectorStoreFile": _FILE,
    "VectorStoreFileList": _listed(_FILE),
    "VectorStoreFileRequest": {"file_id": _FILE_ID, "attributes": {"language": "en"}},
    "VectorStoreFileUpdate": {"attributes": {"language": "de"}},
    "VectorStoreBatchRequest": {"file_ids": [_FILE_ID]},
    "FileBatch": {
        "id": "vsfb_0123456789abcdef01234567",
        "object": "vector_store.files_batch",
        "created_at": _AT_S,
        "vector_store_id": _STORE_ID,
        "status": "completed",
        "file_counts": _COUNTS,
    },
    "VectorStoreSearchRequest": {"query": "How long is leave?", "max_num_results": 3},
    "SearchResults": {
        "object": "vector_store.search_results.page",
        "search_query": ["How long is leave?"],
        "data": [
            {
                "file_id": _FILE_ID,
                "filename": "handbook.md",
                "score": 1.0,
                "attributes": {"language": "en"},
                "content": [{"type": "text", "text": "Leave is 30 days a year."}],
            }
        ],
        "has_more": False,
        "next_page": None,
    },
    "FileContent": {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": "Leave is 30 days a year."}],
        "has_more": False,
        "next_page": None,
    },
}

"""OpenAI's file object.

Called by `/v1/files`. Pure.
"""

from typing import Literal

from typing_extensions import TypedDict

from api.http.described import described
from eventing.store.file_store import FileCard


@described
class FileView(TypedDict):
    """OpenAI's file object."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    """All times are seconds since 1970"""
    filename: str
    purpose: str
    status: Literal["processed"]
    expires_at: int | None
    """When it is forgotten"""


def file_view(card: FileCard) -> FileView:
    """What the caller is shown of a file."""
    return {
        "id": card.id,
        "object": "file",
        "bytes": card.bytes,
        "created_at": card.created_at,
        "filename": card.filename,
        "purpose": card.purpose,
        "status": "processed",
        "expires_at": card.expires_at or None,
    }

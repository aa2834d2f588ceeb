"""Vector stores, their files and batches of files: the records, and what of them may change. Pure.

Called by the api, which creates and shows them, and by the steps, which index their files. Names and statuses are
OpenAI's.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

import orjson

from eventing.known_fields import known_fields, known_value

AUTO_CHUNK_TOKENS: Final = 800
AUTO_OVERLAP_TOKENS: Final = 400
MOST_FILES: Final = 10_000
"""Files of one vector store, as at OpenAI."""
_DAY_S: Final = 24 * 3600
_STORE_ID: Final = re.compile(r"vs_[0-9a-f]{24}\Z")
_BATCH_ID: Final = re.compile(r"vsfb_[0-9a-f]{24}\Z")
_FILE_ID: Final = re.compile(r"file-[0-9a-f]{24}\Z")


class FileStatus(StrEnum):
    """How far a file of a vector store is."""

    IN_PROGRESS = "in_progress"  #: waits to be indexed, or is being indexed
    COMPLETED = "completed"  #: its chunks are found
    FAILED = "failed"  #: `error` says why
    CANCELLED = "cancelled"  #: its batch was cancelled before it was indexed

    @property
    def is_final(self) -> bool:
        return self is not FileStatus.IN_PROGRESS


class StoreStatus(StrEnum):
    """What a vector store is good for."""

    IN_PROGRESS = "in_progress"  #: some of its files are still to be indexed
    COMPLETED = "completed"  #: all files have ended
    EXPIRED = "expired"  #: unused for longer than `expires_after`; its chunks are gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """How a text is cut: chunks of at most `size` tokens, each of which repeats the last `overlap` of the one
    before.
    """

    size: int = AUTO_CHUNK_TOKENS
    overlap: int = AUTO_OVERLAP_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCounts:
    """Files by status."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.in_progress + self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """What a caller set of a vector store, and may change."""

    name: str = ""
    description: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    expires_after_days: int = 0  #: after it was last used; 0 for never

    @property
    def kept_ms(self) -> int:
        """How long it is kept unused; 0 for ever."""
        return self.expires_after_days * _DAY_S * 1000

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorStore:
    """A vector store. `version` grows with every change of what a search can find."""

    id: str
    tenant: str
    created_at: int
    last_active_at: int
    settings: StoreSettings
    counts: FileCounts = FileCounts()
    usage_bytes: int = 0
    version: int = 0
    settings_json: bytes = b""  #: as it stands in the record

    @property
    def expires_at(self) -> int:
        """Epoch seconds; 0 for never."""
        days = self.settings.expires_after_days
        return self.last_active_at + days * _DAY_S if days else 0

    def status(self, now_s: int) -> StoreStatus:
        if 0 < self.expires_at <= now_s:
            return StoreStatus.EXPIRED
        return StoreStatus.IN_PROGRESS if self.counts.in_progress else StoreStatus.COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    """What a caller set of a file in a vector store."""

    filename: str = ""
    attributes: Mapping[str, str | float | bool] = field(default_factory=dict)
    chunking: Chunking = Chunking()

    def with_attributes(self, attributes: Mapping[str, str | float | bool]) -> "FileSettings":
        return replace(self, attributes=attributes)

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileError:
    """Why a file could not be indexed: OpenAI's `last_error`."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorStoreFile:
    """A file in a vector store. `generation` names this adding of it: what was decided for an earlier one has no
    effect. `attempts` counts the tries to index it.
    """

    id: str
    store_id: str
    created_at: int
    generation: str
    settings: FileSettings
    status: FileStatus = FileStatus.IN_PROGRESS
    error: FileError | None = None
    usage_bytes: int = 0
    chunks: int = 0
    attempts: int = 0
    settings_json: bytes = b""  #: as it stands in the record


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBatch:
    """Files added together."""

    id: str
    store_id: str
    tenant: str
    created_at: int
    total: int
    counts: FileCounts
    is_cancelled: bool = False

    @property
    def status(self) -> FileStatus:
        """Until all files were added, their counts do not make up the total."""
        if self.is_cancelled:
            return FileStatus.CANCELLED
        if self.counts.in_progress or self.counts.total < self.total:
            return FileStatus.IN_PROGRESS
        is_lost = self.counts.failed == self.total > 0
        return FileStatus.FAILED if is_lost else FileStatus.COMPLETED


def is_store_id(text: str) -> bool:
    return bool(_STORE_ID.match(text))


def is_batch_id(text: str) -> bool:
    return bool(_BATCH_ID.match(text))


def is_file_id(text: str) -> bool:
    return bool(_FILE_ID.match(text))


def parse_store(store_id: str, raw: Mapping[bytes, bytes]) -> VectorStore:
    """The vector store in a hash of this version or another."""
    settings = StoreSettings(**known_fields(StoreSettings, orjson.loads(raw[b"settings"])))
    return VectorStore(
        id=store_id,
        tenant=raw[b"tenant"].decode(),
        created_at=int(raw[b"created_ms"]) // 1000,
        last_active_at=int(raw[b"active_ms"]) // 1000,
        settings=settings,
        counts=_counts(raw),
        usage_bytes=int(raw.get(b"usage_bytes", 0)),
        version=int(raw.get(b"version", 0)),
        settings_json=raw[b"settings"],
    )


def parse_file(store_id: str, file_id: str, raw: Mapping[bytes, bytes]) -> VectorStoreFile:
    """The file in a hash of this version or another."""
    known = known_fields(FileSettings, orjson.loads(raw[b"settings"]))
    known["chunking"] = Chunking(**known_fields(Chunking, known.get("chunking", {})))
    error = raw.get(b"error")
    return VectorStoreFile(
        id=file_id,
        store_id=store_id,
        created_at=int(raw[b"created_ms"]) // 1000,
        generation=raw[b"generation"].decode(),
        settings=FileSettings(**known),
        status=known_value(FileStatus, raw[b"status"].decode()),
        error=FileError(**known_fields(FileError, orjson.loads(error))) if error else None,
        usage_bytes=int(raw.get(b"usage_bytes", 0)),
        chunks=int(raw.get(b"chunks", 0)),
        attempts=int(raw.get(b"attempts", 0)),
        settings_json=raw[b"settings"],
    )


def parse_batch(batch_id: str, raw: Mapping[bytes, bytes]) -> FileBatch:
    """The batch in a hash of this version or another."""
    return FileBatch(
        id=batch_id,
        store_id=raw[b"store"].decode(),
        tenant=raw[b"tenant"].decode(),
        created_at=int(raw[b"created_ms"]) // 1000,
        total=int(raw[b"total"]),
        counts=_counts(raw),
        is_cancelled=b"cancelled_ms" in raw,
    )


def _counts(raw: Mapping[bytes, Any]) -> FileCounts:
    named = {status: int(raw.get(status.encode(), 0)) for status in FileStatus}
    return FileCounts(**{str(status): count for status, count in named.items()})

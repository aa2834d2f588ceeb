"""Uploaded files and batch results, wherever fsspec can write: a folder, or object storage.

Called by `/v1/files` and the batch runner. A file is some parts and one small `meta.json` that
names them, written last: a file is there whole or not at all. Nothing is held in memory but one
piece. Must not know HTTP.
"""

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import IO, Any, Final, TypeVar

import fsspec  # type: ignore[import-untyped]
import orjson

from eventing.errors import NotFound, Unavailable

PIECE_BYTES: Final = 256 * 1024
_ID: Final = re.compile(r"file-[0-9a-f]{24}\Z")
_T = TypeVar("_T")


class FilesUnavailable(Unavailable):
    """The place for files cannot be written or read now."""

    code = "files_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCard:
    """What is known of a file."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    parts: tuple[str, ...] = ()

    def view(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


class FileStore:
    """Files below one fsspec URL; each call runs in a thread, since fsspec blocks."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)

    async def save(self, card: FileCard, source: IO[bytes]) -> FileCard:
        """Copy an upload. Raises `FilesUnavailable`; then nothing is left but a nameless part."""

        def copy() -> FileCard:
            size = 0
            with self._open(self._path(card, "part-0"), "wb") as target:
                while piece := source.read(PIECE_BYTES):
                    target.write(piece)
                    size += len(piece)
            whole = replace(card, bytes=size, parts=("part-0",))
            self._write_card(whole)
            return whole

        return await self._run(copy)

    async def write_part(self, tenant: str, file_id: str, part: str, data: bytes) -> None:
        """A part of a file that has no card yet. Writing it again replaces it."""

        def write() -> None:
            with self._open(f"{self._folder(tenant, file_id)}/{part}", "wb") as target:
                target.write(data)

        await self._run(write)

    async def drop_part(self, tenant: str, file_id: str, part: str) -> None:
        """Forget a part that no record names any more. One that cannot be removed now goes with its
        file.
        """
        with suppress(FilesUnavailable):
            await self._run(lambda: self._fs.rm(f"{self._folder(tenant, file_id)}/{part}"))

    async def publish(self, card: FileCard) -> None:
        """Make the parts that `card` names a file."""
        await self._run(lambda: self._write_card(card))

    async def card(self, tenant: str, file_id: str) -> FileCard:
        """Raises `NotFound`, also for another tenant's file."""
        if not _ID.match(file_id):
            raise NotFound("no such file")
        return await self._run(lambda: self._read_card(tenant, file_id))

    async def cards(self, tenant: str) -> list[FileCard]:
        """All files of a tenant, newest first."""

        def read() -> list[FileCard]:
            folder = self._tenant_folder(tenant)
            if not self._fs.exists(folder):
                return []
            found = []
            for path in self._fs.ls(folder, detail=False):
                try:
                    found.append(self._read_card(tenant, str(path).rsplit("/", 1)[-1]))
                except NotFound:
                    continue  # parts of a file that is still being written
            return sorted(found, key=lambda card: (card.created_at, card.id), reverse=True)

        return await self._run(read)

    async def delete(self, card: FileCard) -> None:
        """Forget it, card first."""

        def remove() -> None:
            self._fs.rm(self._path(card, "meta.json"))
            self._fs.rm(self._folder(card.tenant, card.id), recursive=True)

        await self._run(remove)

    async def read(self, card: FileCard, start: int, size: int) -> bytes:
        """At most `size` bytes from `start` on; nothing at the end. For files of one part."""
        path = self._path(card, card.parts[0])
        end = min(start + size, card.bytes)
        if start >= end:
            return b""
        data: bytes = await self._run(lambda: self._fs.cat_file(path, start=start, end=end))
        return data

    async def pieces(self, card: FileCard) -> AsyncIterator[bytes]:
        """The content, piece by piece."""
        for part in card.parts:
            path = self._path(card, part)
            source = await self._run(lambda path=path: self._open(path, "rb"))  # type: ignore[misc]
            try:
                while piece := await self._run(lambda source=source: source.read(PIECE_BYTES)):  # type: ignore[misc]
                    yield piece
            finally:
                source.close()

    def _open(self, path: str, mode: str) -> Any:
        if mode == "wb":
            self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        return self._fs.open(path, mode)

    def _write_card(self, card: FileCard) -> None:
        """Under another name first, where that helps: a local file appears whole or not at all."""
        path = self._path(card, "meta.json")
        with self._open(f"{path}.new", "wb") as target:
            target.write(orjson.dumps(asdict(card)))
        self._fs.mv(f"{path}.new", path)

    def _read_card(self, tenant: str, file_id: str) -> FileCard:
        try:
            raw = self._fs.cat_file(f"{self._folder(tenant, file_id)}/meta.json")
        except FileNotFoundError as error:
            raise NotFound("no such file") from error
        fields = orjson.loads(raw)
        return FileCard(**{**fields, "parts": tuple(fields["parts"])})

    def _path(self, card: FileCard, name: str) -> str:
        return f"{self._folder(card.tenant, card.id)}/{name}"

    def _folder(self, tenant: str, file_id: str) -> str:
        return f"{self._tenant_folder(tenant)}/{file_id}"

    def _tenant_folder(self, tenant: str) -> str:
        """A tenant's name may hold anything; its digest is a safe name for a folder."""
        return f"{self._root}/{hashlib.sha256(tenant.encode()).hexdigest()[:24]}"

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise FilesUnavailable("the place for files does not work now", 5.0) from error


def new_card(tenant: str, filename: str, purpose: str, file_id: str) -> FileCard:
    """A card for a file that is about to be written."""
    return FileCard(
        id=file_id,
        tenant=tenant,
        filename=filename,
        purpose=purpose,
        bytes=0,
        created_at=int(time.time()),
    )

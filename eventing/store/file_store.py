"""Uploaded files and batch results on any fsspec filesystem: a folder, or object storage.

Called by `/v1/files`, the batch runner and the steps that index files. A file is a number of parts and one small
`meta.json` that names them, written last, so that a file exists completely or not at all. At most one piece is held
in memory. A file is gone once its `expires_at` has passed; `sweep` deletes its parts. Must not know HTTP.
"""

import asyncio
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC
from typing import IO, Any, Final, Protocol, TypeVar

import fsspec  # type: ignore[import-untyped]
import orjson
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from eventing.clock import Clock, SystemClock
from eventing.errors import IdempotencyConflict, NotFound, Unavailable
from eventing.known_fields import known_fields

PIECE_BYTES: Final = 256 * 1024
BATCH_FILE_KEPT_S: Final = 30 * 24 * 3600
"""Files of batches expire after this by default; others do not expire, as at OpenAI."""
_ABANDONED_S: Final = 3 * 24 * 3600
"""Parts this old without a card belong to an upload or a batch that died: a batch runs for at most a day."""
_ID: Final = re.compile(r"file-[0-9a-f]{24}\Z")
_TENANT_FOLDER: Final = re.compile(r"[0-9a-f]{24}\Z")
_T = TypeVar("_T")


class FilesUnavailable(Unavailable):
    """The storage of files cannot be written or read now."""

    code = "files_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCard:
    """The metadata of a file."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    parts: tuple[str, ...] = ()
    sha256: str = ""
    expires_at: int = 0

    def is_as_asked(self, other: "FileCard") -> bool:
        """True when both come from the same upload. Cards of older versions have no digest."""
        if self.sha256 and other.sha256 and self.sha256 != other.sha256:
            return False
        mine, theirs = (
            (card.filename, card.purpose, card.bytes, card.expires_at and card.kept_s)
            for card in (self, other)
        )
        return mine == theirs

    @property
    def kept_s(self) -> int:
        return self.expires_at - self.created_at


class Check(Protocol):
    """Validates an upload while it is received (`api.batch.jsonl.JsonlCheck`); raises the error to answer."""

    def feed(self, piece: bytes) -> None: ...

    def finish(self) -> None: ...


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


class FileStore:
    """Files below one fsspec URL. Each call runs in a thread, since fsspec blocks."""

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._clock = clock or SystemClock()
        self._sizes: dict[str, dict[str, tuple[int, int]]] = {}
        self._arriving: dict[str, int] = {}

    def new_card(
        self, tenant: str, filename: str, purpose: str, file_id: str, *, kept_s: int = 0
    ) -> FileCard:
        """The card of a file that is about to be written; it expires after `kept_s` if that is set."""
        now_s = self._now_s()
        return FileCard(
            id=file_id,
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            bytes=0,
            created_at=now_s,
            expires_at=now_s + kept_s if kept_s else 0,
        )

    async def save(self, card: FileCard, source: IO[bytes], check: Check | None = None) -> FileCard:
        """Store an upload; gives its file, which an identical upload may have stored before.

        Raises `IdempotencyConflict` when a different upload has this id, `FilesUnavailable`, and what `check`
        raises; then at most a part without a card is left, which `sweep` deletes.
        """

        def copy() -> FileCard:
            part = f"part-{secrets.token_hex(4)}"  # two uploads under one key write different parts
            path, size, digest = self._path(card, part), 0, hashlib.sha256()
            try:
                with self._open(path, "wb") as target:
                    while piece := source.read(PIECE_BYTES):
                        if check is not None:
                            check.feed(piece)
                        target.write(piece)
                        digest.update(piece)
                        size += len(piece)
                if check is not None:
                    check.finish()
                whole = replace(card, bytes=size, parts=(part,), sha256=digest.hexdigest())
                known = self._create_card(whole)
            except BaseException:
                self._remove(path)
                raise
            if known is not whole:
                self._remove(path)
                if not known.is_as_asked(whole):
                    message = "the same key was used before with another file"
                    raise IdempotencyConflict(message, "file")
            return known

        return await self._run(copy)

    async def used_bytes(self, tenant: str) -> int:
        """The size of the tenant's files, with the uploads that this process is receiving."""

        def add_up() -> int:
            known = self._sizes.setdefault(tenant, {})
            names = self._names(self._tenant_folder(tenant))
            for gone in known.keys() - names:
                del known[gone]
            for name in names - known.keys():
                with suppress(NotFound):
                    card = self._read_card(tenant, name)
                    known[name] = (card.bytes, card.expires_at)
            now_s = self._now_s()
            return sum(size for size, until_s in known.values() if not until_s or until_s > now_s)

        return await self._run(add_up) + self._arriving.get(tenant, 0)

    @contextmanager
    def arriving(self, tenant: str, size: int) -> Iterator[None]:
        """Counts an upload of at most `size` bytes while the block runs."""
        self._arriving[tenant] = self._arriving.get(tenant, 0) + size
        try:
            yield
        finally:
            self._arriving[tenant] -= size
            if not self._arriving[tenant]:
                del self._arriving[tenant]

    async def sweep(self) -> int:
        """Delete expired files and parts without a card; gives their number."""

        def remove() -> int:
            removed = 0
            for tenant_folder in filter(_TENANT_FOLDER.match, self._names(self._root)):
                for name in self._names(f"{self._root}/{tenant_folder}"):
                    folder = f"{self._root}/{tenant_folder}/{name}"
                    if self._is_over(folder):
                        self._remove(f"{folder}/meta.json")
                        self._remove(folder)
                        removed += 1
            return removed

        return await self._run(remove)

    async def write_part(self, tenant: str, file_id: str, part: str, data: bytes) -> None:
        """Write a part of a file that has no card yet. Writing it again replaces it."""

        def write() -> None:
            with self._open(f"{self._folder(tenant, file_id)}/{part}", "wb") as target:
                target.write(data)

        await self._run(write)

    async def drop_part(self, tenant: str, file_id: str, part: str) -> None:
        """Delete a part that no record names any more. One that cannot be deleted now is deleted with its file."""
        with suppress(FilesUnavailable):
            await self._run(lambda: self._remove(f"{self._folder(tenant, file_id)}/{part}"))

    async def publish(self, card: FileCard) -> None:
        """Make the parts that `card` names a file."""
        await self._run(lambda: self._write_card(card))

    async def card(self, tenant: str, file_id: str) -> FileCard:
        """The card of the tenant's file. Raises `NotFound`."""
        if not _ID.match(file_id):
            raise NotFound("no such file")
        return await self._run(lambda: self._read_card(tenant, file_id))

    async def cards(self, tenant: str) -> list[FileCard]:
        """All files of a tenant, newest first."""

        def read() -> list[FileCard]:
            found = []
            for name in self._names(self._tenant_folder(tenant)):
                try:
                    found.append(self._read_card(tenant, name))
                except NotFound:
                    continue  # parts of a file that is still being written
            return sorted(found, key=lambda card: (card.created_at, card.id), reverse=True)

        return await self._run(read)

    async def delete(self, card: FileCard) -> None:
        """Delete the file, its card first."""

        def remove() -> None:
            self._remove(self._path(card, "meta.json"))
            self._remove(self._folder(card.tenant, card.id))

        await self._run(remove)

    async def read(self, card: FileCard, start: int, size: int) -> bytes:
        """At most `size` bytes from `start` on; empty at the end. For files with one part."""
        path = self._path(card, card.parts[0])
        end = min(start + size, card.bytes)
        if start >= end:
            return b""
        data: bytes = await self._run(lambda: self._fs.cat_file(path, start=start, end=end))
        return data

    async def pieces(self, card: FileCard) -> AsyncIterator[bytes]:
        """The content in pieces."""
        for part in card.parts:
            path = self._path(card, part)
            source = await self._run(lambda path=path: self._open(path, "rb"))  # type: ignore[misc]
            try:
                while piece := await self._run(lambda source=source: source.read(PIECE_BYTES)):  # type: ignore[misc]
                    yield piece
            finally:
                source.close()

    def _open(self, path: str, mode: str) -> Any:
        if mode == "wb" and isinstance(
            self._fs, LocalFileSystem
        ):  # elsewhere it might make a bucket
            self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        return self._fs.open(path, mode)

    def _write_card(self, card: FileCard) -> None:
        """Written under a temporary name where needed, so that a local file appears completely or not at all."""
        path = self._path(card, "meta.json")
        with self._open(f"{path}.new", "wb") as target:
            target.write(orjson.dumps(asdict(card)))
        self._fs.mv(f"{path}.new", path)

    def _create_card(self, card: FileCard) -> FileCard:
        """Create the card, or give the existing one."""
        path, data = self._path(card, "meta.json"), orjson.dumps(asdict(card))
        try:
            if isinstance(self._fs, LocalFileSystem):
                self._link(path, data)
            else:
                self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            try:
                return self._read_card(card.tenant, card.id)
            except NotFound:  # it has expired
                self._write_card(card)
        return card

    def _link(self, path: str, data: bytes) -> None:
        """Create a local file atomically, and only if it does not exist."""
        written = f"{path}.{secrets.token_hex(4)}"
        with self._open(written, "wb") as target:
            target.write(data)
        try:
            os.link(written, path)
        finally:
            os.unlink(written)

    def _read_card(self, tenant: str, file_id: str) -> FileCard:
        card = parse_card(self._card_bytes(self._folder(tenant, file_id)))
        if card.expires_at and card.expires_at <= self._now_s():
            raise NotFound("no such file")
        return card

    def _card_bytes(self, folder: str) -> bytes:
        try:
            raw: bytes = self._fs.cat_file(f"{folder}/meta.json")
        except FileNotFoundError as error:
            raise NotFound("no such file") from error
        return raw

    def _is_over(self, folder: str) -> bool:
        """True when the files in this folder have expired or have no card."""
        try:
            card = parse_card(self._card_bytes(folder))
        except NotFound:
            parts = [f"{folder}/{name}" for name in self._names(folder)]
            return all(self._age_s(part) > _ABANDONED_S for part in parts or [folder])
        return 0 < card.expires_at <= self._now_s()

    def _age_s(self, path: str) -> float:
        try:
            changed = self._fs.modified(path)
        except FileNotFoundError:
            return 0.0
        return float(self._now_s() - changed.replace(tzinfo=changed.tzinfo or UTC).timestamp())

    def _names(self, folder: str) -> set[str]:
        try:
            listed = self._fs.ls(folder, detail=False, refresh=True)
        except FileNotFoundError:
            return set()
        return {str(path).rstrip("/").rsplit("/", 1)[-1] for path in listed}

    def _remove(self, path: str) -> None:
        """Delete the path if it exists."""
        with suppress(FileNotFoundError):
            self._fs.rm(path, recursive=True)

    def _now_s(self) -> int:
        return self._clock.wall_ms() // 1000

    def _path(self, card: FileCard, name: str) -> str:
        return f"{self._folder(card.tenant, card.id)}/{name}"

    def _folder(self, tenant: str, file_id: str) -> str:
        return f"{self._tenant_folder(tenant)}/{file_id}"

    def _tenant_folder(self, tenant: str) -> str:
        """A tenant's name may contain any character; its digest is a safe folder name."""
        return f"{self._root}/{hashlib.sha256(tenant.encode()).hexdigest()[:24]}"

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise FilesUnavailable("the file storage is unavailable", 5.0) from error


def parse_card(raw: bytes) -> FileCard:
    """The card in a record of this version or another."""
    found = known_fields(FileCard, orjson.loads(raw))
    return FileCard(**found | {"parts": tuple(found["parts"])})

"""Objects below one fsspec URL: a folder, or object storage, for data too large for Redis.

Called by `eventing.store.archive`. An object appears completely or not at all; writing it again replaces it. Must
not know the content.
"""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from eventing.errors import ObjectGone, ObjectsUnavailable

_T = TypeVar("_T")
_UNFINISHED: Final = ".part-"


class ObjectStore:
    """Objects by name. Each call runs in a thread, since fsspec blocks, and raises `ObjectsUnavailable` when the
    storage cannot be written or read.
    """

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)

    async def write(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`. A process that dies meanwhile leaves no object of that name."""
        await self._run(lambda: self._put(name, lambda path: self._fs.pipe_file(path, data)))

    async def write_file(self, name: str, source: str) -> None:
        """Keep the file at `source` under `name`, likewise, without reading it into memory as a whole."""
        await self._run(lambda: self._put(name, lambda path: self._fs.put_file(source, path)))

    def _put(self, name: str, put: Callable[[str], object]) -> None:
        path = f"{self._root}/{name}"
        if not isinstance(self._fs, LocalFileSystem):
            put(path)
            return
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        unfinished = f"{path}{_UNFINISHED}{secrets.token_hex(4)}"
        put(unfinished)
        self._fs.mv(unfinished, path)

    async def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (not included). Raises `ObjectGone` when there is no such object."""

        def read() -> bytes:
            try:
                data: bytes = self._fs.cat_file(f"{self._root}/{name}", start=start, end=end)
            except FileNotFoundError as error:
                raise ObjectGone("what the job gave is not in the object store any more") from error
            return data

        return await self._run(read)

    async def remove(self, name: str) -> None:
        """Delete an object, or a whole folder of them, if it exists."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._fs.rm(f"{self._root}/{name}", recursive=True)

        await self._run(remove)

    async def names(self, folder: str = "") -> list[str]:
        """What is in a folder: objects, unfinished ones too, or the folders at the top."""
        return await self._run(lambda: self._names(f"{self._root}/{folder}".rstrip("/")))

    def _names(self, path: str) -> list[str]:
        try:
            listed: list[Any] = self._fs.ls(path, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(str(one).rstrip("/").rsplit("/", 1)[-1] for one in listed)

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise ObjectsUnavailable("the object store does not work now", 5.0) from error

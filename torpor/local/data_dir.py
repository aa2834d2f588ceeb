"""The folder of a stack: locked by one stack at a time, with a note of its addresses.

Called by the stack (writes) and the command line (reads).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import orjson

from torpor.local.errors import StackError

_ADDRESSES: Final = "addresses.json"
_PRIVATE: Final = ("store", "logs", "files")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Base URLs of a running stack."""

    api: str = ""
    broker: str = ""
    activator: str = ""
    redis: str = ""
    """The store, with its password: the note is readable by its owner only."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder for one stack. The kernel releases the lock when the process dies.

    Raises `StackError` when another stack has it, it cannot be written, or this is not Linux.
    """
    require_linux()
    import fcntl  # imported here, since clients of a remote stack may run on Windows

    try:
        make_private(folder)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise StackError(
            f"cannot write to {folder}: {error.strerror}; choose another --data-dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise StackError(
                f"a stack runs on {folder} already (process {owner}); stop it or use --data-dir"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        record_addresses(folder, None)  # that of a stack that was killed
        yield


def require_linux() -> None:
    """Raises `StackError` where a stack cannot run: its processes end with it by a Linux system call."""
    if sys.platform != "linux":
        raise StackError(
            "a stack runs on Linux only; on Windows or macOS use WSL 2 or a Linux VM, or name a "
            "Torpor elsewhere with --api"
        )


@contextmanager
def private_files() -> Iterator[None]:
    """Files that this process and its children create within the block are accessible to the owner only: they
    contain prompts and answers.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def make_private(folder: Path) -> None:
    """Make the folder accessible to its owner only. An existing folder that is not a stack's keeps its mode; our
    files in it do not.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / "lock").exists():
        folder.chmod(0o700)
    for name in _PRIVATE:
        (folder / name).mkdir(exist_ok=True)
        (folder / name).chmod(0o700)


def record_addresses(folder: Path, addresses: Addresses | None) -> None:
    """Write the stack's addresses; None removes the note. Written atomically."""
    note = folder / _ADDRESSES
    if addresses is None:
        note.unlink(missing_ok=True)
    else:
        draft = folder / f"{_ADDRESSES}.draft"
        draft.write_bytes(orjson.dumps(asdict(addresses)))
        draft.replace(note)


def find_addresses(folder: Path) -> Addresses | None:
    """The addresses of this folder's stack; None when none runs, also where the note of one that was killed is left."""
    with suppress(OSError, orjson.JSONDecodeError, TypeError, AttributeError):
        noted = orjson.loads((folder / _ADDRESSES).read_bytes())
        known = {each.name for each in fields(Addresses)}
        found = Addresses(**{name: text for name, text in noted.items() if name in known})
        return found if owner_of(folder) else None
    return None


def owner_of(folder: Path) -> int:
    """The process id of the stack that has the folder; 0 for none."""
    require_linux()
    import fcntl

    with suppress(OSError, ValueError), (folder / "lock").open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(lock.read())
    return 0

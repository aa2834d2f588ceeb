"""The folder that a stack owns: one stack at a time, and where others find it.

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
    """The store, password included: the note is for its owner only."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one stack. The kernel lets go of it when we die, so a crash never locks
    anybody out.

    Raises `StackError` when another stack has it, it cannot be written, or this is no Linux.
    """
    require_linux()
    import fcntl  # only here: who asks a stack of elsewhere may do so on Windows

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
        yield


def require_linux() -> None:
    """Raises `StackError` where a stack cannot run: its parts end with it by a call of Linux."""
    if sys.platform != "linux":
        raise StackError(
            "a stack runs on Linux only; on Windows or macOS use WSL 2 or a Linux VM, or name a "
            "Torpor elsewhere with --api"
        )


@contextmanager
def private_files() -> Iterator[None]:
    """What is written within the block, by us and by the processes that we start, is for its owner
    only: prompts and answers lie in it.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def make_private(folder: Path) -> None:
    """Make the folder for its owner only. One that was there and is not a stack's keeps its mode;
    what is ours in it does not.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / "lock").exists():
        folder.chmod(0o700)
    for name in _PRIVATE:
        (folder / name).mkdir(exist_ok=True)
        (folder / name).chmod(0o700)


def record_addresses(folder: Path, addresses: Addresses | None) -> None:
    """Say where the stack is reached; None takes the note away. Whoever reads meanwhile sees the
    whole note or none.
    """
    note = folder / _ADDRESSES
    if addresses is None:
        note.unlink(missing_ok=True)
    else:
        draft = folder / f"{_ADDRESSES}.draft"
        draft.write_bytes(orjson.dumps(asdict(addresses)))
        draft.replace(note)


def find_addresses(folder: Path) -> Addresses | None:
    """Where the stack of this folder is reached; None when none runs."""
    with suppress(OSError, orjson.JSONDecodeError, TypeError, AttributeError):
        noted = orjson.loads((folder / _ADDRESSES).read_bytes())
        known = {each.name for each in fields(Addresses)}
        return Addresses(**{name: text for name, text in noted.items() if name in known})
    return None


def owner_of(folder: Path) -> int:
    """The process id of the stack that holds the folder; 0 when none does."""
    require_linux()
    import fcntl

    with suppress(OSError, ValueError), (folder / "lock").open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(lock.read())
    return 0

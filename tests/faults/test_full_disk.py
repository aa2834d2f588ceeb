"""F21: no room for the store's log. Submits are refused, nothing is lost, and it goes on by itself
once there is room again.

The log lies on a tmpfs of 8 MiB where this user may mount one, and a second file takes the rest of
it; where not, the server's files may not grow (EFBIG instead of ENOSPC, the same to a server).
"""

import asyncio
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
import redis

from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.history import Kind
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote

pytestmark = pytest.mark.timeout(600)
_ROOM_BYTES = 8 * 2**20


class Disk(Protocol):
    """Where the store writes, and how it gets full."""

    def fill(self, system: System) -> None: ...

    def free(self, system: System) -> None: ...


class SmallDisk:
    """A tmpfs, and a file on it that takes what is left."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self, _: System) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def free(self, _: System) -> None:
        self._ballast.unlink()


class SizeLimit:
    """No file of the server may grow beyond the log it has."""

    def fill(self, system: System) -> None:
        logs = (system.server.folder / "appendonlydir").glob("*.aof")
        self._limit(system, max(log.stat().st_size for log in logs))

    def free(self, system: System) -> None:
        self._limit(system, resource.RLIM_INFINITY)

    def _limit(self, system: System, size: int) -> None:
        resource.prlimit(system.server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    size = f"size={_ROOM_BYTES}"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True, capture_output=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "redis"
    folder.mkdir()
    mount = _mounted(folder)
    try:
        mount.__enter__()
    except (OSError, subprocess.CalledProcessError):
        yield SizeLimit()
        return
    try:
        yield SmallDisk(folder)
    finally:
        mount.__exit__(None, None, None)


async def takes_writes(system: System) -> bool:
    """The server notices when it flushes its log, and answers what came before."""
    try:
        await system.redis.set("torpor:ping", b"x" * 4096, ex=60)
    except redis.ResponseError as refusal:
        return not str(refusal).startswith("MISCONF")
    return True


async def test_f21_a_full_disk_refuses_submits_loses_nothing_and_comes_back(
    zygote: Zygote, tmp_path: Path, many: int, judge: Judge, server_binary: Path, disk: Disk
) -> None:
    tuning = Tuning(binary=server_binary, tokens_per_s=50, lease_s=2)
    async with running(zygote, tmp_path, tuning) as system:
        server = system.server.pid
        lines = [(body(n), f"before-{n}") for n in range(many)]
        jobs = list(await asyncio.gather(*(system.client.submit(*line) for line in lines)))
        disk.fill(system)
        async with asyncio.timeout(10):
            while await takes_writes(system):
                await asyncio.sleep(0.01)
        system.history.add(Kind.FAULT, "down", what="disk")
        refused = [await system.client.submit_once(body(n), f"while-full-{n}") for n in range(many)]
        disk.free(system)
        system.history.add(Kind.FAULT, "up", what="disk")
        lines = [(body(n), f"after-{n}") for n in range(many)]
        jobs += await asyncio.gather(*(system.client.submit(*line) for line in lines))
        await system.ended(jobs, within_s=60)

        assert refused == [None] * many
        assert system.server.pid == server
        assert system.server.exit_code() is None
        await judge(system, many, of="submits with a full disk")

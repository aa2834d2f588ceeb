"""`torpor up` as a process of its own, as a user starts it, for benches that measure a whole stack.

Called by `bench.api.batch`, `bench.observability.cost`, `bench.one_job` and `bench.saturation`. It
sets nothing that a bench may want to say itself, and knows no figure.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.local.data_dir import Addresses, find_addresses

ROOT: Final = Path(__file__).resolve().parent.parent
_START_WITHIN_S: Final = 120.0
_END_WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack that runs: its supervisor's process, and where its parts answer."""

    pid: int
    at: Addresses


@contextmanager
def torpor_up(
    folder: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    within_s: float = _START_WITHIN_S,
) -> Iterator[Stack]:
    """A stack on `folder` and free ports, ended with the block. What it says is in a file beside the folder."""
    said = folder.with_suffix(".log")
    command = [str(Path(sys.executable).parent / "torpor"), "up", "--data-dir", str(folder)]
    command += ["--port", "0", "--broker-port", "0", *flags]
    said.parent.mkdir(parents=True, exist_ok=True)
    with said.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | (env or {}))
    try:
        yield Stack(process.pid, _wait_for_addresses(folder, process, said, within_s))
    finally:
        process.terminate()
        process.wait(_END_WITHIN_S)


def _wait_for_addresses(
    folder: Path, process: subprocess.Popen[bytes], said: Path, within_s: float
) -> Addresses:
    deadline = time.monotonic() + within_s
    while (found := find_addresses(folder)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the stack did not start: {said.read_text()[-3000:]}")
        time.sleep(0.1)
    return found

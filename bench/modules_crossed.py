"""Which modules of ours run for one job, from submit to result, in each process.

    python -m bench.modules_crossed [--tree FOLDER]

The stack of `bench.peers.peers` (api, broker, one predictor with the test engine). Once it is warm, every function
that is entered while one job goes through is noted by `sys.setprofile`, by the module that it is in. What the
processes do by the clock meanwhile counts too; a second window, as long and without a job, shows what that is.
`--tree` measures another version, in a worktree of it.
"""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

PACKAGES: Final = ("api", "eventing", "predictor", "steps")
_WINDOW_S: Final = 0.5
_HOOK: Final = """
import os, signal, sys, threading
seen = set()
def note(frame, event, argument):
    if event == "call":
        seen.add(frame.f_code.co_filename)
def begin(*_):
    seen.clear()
    threading.setprofile(note)
    sys.setprofile(note)
def end(*_):
    sys.setprofile(None)
    threading.setprofile(None)
    place = os.path.join(os.environ["MODULES_FOLDER"], str(os.getpid()))
    with open(place + ".part", "w") as file:
        file.write("\\n".join(seen))
    os.rename(place + ".part", place)
signal.signal(signal.SIGRTMIN, begin)
signal.signal(signal.SIGRTMIN + 1, end)
"""
"""Runs in every Python that the stack starts."""


async def window(contestant: Any, folder: Path, tree: Path, *, jobs: int) -> dict[str, set[str]]:
    """The modules that ran in each process of the stack, while this many jobs went through one after the other."""
    for pid in contestant.pids.values():
        os.kill(pid, signal.SIGRTMIN)
    began_s = time.monotonic()
    await asyncio.sleep(0.05)
    for _ in range(jobs):
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            await (await session.post(contestant.url, json=contestant.body)).read()
    await asyncio.sleep(max(0.0, began_s + _WINDOW_S - time.monotonic()))
    found = {}
    for name, pid in contestant.pids.items():
        os.kill(pid, signal.SIGRTMIN + 1)
        place = folder / str(pid)
        while not place.exists():
            await asyncio.sleep(0.01)
        found[name] = {
            str(Path(line).relative_to(tree))
            for line in place.read_text().splitlines()
            if line.startswith(tuple(f"{tree}/{package}/" for package in PACKAGES))
        }
        place.unlink()
    return found


def report(found: Mapping[str, set[str]], idle: Mapping[str, set[str]]) -> dict[str, Any]:
    """How many modules ran in each process, and all of them together."""
    every = sorted(set().union(*found.values()))
    return {
        "modules": len(every),
        "by process": {name: len(modules) for name, modules in found.items()},
        "without a job": len(set().union(*idle.values())),
        "by package": {p: sum(m.startswith(f"{p}/") for m in every) for p in PACKAGES},
    }


async def main(tree: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="torpor-modules-"))
    (folder / "sitecustomize.py").write_text(_HOOK)
    os.environ |= {"PYTHONPATH": str(folder), "MODULES_FOLDER": str(folder)}
    from bench.peers.peers import torpor, warm
    from tests.redis_server import RedisServer

    server = RedisServer(folder / "redis")
    server.start()
    try:
        with torpor(server.url, folder) as contestant:
            await warm(contestant)
            await asyncio.sleep(2)
            idle = await window(contestant, folder, tree, jobs=0)
            found = await window(contestant, folder, tree, jobs=1)
        sys.stdout.write(orjson.dumps(report(found, idle), option=orjson.OPT_INDENT_2).decode())
        sys.stdout.write("\n")
    finally:
        server.kill()
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1])
    chosen = parser.parse_args().tree.resolve()
    sys.path.insert(0, str(chosen))
    asyncio.run(main(chosen))

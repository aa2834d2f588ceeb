"""What the store runs for one job, by script and by command.

    python -m bench.store_commands [--clients 1,64] [--jobs 500]

The stack of `bench.peers.peers` (api, broker, one predictor with the test engine) under a closed loop of
clients, with MONITOR on its store. Commands inside scripts count, under the name of their script. What
the processes ask by the clock (renewals, sweeps, metrics) counts too: the fewer a job, the faster they come.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha1
from importlib.resources import files
from pathlib import Path
from typing import Final

import aiohttp

from bench.peers.peers import Contestant, torpor, warm
from eventing.redis import script
from tests.redis_server import RedisServer

Counts = Counter[tuple[str, str]]
"""How often each (script, command) was run; the script is empty for a command sent as it is."""

_BUFFER_BYTES: Final = 64 * 1024 * 1024


def _scripts() -> dict[str, str]:
    """The scripts' names, by digest."""
    names = [
        f.name[:-4] for f in files("eventing.redis.scripts").iterdir() if f.name.endswith(".lua")
    ]
    return {
        sha1(script.source(name).encode(), usedforsecurity=False).hexdigest(): name
        for name in names
        if name != "_lib"
    }


@asynccontextmanager
async def counting(port: int) -> AsyncIterator[Counts]:
    """What the server runs while this is entered; whole when it is left."""
    counts: Counts = Counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_BUFFER_BYTES)
    writer.write(b"MONITOR\r\n")
    await reader.readline()
    counting = asyncio.create_task(_count(reader, counts))
    try:
        yield counts
    finally:
        writer.write(b"QUIT\r\n")
        await counting
        writer.close()
        await writer.wait_closed()


async def _count(reader: asyncio.StreamReader, counts: Counts) -> None:
    """Count until the connection ends. A line is `+<time> [<db> <client>] "<command>" "<argument>" ...`."""
    names, running = _scripts(), ""
    while line := await reader.readline():
        if not line.endswith(b"\r\n") or b"] " not in line:
            continue
        head, _, words = line.partition(b"] ")
        command = words.split(b'"', 2)[1].decode().upper()
        if command == "EVALSHA":
            running = names.get(words.split(b'"', 4)[3].decode(), "?")
        is_inner = head.endswith(b" lua") or command == "EVALSHA"
        counts[running if is_inner else "", command] += 1


async def load(contestant: Contestant, clients: int, jobs: int) -> None:
    """So many jobs, one after the other by each client; anything but a 200 ends the run."""
    left = iter(range(jobs))
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client() -> None:
            for _ in left:
                async with session.post(contestant.url, json=contestant.body) as answer:
                    content = await answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"{answer.status}: {content[:300]!r}")

        await asyncio.gather(*(client() for _ in range(clients)))


def table(counts: Counts, jobs: int) -> str:
    """By script, then by command, most first."""
    scripts: Counter[str] = Counter()
    for (name, _), count in counts.items():
        scripts[name] += count
    lines = [f"{'script':16} {'a job':>7}  commands"]
    for name, count in scripts.most_common():
        inner = Counter({command: n for (of, command), n in counts.items() if of == name})
        each = ", ".join(f"{command} {n / jobs:.2f}" for command, n in inner.most_common())
        lines.append(f"{name or '(no script)':16} {count / jobs:7.2f}  {each}")
    lines.append(f"{'together':16} {counts.total() / jobs:7.2f}")
    return "\n".join(lines) + "\n"


async def main(clients: list[int], jobs: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="torpor-commands-"))
    server = RedisServer(
        folder / "redis", options=["--appendonly", "yes", "--appendfsync", "everysec"]
    )
    server.start()
    try:
        with torpor(server.url, folder) as contestant:
            await warm(contestant)
            for count in clients:
                async with counting(server.port) as counts:
                    await load(contestant, count, jobs)
                sys.stdout.write(f"{count} clients, {jobs} jobs\n{table(counts, jobs)}\n")
    finally:
        server.kill()
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="1,64")
    parser.add_argument("--jobs", type=int, default=500)
    chosen = parser.parse_args()
    asyncio.run(main([int(each) for each in chosen.clients.split(",")], chosen.jobs))

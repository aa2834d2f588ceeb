"""How fast a kept answer is, and that equal calls at once are generated once.

    python -m bench.exact_cache [--calls 500] [--tokens 20,1000] [--at-once 1000] [--json cache.json]

The stack of `bench.peers.peers` (api, broker, one predictor with the test engine). One client asks the same call
again and again with `Cache-Control: max-age=3600`, whole and streamed; the first call is not timed. Then as many equal
calls as asked for come at once, of another prompt. Aim: a hit's p50 at most 5 ms, one generation.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.peers.peers import Contestant, torpor, warm
from bench.report import machine, publish, quantile
from tests.redis_server import RedisServer

ACCEPTING: Final = {"Cache-Control": "max-age=3600"}


async def ask(
    session: aiohttp.ClientSession, contestant: Contestant, body: dict[str, Any]
) -> tuple[float, str, str]:
    """Milliseconds that one call took, how the cache served it, and what it says. A 503 is asked again, as SDKs do."""
    began_s = time.perf_counter()
    while True:
        async with session.post(contestant.url, json=body, headers=ACCEPTING) as answer:
            text = await answer.text()
            if answer.status == 200:
                took_ms = 1000 * (time.perf_counter() - began_s)
                return took_ms, answer.headers["cache-status"], text
            if answer.status != 503:
                raise RuntimeError(f"{answer.status}: {text[:300]}")
        await asyncio.sleep(0.2)


def body_of(contestant: Contestant, prompt: str, tokens: int) -> dict[str, Any]:
    own = {"prompt": prompt, "max_tokens": tokens, "seeded": {"output_tokens": tokens}}
    return contestant.body | own


async def hits(contestant: Contestant, tokens: int, calls: int, *, stream: bool) -> dict[str, Any]:
    """The times of a kept answer of so many tokens, one call after the other."""
    body = body_of(contestant, f"again {tokens}", tokens) | {"stream": stream}
    async with aiohttp.ClientSession() as session:
        first_ms, _, _ = await ask(session, contestant, body)
        took_ms = []
        for _ in range(calls):
            each_ms, status, _ = await ask(session, contestant, body)
            if "; hit;" not in status:
                raise RuntimeError(f"no hit: {status}")
            took_ms.append(each_ms)
    return {
        "tokens": tokens,
        "stream": stream,
        "calls": calls,
        "first_ms": round(first_ms, 2),
        "p50_ms": round(quantile(took_ms, 0.5), 2),
        "p99_ms": round(quantile(took_ms, 0.99), 2),
    }


async def at_once(contestant: Contestant, calls: int) -> dict[str, Any]:
    """Equal calls at the same time: how many were generated, and how long until the last was answered."""
    body = body_of(contestant, "at once", 200)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=calls)) as session:
        began_s = time.perf_counter()
        answers = await asyncio.gather(*(ask(session, contestant, body) for _ in range(calls)))
        took_s = time.perf_counter() - began_s
    statuses = [status for _, status, _ in answers]
    return {
        "calls": calls,
        "generated": sum("fwd=" in status for status in statuses),
        "coalesced": sum("coalesced" in status for status in statuses),
        "exact": sum("exact" in status for status in statuses),
        "seconds": round(took_s, 2),
    }


async def main(calls: int, tokens: list[int], together: int, path: Path | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="torpor-cache-"))
    server = RedisServer(
        folder / "redis", options=["--appendonly", "yes", "--appendfsync", "everysec"]
    )
    server.start()
    try:
        with torpor(server.url, folder) as contestant:
            await warm(contestant)
            rows = [
                await hits(contestant, count, calls, stream=stream)
                for count in tokens
                for stream in (False, True)
            ]
            burst = await at_once(contestant, together)
        publish({"machine": machine(), "hits": rows, "at_once": burst}, path)
    finally:
        server.kill()
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--tokens", default="20,1000")
    parser.add_argument("--at-once", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    sizes = [int(each) for each in chosen.tokens.split(",")]
    asyncio.run(main(chosen.calls, sizes, chosen.at_once, chosen.json))

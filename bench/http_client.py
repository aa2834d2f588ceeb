"""What one outgoing call costs: aiohttp against httpx, a small POST over a kept connection, in CPU
time of the caller.

`python -m bench.http_client`. The server is a process of its own, so that only the client's work is
counted. Ratios within one run count.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import httpx

CALLS = 2000
BODY = b'{"url":"/v1/completions","body":{"model":"m","prompt":"x"}}'
SERVER = """
import uvicorn
async def app(scope, receive, send):
    if scope["type"] == "http":
        head = {"status": 202, "headers": [(b"content-length", b"0")]}
        await send({"type": "http.response.start", **head})
        await send({"type": "http.response.body", "body": b""})
uvicorn.run(app, port=18099, log_level="critical")
"""
URL = "http://127.0.0.1:18099/"


async def cpu_us(call: Callable[[], Awaitable[object]]) -> float:
    for _ in range(100):
        await call()
    began = time.process_time()
    for _ in range(CALLS):
        await call()
    return (time.process_time() - began) / CALLS * 1e6


async def measure() -> None:
    async with aiohttp.ClientSession() as a, httpx.AsyncClient() as h:

        async def by_aiohttp() -> None:
            async with a.post(URL, data=BODY):
                pass

        async def by_httpx() -> None:
            await h.post(URL, content=BODY)

        ours, theirs = await cpu_us(by_aiohttp), await cpu_us(by_httpx)
    print(f"aiohttp {ours:.0f} us, httpx {theirs:.0f} us a call: {ours / theirs:.2f}")


def main() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER])
    try:
        time.sleep(2)
        asyncio.run(measure())
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    main()

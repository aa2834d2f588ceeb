"""The helpers of `bench/api_load.py` that run as processes of their own: a broker that confirms at
once, and a writer of tokens.
"""

import asyncio
import json
import sys
import time

import uvloop
from redis.asyncio import Redis

CONFIRMED = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"


class Broker(asyncio.Protocol):
    """Confirms each request as soon as its body is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._got = b""

    def data_received(self, data: bytes) -> None:
        self._got += data
        while (head := self._got.find(b"\r\n\r\n")) >= 0:
            lower = self._got[:head].lower()
            length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            if len(self._got) < head + 4 + length:
                return
            self._got = self._got[head + 4 + length :]
            self._transport.write(CONFIRMED)  # type: ignore[attr-defined]


async def broker(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Broker, "127.0.0.1", port)
    await server.serve_forever()


async def writer(redis_url: str, per_second: float, seconds: float) -> None:
    """Tokens for all jobs, evenly spread over time; each says when it was written."""
    job_ids = json.load(sys.stdin)
    redis = Redis.from_url(redis_url)
    ticks_per_second = 100
    total = int(seconds * ticks_per_second)
    step = len(job_ids) * per_second / ticks_per_second
    started_s = time.perf_counter()
    written = 0.0
    for tick in range(total):
        wait_s = started_s + tick / ticks_per_second - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        upto = (tick + 1) * step
        async with redis.pipeline(transaction=False) as pipe:
            while written < upto:
                number = int(written)
                job_id = job_ids[number % len(job_ids)]
                delta = f'[{{"index":0,"delta":{{"content":"{time.time_ns()}"}}}}]'
                index = number // len(job_ids)
                fields = {"kind": "tokens", "attempt": 1, "index": index, "ids": 7, "delta": delta}
                pipe.xadd(f"torpor:{{{job_id}}}:tokens", fields)  # type: ignore[arg-type]
                written += 1
            await pipe.execute()
    await redis.aclose()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["broker", port]:
            uvloop.run(broker(int(port)))
        case ["writer", url, per_second, seconds]:
            uvloop.run(writer(url, float(per_second), float(seconds)))

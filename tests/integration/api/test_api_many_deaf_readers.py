"""A tenant's readers that take nothing, as many as want to: the process answers everybody else."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from eventing.job.job import JobId, new_job_id, parse_request
from eventing.job.store import NewJob
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import FakePredictor
from tests.redis_server import free_port

READERS: Final = 3_000
LIMIT: Final = 2_000
"""The default of `TORPOR_LIMIT_OPEN_STREAMS`."""


@asynccontextmanager
async def api_process(redis_url: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """`python -m api`, and a client of it."""
    port = free_port()
    env = os.environ | {
        "TORPOR_REDIS_URL": redis_url,
        "TORPOR_PORT": str(port),
        "TORPOR_BROKER_URL": "http://127.0.0.1:9/",
        "TORPOR_KEYS_SOURCE": "redis",
        "TORPOR_STORE_TIMEOUT_S": "30",
        "TORPOR_FILES_URL": f"file://{folder}",
        "TORPOR_MODELS": '[{"name": "m"}]',
    }
    process = subprocess.Popen([sys.executable, "-m", "api"], env=env)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            async with asyncio.timeout(30):
                while not await is_ready(client):
                    await asyncio.sleep(0.05)
            yield client
    finally:
        process.kill()
        process.wait(60)


async def is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def deaf(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> socket.socket:
    """A connection that asks for a stream and never reads; it can hold little."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(made, (client.base_url.host, client.base_url.port))
    head = f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: {headers['authorization']}\r\n\r\n"
    await loop.sock_sendall(made, head.encode())
    return made


def status_of(reader: socket.socket) -> str:
    """What it was answered; nothing is taken out."""
    try:
        return reader.recv(12, socket.MSG_PEEK)[9:12].decode()
    except BlockingIOError:
        return ""


async def test_three_thousand_deaf_readers_of_one_tenant_silence_nobody(
    redis_url: str,
    redis: Redis,
    store: RedisStore,
    acme: dict[str, str],
    other: dict[str, str],
    tmp_path: Path,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < READERS + 500:
        pytest.skip(f"{READERS} connections need more files than {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, READERS + 500), hard))
    job = NewJob(
        id=new_job_id(),
        request=parse_request(orjson.dumps(chat_line())),
        source="/tests",
        event_id="1",
        tenant="acme",
    )
    await store.submit(job)
    predictor = await FakePredictor(store, JobId(job.id)).start()
    readers: list[socket.socket] = []
    async with api_process(redis_url, tmp_path) as client:
        try:
            for _ in range(READERS // 100):
                path = f"/v1/jobs/{job.id}/events"
                readers += await asyncio.gather(*(deaf(client, path, acme) for _ in range(100)))
            async with asyncio.timeout(60):
                while "" in (seen := Counter(map(status_of, readers))):
                    await asyncio.sleep(0.1)
            for number in range(300):
                await predictor.chat("x" * 1000)
                if number % 30 == 0:
                    assert (await client.get("/healthz")).status_code == 200
                    assert (await client.get("/v1/jobs", headers=other)).status_code == 200
        finally:
            for reader in readers:
                reader.close()

    assert seen == {"200": LIMIT, "429": READERS - LIMIT}

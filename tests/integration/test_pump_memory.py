"""What a pump's process holds while large events are under way: bounded, however many wait."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from aiohttp import web
from redis.asyncio import Redis

from eventing.broker.queue.queue import Queue
from eventing.cloudevent.event import Event
from eventing.job.job import Lane
from eventing.redis import keys
from eventing.redis.connection import connect
from tests.contract.broker.stack import Subscriber, until

NAME: Final = "requests-m"
EVENTS: Final = 20
LARGEST: Final = 8 * 1024 * 1024
LIMIT_MIB: Final = 256
"""The broker's memory limit in `manifests/components/queue`."""


@asynccontextmanager
async def pump(folder: Path, redis_url: str, subscriber: str) -> AsyncIterator[int]:
    """The process id of a pump that may deliver all of them at once."""
    triggers = folder / "triggers.yaml"
    triggers.write_text(
        "apiVersion: eventing.knative.dev/v1\nkind: Trigger\n"
        f"metadata: {{name: {NAME}, annotations: {{torpor.dev/parallelism: '100'}}}}\n"
        f"spec: {{subscriber: {{uri: '{subscriber}'}}}}\n"
    )
    env = os.environ | {
        "TORPOR_REDIS_URL": redis_url,
        "TORPOR_TRIGGERS_FILE": str(triggers),
        "TORPOR_STORE_TIMEOUT_S": "30",
    }
    process = subprocess.Popen([sys.executable, "-m", "eventing.pump"], env=env)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait(60)


def peak_mib(pid: int) -> int:
    """The most memory that the process has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


async def test_twenty_events_of_eight_mebibytes_fit_into_a_small_pod(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    patient = connect(redis_url, timeout_s=30)
    queue = Queue(patient, NAME, "test")
    await queue.ensure()
    large = Event(id="", source="/s", type="t", data=os.urandom(LARGEST))
    for number in range(EVENTS):
        event = replace(large, id=str(number))
        await queue.send([queue.put_call(event, lane=Lane.DEFAULT, tenant="")])
    await patient.aclose()
    answer, waiting = asyncio.Event(), 0

    async def holds(_: web.Request, __: int) -> web.Response:
        nonlocal waiting
        waiting += 1
        await answer.wait()
        return web.Response(status=204)

    async def has_all_it_takes() -> bool:
        pending = (await redis.xpending(keys.queue(NAME, "tickets"), keys.GROUP))["pending"]
        return 0 < pending == waiting

    async def is_drained() -> bool:
        return not await redis.hlen(keys.queue(NAME, "events"))

    async with (
        Subscriber([holds]).serving() as subscriber,
        pump(tmp_path, redis_url, subscriber.url) as pid,
    ):
        await until(has_all_it_takes, timeout_s=120)
        answer.set()
        await until(is_drained, timeout_s=120)

        assert len(subscriber.got) == EVENTS
        assert peak_mib(pid) < LIMIT_MIB

"""F19: readers of live tokens that stop reading, against a real api, store and predictor."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import orjson
import psutil  # type: ignore[import-untyped]
import pytest
from redis.asyncio import Redis

from eventing.cloudevent.job_event import job_of
from eventing.job.job import JobId
from eventing.job.store import TokenBatch
from eventing.store.redis_store import RedisStore
from tests import time_limits
from tests.contract.rig import append
from tests.integration.predictor_process import PredictorProcess, predictors
from tests.redis_server import die_with_parent, free_port
from tests.unit.predictor.harness import asking, job_id_of

READERS = 20
ENTRY = orjson.dumps([{"index": 0, "delta": {"content": "x" * 4000}}]).decode()
ENTRIES = 600  #: 2.4 MB: more than the sockets' and the api's buffers hold together


@dataclass(slots=True)
class Api:
    """`python -m api`."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def rss_mib(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / (1 << 20)

    def reader(self, job_id: JobId, after: str = "") -> socket.socket:
        """A client that asks for a job's events; what it reads is up to the test."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.settimeout(20)
        made.connect(("127.0.0.1", self.port))
        head = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        head += "Connection: close\r\n"
        head += f"Last-Event-ID: {after}\r\n" if after else ""
        made.sendall(f"{head}\r\n".encode("ascii"))
        return made


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("api")
    port = free_port()
    environment = {
        **time_limits.ENVIRONMENT,
        "TORPOR_PORT": str(port),
        "TORPOR_ANONYMOUS_ACCESS": "loopback",
        "TORPOR_REDIS_URL": redis_url,
        "TORPOR_BROKER_URL": "http://127.0.0.1:9/",
        "TORPOR_MODELS": '[{"name": "seeded", "context_tokens": 4096}]',
        "TORPOR_FILES_URL": f"file://{folder}/files",
    }
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api"],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    deadline = time.monotonic() + 40
    while not _is_alive(port):
        assert process.poll() is None, (folder / "api.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield Api(port, process)
    process.kill()
    process.wait(60)


def _is_alive(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


async def test_readers_that_stop_do_not_slow_generation(
    tmp_path: Path, api: Api, redis: Redis, redis_url: str
) -> None:
    with predictors(tmp_path, 1, TORPOR_REDIS_URL=redis_url) as (predictor,):
        alone_s = await seconds_of(predictor, "alone", api, readers=0)
        for number in range(5):  # a machine that stands still makes one slow, readers all
            beset_s = await seconds_of(predictor, f"beset-{number}", api, readers=READERS)
            if beset_s < 1.05 * alone_s:
                break

    assert beset_s < 1.05 * alone_s


async def seconds_of(predictor: PredictorProcess, name: str, api: Api, *, readers: int) -> float:
    """How long an answer takes whose readers take nothing of it."""
    event = asking(event_id=name, seeded={"output_tokens": 400, "tokens_per_s": 200})
    began = time.monotonic()
    with ExitStack() as stack:
        delivery = asyncio.ensure_future(predictor.deliver(event))
        for _ in range(readers):
            stack.enter_context(closing(api.reader(job_id_of(event))))
        answer = await delivery
    assert len(answer.text.split()) == 400
    return time.monotonic() - began


async def test_a_reader_that_stops_costs_little_is_cut_off_and_can_go_on(
    api: Api, redis: Redis, store: RedisStore
) -> None:
    job, _ = await store.submit(job_of(asking(event_id="flood")))
    lease = (await store.acquire(job.id, "p", can_resume=True)).lease
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(api.reader(job.id))) for _ in range(READERS)]
        for reader in readers:
            assert b"attempt" in await received(reader, until=b"event: attempt")
        stuck = readers[0]
        await asyncio.sleep(1)  # nothing tells that they have gone over to the live tail
        before_mib = api.rss_mib
        for index in range(ENTRIES):
            await append(store, lease, TokenBatch(index=index, token_ids=(1,), delta=ENTRY))
        cost_mib = (api.rss_mib - before_mib) / READERS
        seen = await received(stuck)  # until the api has hung up
    last = seen.rsplit(b"\nid: ", 1)[1].split(b"\n")[0].decode()
    with closing(api.reader(job.id, after=last)) as again:
        rest = await received(again, until=f'"index":{ENTRIES - 1},'.encode())

    assert cost_mib < 1
    assert b"too slow" in seen
    indices = [int(part.split(b",")[0]) for part in (seen + rest).split(b'"index":')[1:]]
    tokens = [n for n in indices if n]  # each choice has an index of 0
    assert tokens == list(range(1, ENTRIES))


async def received(reader: socket.socket, until: bytes = b"never") -> bytes:
    """What comes until those bytes, or the end."""
    found = b""
    while until not in found[-70_000:] and (part := await asyncio.to_thread(reader.recv, 65536)):
        found += part
    return found

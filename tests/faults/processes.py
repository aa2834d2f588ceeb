"""The real processes of one system under fault: store, broker, api, predictors, and proxies between
any two of them. Everything on the loopback, everything gone with the test.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from redis.asyncio import Redis

from eventing.broker.queue import QueueView
from eventing.job.job import JobId
from eventing.job.store import LeaseSettings
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.faults.client import Client
from tests.faults.dump import StoreDump, dump
from tests.faults.history import History, Kind
from tests.faults.proxy import Proxy
from tests.redis_server import VALKEY, RedisServer, die_with_parent, free_port

QUEUE: Final = "requests-seeded"
TENANT: Final = "default"
_READY_WITHIN_S: Final = 20.0
_ROOT: Final = Path(__file__).parents[2]


class Zygote:
    """Forks our programs (see `zygote.py`)."""

    def __init__(self, folder: Path) -> None:
        with (folder / "zygote.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.zygote"],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=die_with_parent,
                env=os.environ | {"PYTHONWARNINGS": "ignore"},
            )

    def fork(self, module: str, **order: Any) -> int:
        """The pid of a new process that runs `module`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"module": module} | order), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def zygote_in(folder: Path) -> Iterator[Zygote]:
    made = Zygote(folder)
    try:
        yield made
    finally:
        made.close()


@dataclass(eq=False)
class Program:
    """One of our processes: started, killed and started again on the same port and settings."""

    zygote: Zygote
    module: str
    name: str
    folder: Path
    env: dict[str, str]
    health: str
    argv: tuple[str, ...] = ()
    skew: tuple[tuple[float, float], ...] = ()
    pid: int = 0

    def start(self) -> None:
        self.pid = self.zygote.fork(
            self.module,
            argv=self.argv,
            env={"PATH": os.environ["PATH"], "PYTHONWARNINGS": "ignore"} | self.env,
            log=str(self.log),
            skew=self.skew,
        )

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        return self.pid > 0

    def signal(self, number: int) -> None:
        """Send a signal; one that has gone already does not mind."""
        if self.is_alive:
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        self.signal(signal.SIGKILL)
        await self.gone()

    async def gone(self, timeout_s: float = 20.0) -> None:
        """Return when it has ended. Fails with what its tasks wait for when it does not."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.is_alive:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            self.signal(signal.SIGUSR2)
            await asyncio.sleep(0.5)
            pytest.fail(f"{self.name} does not end: {self.log.read_text()[-6000:]}")

    async def ready(self) -> None:
        """Return once it says that it is."""
        async with asyncio.timeout(_READY_WITHIN_S), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(self.health) as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    self.must_live()
                await asyncio.sleep(0.01)

    def must_live(self) -> None:
        """Fail with its last words when it has ended by itself: whatever else goes wrong then
        follows from that.
        """
        assert self.is_alive, f"{self.name} ended: {self.log.read_text()[-2000:]}"

    async def restart(self) -> None:
        await self.kill()
        self.start()
        await self.ready()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What differs between runs. Short times, so that a lease lapses within a trial."""

    lease_s: float = 1.0
    max_attempts: int = 3
    tokens_per_s: float = 400.0
    delivery_timeout: str = "PT10S"
    parallelism: int = 32
    retry: int = 1000
    sink: str = ""
    flush_ms: int = 20
    puts_itself: bool = False
    """The api puts events into the queues itself, not through the broker (docs/adr/0140)."""
    api_env: tuple[tuple[str, str], ...] = ()
    binary: Path = VALKEY
    redis_options: tuple[str, ...] = ("--appendonly", "yes", "--appendfsync", "everysec")


@dataclass(eq=False)
class System:
    """Store, broker, api and predictors with a proxy on every link."""

    zygote: Zygote
    folder: Path
    tuning: Tuning
    history: History
    server: RedisServer
    api_redis: Proxy
    broker_redis: Proxy
    predictor_redis: Proxy
    api_broker: Proxy
    delivery: Proxy
    api: Program
    broker: Program
    predictor: Program
    predictors: list[Program] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.redis: Redis = connect(self.server.url, timeout_s=5)
        lease = LeaseSettings(
            lease_ms=int(self.tuning.lease_s * 1000), max_attempts=self.tuning.max_attempts
        )
        self.store = RedisStore(self.redis, lease)
        self.client = Client(self.history, self.api.health.removesuffix("/healthz"))

    @property
    def proxies(self) -> tuple[Proxy, ...]:
        links = (self.api_redis, self.broker_redis, self.predictor_redis)
        return (*links, self.api_broker, self.delivery)

    def new_predictor(self, name: str, *, skew: Sequence[tuple[float, float]] = ()) -> Program:
        """Another predictor, not started; deliveries go to it once `delivery.target` is its."""
        made = _predictor(
            self.zygote, self.folder, self.tuning, self.predictor_redis.port, name, tuple(skew)
        )
        self.predictors.append(made)
        return made

    def new_api(self, name: str) -> Program:
        """Another api, not started, on the same links. Whoever makes it, ends it."""
        return _api(
            self.zygote, self.folder, self.tuning, self.api_redis.port, self.api_broker.port, name
        )

    def deliver_to(self, predictor: Program) -> None:
        self.delivery.target = port_of(predictor)

    async def started(self, job_ids: Iterable[str]) -> None:
        """Return when an attempt of each has been started."""
        waited_for = list(job_ids)
        async with asyncio.timeout(_READY_WITHIN_S):
            while not all(await self._fields(waited_for, "started_ms")):
                await asyncio.sleep(0.02)

    async def token_counts(self, job_ids: Sequence[str]) -> list[int]:
        """How many tokens of each are checkpointed."""
        return [int(count or 0) for count in await self._fields(job_ids, "token_count")]

    async def _fields(self, job_ids: Sequence[str], name: str) -> list[bytes | None]:
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(keys.job(JobId(job_id)), name)
            return list(await pipe.execute())

    async def ended(self, job_ids: Sequence[str], *, within_s: float) -> None:
        """Return when all these have ended and the queue is empty, or the time is over: the checker
        says what is missing.
        """
        try:
            async with asyncio.timeout(within_s):
                while await self._is_busy(job_ids):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return

    async def _is_busy(self, job_ids: Sequence[str]) -> bool:
        states = await self._fields(job_ids, "state")
        depth = await QueueView(self.redis).depth(QUEUE)
        return bool(
            {b"queued", b"in_progress"} & set(states) or depth.pending or depth.total_waiting
        )

    async def dumped(self) -> StoreDump:
        """The store now; what it says of states goes into the history too."""
        found = await dump(self.redis, QUEUE, TENANT)
        for job_id, job in found.jobs.items():
            self.history.add(Kind.SEEN, "state", job_id=job_id, state=job.state)
        return found

    def look_for(self, *canaries: str) -> None:
        """Search every log for what must not be there (I11)."""
        for log in self.folder.glob("*.log"):
            text = log.read_text(errors="replace")
            for canary in canaries:
                if canary in text:
                    self.history.add(Kind.SEEN, "canary", where=log.name)


def port_of(program: Program) -> int:
    return int(program.health.split(":")[2].split("/")[0])


@asynccontextmanager
async def running(
    zygote: Zygote, folder: Path, tuning: Tuning | None = None
) -> AsyncIterator[System]:
    """A whole system, ready."""
    tuning = tuning or Tuning()
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder / "redis", binary=tuning.binary, options=tuning.redis_options)
    server.start()
    programs: list[Program] = []
    async with AsyncExitStack() as stack:
        stack.callback(server.kill)
        links = [Proxy(server.port) for _ in range(3)]
        api_broker, delivery = Proxy(0), Proxy(0)
        for link in (*links, api_broker, delivery):
            await stack.enter_async_context(link.serving())
        broker = _broker(zygote, folder, tuning, links[1].port, delivery.port)
        api = _api(zygote, folder, tuning, links[0].port, api_broker.port)
        predictor = _predictor(zygote, folder, tuning, links[2].port, "predictor", ())
        api_broker.target, delivery.target = port_of(broker), port_of(predictor)
        system = System(
            zygote,
            folder,
            tuning,
            History(folder / "history.jsonl"),
            server,
            links[0],
            links[1],
            links[2],
            api_broker,
            delivery,
            api,
            broker,
            predictor,
            [predictor],
        )
        programs = [api, broker, predictor]
        try:
            for program in programs:
                program.start()
            await asyncio.gather(*(program.ready() for program in programs))
            for program in programs:
                program.must_live()  # or somebody else is ready on its port
            yield system
        finally:
            for program in {*programs, *system.predictors}:
                program.signal(signal.SIGKILL)
            await system.client.close()
            await system.redis.aclose()


def _api(
    zygote: Zygote,
    folder: Path,
    tuning: Tuning,
    redis_port: int,
    broker_port: int,
    name: str = "api",
) -> Program:
    port = free_port()
    env = {
        "TORPOR_ANONYMOUS_ACCESS": "loopback",
        "TORPOR_PORT": str(port),
        "TORPOR_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "TORPOR_BROKER_URL": f"http://127.0.0.1:{broker_port}/",
        "TORPOR_MODELS": '[{"name": "seeded", "context_tokens": 4096}]',
        "TORPOR_FILES_URL": f"file://{folder}/files",
        "TORPOR_SWEEP_EVERY_S": "1",
    } | dict(tuning.api_env)
    if tuning.puts_itself:
        env["TORPOR_QUEUE_TRIGGERS_FILE"] = str(folder / "triggers.yaml")
    return Program(zygote, "api.__main__", name, folder, env, f"http://127.0.0.1:{port}/healthz")


def _broker(
    zygote: Zygote, folder: Path, tuning: Tuning, redis_port: int, delivery_port: int
) -> Program:
    port = free_port()
    (folder / "triggers.yaml").write_text(_trigger(tuning, delivery_port))
    env = {
        "TORPOR_PORT": str(port),
        "TORPOR_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "TORPOR_TRIGGERS_FILE": str(folder / "triggers.yaml"),
    }
    health = f"http://127.0.0.1:{port}/readyz"
    return Program(zygote, "eventing.broker.__main__", "broker", folder, env, health)


def _trigger(tuning: Tuning, delivery_port: int) -> str:
    delivery: dict[str, Any] = {
        "retry": tuning.retry,
        "backoffPolicy": "linear",
        "backoffDelay": "PT0.02S",
        "timeout": tuning.delivery_timeout,
        "retryAfterMax": "PT0.2S",
    }
    if tuning.sink:
        delivery["deadLetterSink"] = {"uri": tuning.sink}
    return json.dumps(
        {
            "apiVersion": "eventing.knative.dev/v1",
            "kind": "Trigger",
            "metadata": {
                "name": QUEUE,
                "annotations": {"torpor.dev/parallelism": str(tuning.parallelism)},
            },
            "spec": {
                "broker": "default",
                "filters": [{"exact": {"type": "dev.torpor.inference.requested.v1"}}],
                "subscriber": {"uri": f"http://127.0.0.1:{delivery_port}/"},
                "delivery": delivery,
            },
        }
    )


def _predictor(
    zygote: Zygote,
    folder: Path,
    tuning: Tuning,
    redis_port: int,
    name: str,
    skew: tuple[tuple[float, float], ...],
) -> Program:
    port = free_port()
    env = {
        "TORPOR_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "TORPOR_LEASE_S": str(tuning.lease_s),
        "TORPOR_MAX_ATTEMPTS": str(tuning.max_attempts),
        "TORPOR_SEEDED_TOKENS_PER_S": str(tuning.tokens_per_s),
        "TORPOR_SEEDED_PREFILL_TOKENS_PER_S": "0",
        "TORPOR_SEEDED_MAX_CONCURRENCY": "64",
        "TORPOR_FLUSH_MS": str(tuning.flush_ms),
        "TORPOR_WATCH_MS": "100",
        "TORPOR_DRAIN_GRACE_S": "2",
    }
    where = ("--http_port", str(port), "--host", "127.0.0.1")
    argv = ("--engine", "seeded", *where, "--replica-id", name)
    health = f"http://127.0.0.1:{port}/v2/health/ready"
    return Program(zygote, "predictor.__main__", name, folder, env, health, argv, skew)

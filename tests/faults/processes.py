"""The real processes of one system under fault: store, broker, api and predictors, and proxies between
any two of them. Everything on the loopback, everything gone with the test.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from eventing.broker.queue.view import QueueView
from eventing.job.job import JobId
from eventing.job.store import LeaseSettings
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.faults import programs
from tests.faults.client import Client
from tests.faults.dump import StoreDump, dump
from tests.faults.history import History, Kind
from tests.faults.programs import QUEUE, READY_WITHIN_S, Program, Tuning, Zygote, port_of
from tests.faults.proxy import Proxy
from tests.redis_server import RedisServer
from tests.time_limits import STORE_S

TENANT: Final = "default"
_LOOKED_AT: Final = 500


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
    steps_redis: Proxy = field(default_factory=lambda: Proxy(0))
    steps_delivery: Proxy = field(default_factory=lambda: Proxy(0))
    steps: Program | None = None

    def __post_init__(self) -> None:
        self.look_at(self.server.url)
        self.client = Client(self.history, self.api.health.removesuffix("/healthz"))

    def look_at(self, url: str) -> None:
        """Read the store at `url` from now on."""
        self.redis: Redis = connect(url, timeout_s=STORE_S)
        lease = LeaseSettings(
            lease_ms=int(self.tuning.lease_s * 1000), max_attempts=self.tuning.max_attempts
        )
        self.store = RedisStore(self.redis, lease)

    async def fail_over_to(self, server: RedisServer) -> None:
        """Everybody is led to another server from now on."""
        await self.redis.aclose()
        self.server = server
        self.look_at(server.url)
        for link in (self.api_redis, self.broker_redis, self.predictor_redis):
            link.target = server.port
            link.cut()

    @property
    def proxies(self) -> tuple[Proxy, ...]:
        links = (self.api_redis, self.broker_redis, self.predictor_redis)
        return (*links, self.api_broker, self.delivery)

    def new_predictor(self, name: str, *, skew: Sequence[tuple[float, float]] = ()) -> Program:
        """Another predictor, not started; deliveries go to it once `delivery.target` is its."""
        made = programs.new_predictor(
            self.zygote, self.folder, self.tuning, self.predictor_redis.port, name, tuple(skew)
        )
        self.predictors.append(made)
        return made

    def new_api(self, name: str) -> Program:
        """Another api, not started, on the same links. Whoever makes it, ends it."""
        return programs.new_api(
            self.zygote, self.folder, self.tuning, self.api_redis.port, self.api_broker.port, name
        )

    def new_broker(self, name: str) -> Program:
        """Another broker, not started, on the same links. Whoever makes it, ends it."""
        return programs.new_broker(
            self.zygote, self.folder, self.tuning, self.broker_redis.port, self.delivery.port, name
        )

    def deliver_to(self, predictor: Program) -> None:
        self.delivery.target = port_of(predictor)

    async def started(self, job_ids: Iterable[str]) -> None:
        """Return when an attempt of each has been started."""
        waited_for = list(job_ids)
        async with asyncio.timeout(READY_WITHIN_S):
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
        says what is missing. Each look reads a part of the jobs: this process is also the proxies
        of the store, and one that is busy for a second is to its sentinels a store that is dead.
        """
        still_open = list(job_ids)
        try:
            async with asyncio.timeout(within_s):
                while still_open or await self._is_queue_busy():
                    looked_at, rest = still_open[-_LOOKED_AT:], still_open[:-_LOOKED_AT]
                    states = await self._fields(looked_at, "state")
                    found = [
                        job_id
                        for job_id, state in zip(looked_at, states, strict=True)
                        if state in {b"queued", b"in_progress"}
                    ]
                    still_open = rest + found
                    if found or not still_open:
                        await asyncio.sleep(0.05)
        except TimeoutError:
            return

    async def _is_queue_busy(self) -> bool:
        depth = await QueueView(self.redis).depth(QUEUE)
        return bool(depth.pending or depth.total_waiting)

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


@asynccontextmanager
async def running(
    zygote: Zygote, folder: Path, tuning: Tuning | None = None
) -> AsyncIterator[System]:
    """A whole system, ready."""
    tuning = tuning or Tuning()
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder / "redis", binary=tuning.binary, options=tuning.redis_options)
    server.start()

    async with AsyncExitStack() as stack:
        stack.callback(server.kill)
        links = [Proxy(server.port) for _ in range(4)]
        api_broker, delivery, steps_delivery = Proxy(0), Proxy(0), Proxy(0)
        for link in (*links, api_broker, delivery, steps_delivery):
            await stack.enter_async_context(link.serving())
        steps = programs.new_steps(zygote, folder, tuning, links[3].port) if tuning.steps else None
        is_direct = steps is not None and tuning.steps_are_refused
        steps_port = port_of(steps) if steps and is_direct else steps_delivery.port
        broker = programs.new_broker(
            zygote, folder, tuning, links[1].port, delivery.port, steps_port=steps_port
        )
        api = programs.new_api(zygote, folder, tuning, links[0].port, api_broker.port)
        predictor = programs.new_predictor(zygote, folder, tuning, links[2].port)
        api_broker.target, delivery.target = port_of(broker), port_of(predictor)
        steps_delivery.target = port_of(steps) if steps else 0
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
            links[3],
            steps_delivery,
            steps,
        )
        parts = [api, broker, predictor, *([steps] if steps else [])]
        try:
            for program in parts:
                program.start()
            await asyncio.gather(*(program.ready() for program in parts))
            for program in parts:
                program.must_live()  # or somebody else is ready on its port
            yield system
        finally:
            for program in {*parts, *system.predictors}:
                program.signal(signal.SIGKILL)
            system.server.kill()
            await system.client.close()
            await system.redis.aclose()

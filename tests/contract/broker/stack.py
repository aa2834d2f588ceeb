"""A broker in this process and a subscriber with scripted answers, for tests of the data plane."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Self

from aiohttp import web
from redis.asyncio import Redis

from eventing.broker.delivery.dead_letter import DeadLetterHandler
from eventing.broker.delivery.decision import DeliverySpec
from eventing.broker.delivery.pump import Pump
from eventing.broker.queue.queue import Queue
from eventing.broker.queue.view import QueueView
from eventing.broker.router import Router
from eventing.broker.trigger import Trigger
from eventing.cloudevent.event import Event, parse_http
from eventing.redis import keys
from eventing.store.steps.redis_steps import RedisStepStore
from tests.redis_server import free_port
from tests.time_limits import HANG_S

NAME = "requests-tiny"
FAST = DeliverySpec(retry=3, backoff_delay_s=0.01, timeout_s=HANG_S)
EVENT = Event(id="1", source="/s", type="t", datacontenttype="text/plain", data=b"hello")
Answer = Callable[[web.Request, int], Awaitable[web.StreamResponse]]


async def until(holds: Callable[[], Awaitable[bool]], *, timeout_s: float = HANG_S) -> None:
    """Return when the claim holds; fail when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(0.005)


def says(status: int, **headers: str) -> Answer:
    """An answer of this status and no body."""

    async def answer(_: web.Request, __: int) -> web.Response:
        return web.Response(
            status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    return answer


@dataclass
class Subscriber:
    """Takes deliveries; answers the n-th as `answers[n]`, and all after the last like the last. A
    probe is answered with the status that `readiness` gives.
    """

    answers: list[Answer] = field(default_factory=lambda: [says(204)])
    got: list[Event] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    readiness: Callable[[], int] = lambda: 200
    handler_cancellation: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{rest:.*}", self._take)
        runner = web.AppRunner(
            app, shutdown_timeout=0.1, handler_cancellation=self.handler_cancellation
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/readyz":
            return web.Response(status=self.readiness())
        number = len(self.got)
        self.got.append(parse_http(request.headers, await request.read()))
        self.headers.append({k.lower(): v for k, v in request.headers.items()})
        self.at_s.append(asyncio.get_running_loop().time())
        return await self.answers[min(number, len(self.answers) - 1)](request, number)


@dataclass
class Stack:
    """One trigger's queue and pump over a real Redis."""

    redis: Redis
    trigger: Trigger
    pump: Pump
    queue: Queue
    store: RedisStepStore
    router: Router

    async def send(self, event: Event) -> int:
        return await self.router.route(event)

    async def is_drained(self) -> bool:
        # One command, so one moment: a reply is put before its cause is settled.
        return not await self.redis.hlen(keys.queue(self.trigger.name, "events"))

    async def is_pending(self) -> bool:
        return (await QueueView(self.redis).depth(self.trigger.name)).pending > 0


def trigger(subscriber: str, delivery: DeliverySpec = FAST, *, parallelism: int = 4) -> Trigger:
    return Trigger(name=NAME, subscriber=subscriber, delivery=delivery, parallelism=parallelism)


def build(redis: Redis, *triggers: Trigger, token: str = "") -> list[Stack]:
    """A stack for each trigger, all behind one router."""
    store = RedisStepStore(redis)
    queues = [Queue(redis, each.name, f"pump-{n}") for n, each in enumerate(triggers)]
    router = Router(list(zip(triggers, queues, strict=True)))
    return [
        Stack(
            redis,
            each,
            Pump(each, queue, router, DeadLetterHandler(redis, store, router), token=token),
            queue,
            store,
            router,
        )
        for each, queue in zip(triggers, queues, strict=True)
    ]


@asynccontextmanager
async def pumping(*stacks: Stack) -> AsyncIterator[None]:
    """The pumps run inside the block, and have ended after it."""
    for stack in stacks:
        await stack.queue.ensure()
    async with asyncio.TaskGroup() as group:
        for stack in stacks:
            group.create_task(stack.pump.run())
        try:
            yield
        finally:
            for stack in stacks:
                stack.pump.stop()


def named(stack_trigger: Trigger, name: str) -> Trigger:
    return replace(stack_trigger, name=name)

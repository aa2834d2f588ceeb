"""The activator holds requests without a free replica, and never overfills one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from aiohttp import web
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from torpor.local.predictors.activator import Activator
from torpor.local.predictors.replica import LocalReplica, ReplicaState

READY = ReplicaState.READY


class Predictor:
    """A server that answers when it is let, and remembers how many it had at once."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.may_answer = asyncio.Event()
        self.now = self.most = self.served = 0
        self.seen_headers: dict[str, str] = {}

    async def handle(self, request: web.Request) -> web.Response:
        self.seen_headers = dict(request.headers)
        self.now += 1
        self.most = max(self.most, self.now)
        await self.may_answer.wait()
        self.now -= 1
        self.served += 1
        return web.Response(text="done", status=self.status, headers={"ce-id": "r"})


@asynccontextmanager
async def serving(predictor: Predictor) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/events", predictor.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        predictor.may_answer.set()
        await runner.cleanup()


@pytest.fixture
def pokes() -> list[int]:
    return []


@pytest.fixture
async def replicas() -> dict[str, LocalReplica]:
    return {}


@pytest.fixture
async def activator(
    replicas: dict[str, LocalReplica], pokes: list[int]
) -> AsyncIterator[Activator]:
    made = Activator(replicas, concurrency=2, timeout_s=30, on_waiting=lambda: pokes.append(1))
    yield made
    await made.close()


@pytest.fixture
async def client(activator: Activator) -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=[Route("/events", activator.handle, methods=["POST"])])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://activator") as made:
        yield made


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def test_at_zero_a_request_is_held_and_the_autoscaler_is_poked(
    client: httpx.AsyncClient, activator: Activator, pokes: list[int]
) -> None:
    request = asyncio.create_task(client.post("/events", content=b"x"))

    await until(lambda: activator.waiting == 1)

    assert pokes
    assert activator.concurrency == 1
    request.cancel()


async def test_a_held_request_goes_to_the_replica_that_becomes_ready(
    client: httpx.AsyncClient, activator: Activator, replicas: dict[str, LocalReplica]
) -> None:
    predictor = Predictor()
    predictor.may_answer.set()
    async with serving(predictor) as url:
        request = asyncio.create_task(client.post("/events", content=b"x"))
        await until(lambda: activator.waiting == 1)

        replicas["a"] = LocalReplica(id="a", url=url, state=READY)
        await activator.changed()
        answer = await request

    assert (answer.status_code, answer.text) == (200, "done")
    assert answer.headers["ce-id"] == "r"


async def test_a_replica_never_has_more_than_its_concurrency_at_once(
    client: httpx.AsyncClient, activator: Activator, replicas: dict[str, LocalReplica]
) -> None:
    predictor = Predictor()
    async with serving(predictor) as url:
        replicas["a"] = LocalReplica(id="a", url=url, state=READY)
        requests = [asyncio.create_task(client.post("/events")) for _ in range(7)]
        await until(lambda: predictor.now == 2 and activator.waiting == 5)

        predictor.may_answer.set()
        await asyncio.gather(*requests)

    assert predictor.most == 2
    assert predictor.served == 7


async def test_each_request_goes_to_the_least_busy_replica(
    client: httpx.AsyncClient, replicas: dict[str, LocalReplica]
) -> None:
    busy, calm = Predictor(), Predictor()
    async with serving(busy) as busy_url, serving(calm) as calm_url:
        replicas["busy"] = LocalReplica(id="busy", url=busy_url, state=READY, in_flight=1)
        replicas["calm"] = LocalReplica(id="calm", url=calm_url, state=READY)

        first = asyncio.create_task(client.post("/events"))
        await until(lambda: calm.now == 1)
        calm.may_answer.set()
        await first

    assert (calm.served, busy.now) == (1, 0)


async def test_nothing_is_sent_to_a_draining_replica_however_long_the_queue(
    client: httpx.AsyncClient, activator: Activator, replicas: dict[str, LocalReplica]
) -> None:
    draining, serving_one = Predictor(), Predictor()
    serving_one.may_answer.set()
    async with serving(draining) as draining_url, serving(serving_one) as url:
        replicas["going"] = LocalReplica(id="going", url=draining_url, state=ReplicaState.DRAINING)
        requests = [asyncio.create_task(client.post("/events")) for _ in range(5)]
        await until(lambda: activator.waiting == 5)

        replicas["new"] = LocalReplica(id="new", url=url, state=READY)
        await activator.changed()
        await asyncio.gather(*requests)

    assert (draining.now + draining.served, serving_one.served) == (0, 5)


async def test_a_full_hold_asks_the_broker_to_come_again(
    client: httpx.AsyncClient, activator: Activator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.local.predictors.activator.QUEUE_LIMIT", 3)
    held = [asyncio.create_task(client.post("/events")) for _ in range(3)]
    await until(lambda: activator.waiting == 3)

    refused = await client.post("/events")

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert activator.concurrency == 3
    for request in held:
        request.cancel()


async def test_a_request_to_a_replica_that_ended_is_sent_to_another(
    client: httpx.AsyncClient, replicas: dict[str, LocalReplica]
) -> None:
    predictor = Predictor()
    predictor.may_answer.set()
    async with serving(predictor) as url:
        replicas["gone"] = LocalReplica(id="gone", url="http://127.0.0.1:9", state=READY)
        replicas["here"] = LocalReplica(id="here", url=url, state=READY, in_flight=1)

        answer = await client.post("/events")

    assert answer.status_code == 200
    assert replicas["gone"].state is ReplicaState.DRAINING


async def test_when_nothing_wakes_in_time_the_broker_is_asked_to_come_again(
    replicas: dict[str, LocalReplica],
) -> None:
    activator = Activator(replicas, concurrency=1, timeout_s=0.05, on_waiting=lambda: None)
    app = Starlette(routes=[Route("/events", activator.handle, methods=["POST"])])

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://activator"
    ) as client:
        answer = await client.post("/events")

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert activator.concurrency == 0


async def test_a_replica_that_dies_with_the_request_is_not_tried_again_here(
    client: httpx.AsyncClient, replicas: dict[str, LocalReplica]
) -> None:
    """It may have taken the job; only the broker may deliver again, and the lease decides."""

    async def cut(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    predictor = Predictor()
    predictor.handle = cut  # type: ignore[method-assign]
    async with serving(predictor) as url:
        replicas["a"] = LocalReplica(id="a", url=url, state=READY)

        answer = await client.post("/events")

    assert answer.status_code == 502


async def test_the_delivery_token_reaches_the_predictor(
    client: httpx.AsyncClient, replicas: dict[str, LocalReplica]
) -> None:
    predictor = Predictor()
    predictor.may_answer.set()
    async with serving(predictor) as url:
        replicas["a"] = LocalReplica(id="a", url=url, state=READY)

        await client.post("/events", headers={"authorization": "Bearer t", "cookie": "c"})

    assert predictor.seen_headers["Authorization"] == "Bearer t"
    assert "Cookie" not in predictor.seen_headers


async def test_a_caller_that_leaves_before_there_is_a_replica_wakes_nothing() -> None:
    activator = Activator({}, concurrency=1, timeout_s=30, on_waiting=lambda: None)
    parts = [{"type": "http.request", "body": b"", "more_body": False}]
    left = asyncio.Event()

    async def receive() -> dict[str, object]:
        if parts:
            return parts.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/events", "headers": []}
    held = asyncio.create_task(activator.handle(Request(scope, receive)))
    async with asyncio.timeout(60):
        while not activator.waiting:
            await asyncio.sleep(0.001)
    left.set()

    assert (await held).status_code == 499
    assert activator.concurrency == 0


async def test_a_replica_that_died_with_a_request_is_reported_once_its_end_is_seen(
    replicas: dict[str, LocalReplica],
) -> None:
    told: list[tuple[str, bytes]] = []

    async def lost(replica_id: str, _: object, body: bytes) -> None:
        told.append((replica_id, body))

    async def die(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    made = Activator(replicas, concurrency=2, timeout_s=30, on_waiting=lambda: None, on_lost=lost)
    predictor = Predictor()
    predictor.handle = die  # type: ignore[method-assign]
    app = Starlette(routes=[Route("/events", made.handle, methods=["POST"])])
    async with serving(predictor) as url:
        replicas["a"] = replica = LocalReplica(id="a", url=url, state=READY)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://activator") as client:
            asking = asyncio.create_task(client.post("/events", content=b"x"))
            await until(lambda: replica.in_flight == 1)
            replica.state = ReplicaState.ENDED
            await made.changed()
            answer = await asking
    await made.close()

    assert answer.status_code == 502
    assert told == [("a", b"x")]

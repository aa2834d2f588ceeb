"""Failovers of the store by real sentinels, under load and with a replica that lags: with `store_acks` nothing that was
accepted is lost, nothing runs twice, and callers are answered 503 with Retry-After in between.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from eventing.errors import StoreUnavailable
from eventing.job.store import LeaseSettings
from eventing.redis.connection import connect, failures_named
from eventing.store.redis_store import RedisStore
from tests.contract.rig import new_job
from tests.faults.checker import Rules
from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.history import Kind
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote
from tests.faults.proxy import Way
from tests.sentinels import Node, WatchedStore, freeze, thaw, watched_store

FAILOVERS = int(os.environ.get("TORPOR_FAILOVERS", "0"))
"""All kinds in turn."""
pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not FAILOVERS, reason="failovers under load are for make test-failovers"),
]
JOBS_PER_S = 20
LAG_S = 0.15


async def hurt(node: Node, kind: str) -> None:
    match kind:
        case "kill":
            await asyncio.to_thread(node.server.kill)
        case "freeze":
            freeze(node)
        case _:
            node.proxy.black_hole()


async def mend(node: Node, kind: str) -> None:
    match kind:
        case "kill":
            await asyncio.to_thread(node.server.start)
        case "freeze":
            thaw(node)
        case _:
            node.proxy.heal()


@asynccontextmanager
async def lagging_replica(store: WatchedStore, hurt_now: set[Node]) -> AsyncIterator[None]:
    """A replica that stands still for more than half of the time; another when the first becomes the primary."""

    async def lag() -> None:
        while True:
            free = await asyncio.to_thread(lambda: store.replicas)
            node = next((each for each in free if each not in hurt_now), None)
            if node is not None and node.server.exit_code() is None:
                freeze(node)
                try:
                    await asyncio.sleep(LAG_S)
                finally:
                    thaw(node)
            await asyncio.sleep(LAG_S / 2)

    task = asyncio.ensure_future(lag())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Load:
    """So many jobs a second until it is ended; each with a key of its own, tried again until it is accepted."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._submits: list[asyncio.Task[str]] = []
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        for number in count():
            submit = self._system.client.submit(body(number), f"job-{number}", within_s=120)
            self._submits.append(asyncio.ensure_future(submit))
            await asyncio.sleep(1 / JOBS_PER_S)

    async def accepted(self) -> None:
        """Return when one that was submitted from now on is accepted."""
        before = len(self._submits)
        while len(self._submits) <= before:
            await asyncio.sleep(0.01)
        await asyncio.shield(self._submits[before])

    async def end(self) -> list[str]:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        return list(await asyncio.gather(*self._submits))


async def test_failovers_of_the_store_lose_and_double_nothing(
    zygote: Zygote, tmp_path: Path, judge: Judge
) -> None:
    async with watched_store(tmp_path / "store") as store:
        tuning = Tuning(
            store_url=store.url, store_acks=1, lease_s=3.0, max_attempts=50, tokens_per_s=100
        )
        async with running(zygote, tmp_path, tuning) as system:
            await system.redis.aclose()
            system.look_at(store.url)
            load, hurt_now, outages = Load(system), set[Node](), list[float]()
            async with lagging_replica(store, hurt_now):
                for number in range(FAILOVERS):
                    await load.accepted()
                    kind = ("kill", "freeze", "partition")[number % 3]
                    old = await asyncio.to_thread(store.primary)
                    hurt_now.add(old)
                    system.history.add(Kind.FAULT, kind, what="primary")
                    began_s = asyncio.get_running_loop().time()
                    await hurt(old, kind)
                    await load.accepted()
                    outages.append(asyncio.get_running_loop().time() - began_s)
                    await store.moved(old)
                    await mend(old, kind)
                    hurt_now.clear()
                    await store.in_step()
                    for program in (system.api, system.broker, system.predictor):
                        program.must_live()
            jobs = await load.end()
            while True:
                with suppress(StoreUnavailable):  # a sentinel may close connections once more
                    async with failures_named():
                        await system.ended(jobs, within_s=120)
                    break

            refused = [line for line in system.history if line.operation == "submit"]
            unknown = [line for line in refused if line.kind is Kind.UNKNOWN]
            failed = [line.fields for line in refused if line.kind is Kind.FAIL]
            assert not unknown, unknown
            assert failed, "no call fell into a failover"
            assert all(each["status"] == 503 and each["retry_after"] for each in failed)
            said = f"failovers, {len(jobs)} jobs, {len(failed)} calls answered 503, "
            said += f"longest outage {max(outages):.1f} s"
            await judge(system, FAILOVERS, Rules(max_attempts=50), of=said)


@pytest.mark.parametrize("acks", [0, 1])
async def test_only_with_acks_is_a_job_safe_that_no_replica_had(tmp_path: Path, acks: int) -> None:
    """What is lost without acks: a 202 whose job the next primary has never seen."""
    async with watched_store(tmp_path, servers=2) as watched, AsyncExitStack() as stack:
        store = RedisStore(connect(watched.url, timeout_s=1.5), LeaseSettings(acks=acks))
        stack.push_async_callback(store.close)
        await store.submit(new_job("before"))
        old, (replica,) = watched.primary(), watched.replicas
        # On its way to the replica; the store's answer does not name it.
        held = old.proxy.hold(b"late", Way.DOWN)
        is_accepted = True
        try:
            await store.submit(new_job("late"))
        except StoreUnavailable:
            is_accepted = False
        await held.reached.wait()
        old.server.kill()
        held.drop()
        await watched.moved(old)

        copy = RedisStore(connect(f"redis://127.0.0.1:{replica.server.port}/0"))
        stack.push_async_callback(copy.close)
        assert is_accepted is (acks == 0)
        assert await copy.get(new_job("before").id) is not None
        assert await copy.get(new_job("late").id) is None

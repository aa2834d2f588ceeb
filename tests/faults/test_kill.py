"""F01 to F05: kill -9 of each process at each step of a job, and a power cut under the store.

A trial holds the bytes of one step in a proxy, kills, starts again, and goes on with the same
system; other jobs run meanwhile. What the checker then reads is the sum of all trials.
"""

import asyncio
import random
from hashlib import sha1
from itertools import count
from pathlib import Path

import pytest

from eventing.redis import keys, script
from tests.faults.checker import Rules
from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.history import Kind
from tests.faults.processes import System, running
from tests.faults.programs import Program, Tuning, Zygote
from tests.faults.proxy import Hold, Proxy, Way
from tests.redis_server import VALKEY

pytestmark = pytest.mark.timeout(1800)
CANARY = "canary-7f3a91"


def called(name: str) -> bytes:
    """What the call of a Lua script looks like on the wire."""
    return sha1(script.source(name).encode(), usedforsecurity=False).hexdigest().encode()


async def warm(system: System) -> None:
    """One job through everything, so that scripts are loaded and connections open."""
    job_id = await system.client.submit(body(0, prompt=CANARY), "warm")
    await system.ended([job_id], within_s=60)


async def kill_at(hold: Hold, program: Program, *, within_s: float = 60) -> bool:
    """Kill when the step is reached; False when it was not."""
    try:
        async with asyncio.timeout(within_s):
            await hold.reached.wait()
    except TimeoutError:
        hold.drop()
        return False
    await program.kill()
    hold.drop()
    return True


async def hurt_with(
    system: System, steps: list[tuple[Proxy, bytes, Way, bool]], program: Program, trials: int
) -> list[str]:
    """`trials` kills of `program`, at each step in turn, with jobs under way; the jobs."""
    jobs: list[str] = []
    numbers = count(1)
    for trial in range(trials):
        link, needle, way, is_forwarded = steps[trial % len(steps)]
        hold = link.hold(needle, way, is_forwarded=is_forwarded)
        lines = [(body(next(numbers), prompt=CANARY), f"k{trial}-{n}") for n in range(3)]
        submits = [asyncio.ensure_future(system.client.submit(line, key)) for line, key in lines]
        assert await kill_at(hold, program), f"step {needle!r} was never reached"
        system.history.add(Kind.FAULT, "kill", what=program.name, step=needle.decode())
        program.start()
        await program.ready()
        jobs += await asyncio.gather(*submits)
    return jobs


async def test_f01_the_api_dies_while_it_takes_a_job(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path) as system:
        await warm(system)
        submit = called("submit")
        jobs = await hurt_with(
            system,
            [
                (system.api_redis, submit, Way.UP, False),
                (system.api_redis, submit, Way.UP, True),
                (system.api_broker, b"POST ", Way.UP, False),
                (system.api_broker, b"HTTP/1.1 202", Way.DOWN, False),
            ],
            system.api,
            trials,
        )
        await system.ended(jobs, within_s=60)
        system.look_for(CANARY)

        await judge(system, trials, of="kills")


async def test_f01_the_api_dies_while_it_puts_an_event_itself(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path, Tuning(puts_itself=True)) as system:
        await warm(system)
        steps = [
            (system.api_redis, called("submit"), Way.UP, is_forwarded)
            for is_forwarded in (False, True)
        ]
        jobs = await hurt_with(system, steps, system.api, trials)
        await system.ended(jobs, within_s=60)

        await judge(system, trials, of="kills")


async def test_f02_a_predictor_dies_while_it_runs_jobs(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    # More attempts than kills, so that no job is unlucky often enough to be a dead letter.
    tuning = Tuning(lease_s=0.6, max_attempts=50, tokens_per_s=100)
    async with running(zygote, tmp_path, tuning) as system:
        await warm(system)
        jobs = await hurt_with(
            system,
            [
                (system.predictor_redis, called("acquire"), Way.UP, False),
                (system.predictor_redis, called("acquire"), Way.UP, True),
                (system.predictor_redis, called("append"), Way.UP, False),
                (system.predictor_redis, called("append"), Way.UP, True),
                (system.predictor_redis, called("finish"), Way.UP, False),
                (system.predictor_redis, called("finish"), Way.UP, True),
                (system.delivery, b"HTTP/1.1 200", Way.DOWN, False),
            ],
            system.predictor,
            trials,
        )
        await system.ended(jobs, within_s=60)
        system.look_for(CANARY)

        await judge(system, trials, Rules(max_attempts=50), of="kills")


async def test_f03_the_broker_dies_while_it_takes_or_delivers(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path) as system:
        await warm(system)
        jobs = await hurt_with(
            system,
            [
                (system.broker_redis, called("enqueue"), Way.UP, False),
                (system.broker_redis, called("enqueue"), Way.UP, True),
                (system.delivery, b"POST ", Way.UP, True),
                (system.broker_redis, called("settle"), Way.UP, False),
                (system.broker_redis, called("settle"), Way.UP, True),
            ],
            system.broker,
            trials,
        )
        await system.ended(jobs, within_s=60)
        system.look_for(CANARY)

        await judge(system, trials, of="kills")


async def test_f04_the_store_dies_and_comes_back(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge, server_binary: Path
) -> None:
    # Each kill may cost whatever runs an attempt: a lease of 1 s lapses on a busy machine.
    tuning = Tuning(binary=server_binary, tokens_per_s=100, max_attempts=100)
    async with running(zygote, tmp_path, tuning) as system:
        await warm(system)
        steps = [
            (system.api_redis, called("submit")),
            (system.predictor_redis, called("acquire")),
            (system.predictor_redis, called("append")),
            (system.predictor_redis, called("finish")),
        ]
        jobs: list[str] = []
        for trial in range(trials):
            link, needle = steps[trial % len(steps)]
            hold = link.hold(needle, is_forwarded=True)
            lines = [(body(trial * 10 + n), f"k{trial}-{n}") for n in range(3)]
            submits = [
                asyncio.ensure_future(system.client.submit(line, key)) for line, key in lines
            ]
            await asyncio.wait_for(hold.reached.wait(), 30)
            system.history.add(Kind.FAULT, "down", what="redis")
            system.server.kill()
            hold.drop()
            assert await system.client.submit_once(body(trial), f"while-down-{trial}") is None
            system.history.add(Kind.FAULT, "up", what="redis")
            system.server.start()
            await asyncio.gather(*submits)
            # With everysec a write may be put off while the disk is busy with the last one, and
            # then its answer comes first: who is not sure asks again.
            jobs += await asyncio.gather(*(system.client.submit(line, key) for line, key in lines))
        await system.ended(jobs, within_s=60)

        rules = Rules(max_attempts=100, may_lose_tail=True)
        await judge(system, trials, rules, of="kills")


async def rewritten(system: System) -> None:
    """What docs/reliability.md asks of operators of Redis 7.0 after an unclean start (see
    `test_power_cut.py`): a new log, without the half transaction at the end of the old one.
    """
    await system.redis.connection_pool.disconnect()
    await system.redis.bgrewriteaof()
    async with asyncio.timeout(10):
        while (await system.redis.info("persistence"))["aof_rewrite_in_progress"]:
            await asyncio.sleep(0.01)


async def logged(system: System) -> None:
    """Wait until all that was answered is in the log: while its last fsync is slow, a server writes up to two seconds
    late.
    """
    async with asyncio.timeout(20):
        while (await system.redis.info("persistence"))["aof_buffer_length"]:
            await asyncio.sleep(0.01)


async def a_quarter_of_an_hour_later(system: System) -> int:
    """Let the sweep look now for jobs that nobody started (docs/adr/0140): a store that was back at
    once, and forgot an event, may yet have been told that the event is out. How many there were.
    """
    noted = await system.redis.zrange(keys.UNSTARTED, 0, -1, withscores=True)
    jobs = (await system.dumped()).jobs
    for member, at_ms in noted:
        await system.redis.zadd(keys.UNSTARTED, {member: at_ms - 900_000})
    return sum(job.state in ("queued", "in_progress") for job in jobs.values())


async def test_f05_a_power_cut_takes_the_last_second(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge, server_binary: Path
) -> None:
    draw = random.Random(5)
    tuning = Tuning(binary=server_binary, tokens_per_s=100, max_attempts=50)
    async with running(zygote, tmp_path, tuning) as system:
        await warm(system)
        kept: dict[str, str] = {}
        for trial in range(trials):
            await logged(system)
            log = max((system.server.folder / "appendonlydir").glob("*.incr.aof"))
            safe = log.stat().st_size
            lines = {f"k{trial}-{n}": body(trial * 10 + n) for n in range(4)}
            submits = [system.client.submit(line, key) for key, line in lines.items()]
            await asyncio.gather(*submits)
            await asyncio.sleep(draw.uniform(0, 0.3))
            system.server.kill()
            system.history.add(Kind.FAULT, "power cut")
            with log.open("r+b") as file:  # anywhere in what was written since, mid-record too
                file.truncate(draw.randint(safe, log.stat().st_size))
            system.server.start()
            if server_binary != VALKEY:
                await rewritten(system)
            again = [system.client.submit(line, key) for key, line in lines.items()]
            kept |= dict(zip(lines, await asyncio.gather(*again), strict=True))
        await system.ended(list(kept.values()), within_s=60)
        late = await a_quarter_of_an_hour_later(system)
        await system.ended(list(kept.values()), within_s=60)

        # A try that was refused gives its key's next try another id, and a cut can take both.
        refused = {
            line.fields["key"]
            for line in system.history
            if line.operation == "submit" and line.kind is Kind.FAIL
        }
        rules = Rules(max_attempts=50, may_lose_tail=True, lost_by_design=frozenset(refused))
        await judge(system, trials, rules, of=f"power cuts, {late} jobs found by age")

"""F06: the store's log is damaged. One that ends inside a record is loaded to the last whole transition;
one with wrong bytes in it is not loaded at all, and nobody is promised anything until it is mended.
"""

import asyncio
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faults.checker import Rules
from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.history import Kind
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote
from tests.faults.test_kill import rewritten, warm
from tests.redis_server import VALKEY

pytestmark = pytest.mark.timeout(1800)
_WRITE = re.compile(rb"\r\n(HSET|XADD|ZADD|ZREM)\r")


def log_of(system: System) -> Path:
    return max((system.server.folder / "appendonlydir").glob("*.incr.aof"))


def cut_inside_a_transition(log: Path, draw: random.Random) -> None:
    """End the log behind the first writes of one of its last scripts, in the middle of the next."""
    content = log.read_bytes()
    scripts = re.finditer(rb"\r\nMULTI\r\n.*?\r\nEXEC\r\n", content, re.DOTALL)
    cuts = [
        [script.start() + write.end() for write in list(_WRITE.finditer(script[0]))[1:]]
        for script in scripts
    ]
    end = draw.choice(draw.choice([places for places in cuts if places][-20:]))
    with log.open("r+b") as file:
        file.truncate(end)


async def asked(system: System, trial: int) -> list[str]:
    lines = [(body(trial * 10 + n), f"k{trial}-{n}") for n in range(4)]
    return list(await asyncio.gather(*(system.client.submit(line, key) for line, key in lines)))


async def test_f06_a_log_that_ends_inside_a_transition_applies_none_of_it(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge, server_binary: Path
) -> None:
    draw = random.Random(6)
    tuning = Tuning(binary=server_binary, tokens_per_s=100, max_attempts=50)
    async with running(zygote, tmp_path, tuning) as system:
        await warm(system)
        jobs: list[str] = []
        for trial in range(max(trials // 4, 5)):
            await asked(system, trial)
            await asyncio.sleep(draw.uniform(0, 0.3))
            system.server.kill()
            system.history.add(Kind.FAULT, "cut", what="log")
            cut_inside_a_transition(log_of(system), draw)
            system.server.start()
            if server_binary != VALKEY:
                await rewritten(system)
            jobs += await asked(system, trial)
            # What stands behind a half transition would complete it at the next start.
            system.server.kill()
            system.server.start()
            jobs += await asked(system, trial)
        await system.ended(jobs, within_s=60)

        # A cut can go further back than what was not yet fsynced: also a job's whole life.
        keys = frozenset(f"k{n}-{m}" for n in range(trials) for m in range(4))
        rules = Rules(max_attempts=50, may_lose_tail=True, lost_by_design=keys)
        await judge(system, max(trials // 4, 5), rules, of="logs cut inside a transition")


async def test_f06_a_log_with_wrong_bytes_is_not_loaded_and_nothing_is_accepted(
    zygote: Zygote, tmp_path: Path, judge: Judge, server_binary: Path
) -> None:
    check = shutil.which("redis-check-aof")
    if check is None:
        pytest.skip("redis-check-aof (Debian) is not installed")
    async with running(zygote, tmp_path, Tuning(binary=server_binary)) as system:
        await warm(system)
        first = await asked(system, 0)
        await system.ended(first, within_s=60)
        system.server.stop()
        log = log_of(system)
        whole = log.stat().st_size
        kept = await system_after_damage(system, log)
        assert system.server.exit_code() not in (0, None), "a damaged log was loaded"
        assert await system.client.submit_once(body(90), "while-damaged") is None
        system.history.add(Kind.FAULT, "up", what="redis")

        subprocess.run([check, "--fix", str(log)], input=b"y\n", check=True)
        assert whole <= log.stat().st_size == kept
        system.server.start()
        jobs = [*first, *await asked(system, 1)]
        await system.ended(jobs, within_s=60)

        await judge(system, 1, of="damaged log")


async def system_after_damage(system: System, log: Path) -> int:
    """Write wrong bytes and more behind them, try to start; the size up to which the log is good."""
    good = log.stat().st_size
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$99\r\nno such length\r\n" + b"*1\r\n$4\r\nPING\r\n" * 20)
    system.history.add(Kind.FAULT, "down", what="redis")
    system.server.launch()
    async with asyncio.timeout(20):
        while system.server.exit_code() is None:
            await asyncio.sleep(0.05)
    return good

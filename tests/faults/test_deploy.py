"""F24: a new version is deployed under load, part by part, and taken back again. Nothing is lost or run twice, no
attempt is used up, and no call fails but with a 503 that says when to come again.
"""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from tests.faults.checker import Rules
from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.fleet import PARTS, Fleet, fleet_of
from tests.faults.history import Kind
from tests.faults.processes import System, running
from tests.faults.programs import ROOT, Tuning, Zygote, zygote_in

pytestmark = pytest.mark.timeout(600)
BEFORE: Final = "e188a83cfccfe3f07987c8ac58e64e954bddcbe7"
"""The version before this one; a release puts its predecessor's tag here."""
TUNING: Final = Tuning(
    puts_itself=True, max_attempts=1, lease_s=4, tokens_per_s=40, delivery_timeout="PT20S"
)
"""One attempt: a deploy that costs one is a dead letter."""


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """The tree of the version before."""
    made = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True)
    if made.returncode:
        pytest.skip(f"this clone does not hold {BEFORE}")
    tree = tmp_path / "before"
    tree.mkdir()
    subprocess.run(["tar", "-x", "-C", str(tree)], input=made.stdout, check=True)
    return tree


async def roll(fleet: Fleet, zygote: Zygote, parts: tuple[str, ...] = PARTS) -> None:
    """A rolling update, as a Deployment does it: a new pod is ready before an old one is told to go."""
    for part in parts:
        for old in list(fleet.members[part]):
            await fleet.grow(part, zygote)
            fleet.retire(part, old)
            await asyncio.sleep(0.2)  # while the endpoint is taken out of the Service
            old.signal(signal.SIGTERM)
            fleet.system.history.add(Kind.FAULT, "rolled", what=old.name)
            await old.gone()


@asynccontextmanager
async def load(system: System) -> AsyncIterator[list[str]]:
    """Submits, and calls that are held until their job has ended; the jobs that were accepted."""
    jobs: list[str] = []
    numbers = count(1)
    stopped = asyncio.Event()

    async def submit() -> None:
        while not stopped.is_set():
            number = next(numbers)
            jobs.append(
                await system.client.submit(
                    body(number, tokens=20 + number % 5 * 30), f"job-{number}"
                )
            )
            await asyncio.sleep(0.2)

    async def hold() -> None:
        while not stopped.is_set():
            number = next(numbers)
            await held(system, number)

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(submit())
            group.create_task(hold())
        yield jobs
        stopped.set()


async def held(system: System, number: int) -> None:
    """A chat that takes longer than a process may take to end; a 503 is repeated under its key, anything else is a
    failure.
    """
    key = {"idempotency-key": f"chat-{number}"}
    call = body(number, tokens=300)["body"]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        while True:
            url = f"{system.client.bases[number % len(system.client.bases)]}/v1/chat/completions"
            with suppress(aiohttp.ClientConnectorError):  # gone since it was chosen
                async with session.post(url, json=call, headers=key) as answer:
                    text = await answer.text()
                    if answer.status == 200:
                        return
                    assert answer.status == 503, text
                    assert answer.headers["retry-after"]
            await asyncio.sleep(0.2)


def failed_calls(system: System) -> list[str]:
    """Submits that were cut off, or refused with anything but 503 (`check` asks for its Retry-After). One that found
    nobody at the address it had chosen before the address was taken away was not sent.
    """
    return [
        f"{line.kind} {line.fields}"
        for line in system.history
        if line.operation == "submit"
        and (line.kind is Kind.UNKNOWN or line.kind is Kind.FAIL)
        and line.fields.get("status") != 503
        and line.fields.get("is_sent", True)
    ]


async def test_f24_a_rolling_update_under_load_costs_no_call_and_no_attempt(
    zygote: Zygote, tmp_path: Path, judge: Judge
) -> None:
    async with (
        running(zygote, tmp_path, TUNING) as system,
        fleet_of(system, api=2, broker=2, predictor=2) as fleet,
    ):
        async with load(system) as jobs:
            await roll(fleet, zygote)
        await system.ended(jobs, within_s=60)

        assert failed_calls(system) == []
        await judge(system, 6, Rules(max_attempts=1), of="processes replaced under load")


async def test_f24_the_version_before_is_replaced_and_brought_back_under_load(
    zygote: Zygote, before: Path, tmp_path: Path, judge: Judge
) -> None:
    with zygote_in(tmp_path, before) as old_zygote:
        async with (
            running(old_zygote, tmp_path / "system", TUNING) as system,
            fleet_of(system) as fleet,
        ):
            async with load(system) as jobs:
                await roll(fleet, zygote)
                await roll(fleet, old_zygote, PARTS[::-1])
            await system.ended(jobs, within_s=60)

            assert failed_calls(system) == []
            await judge(system, 6, Rules(max_attempts=1), of="processes of two versions replaced")

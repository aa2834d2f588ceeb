"""Fault runs: how many trials, one zygote for all, and what was found with its n."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checker import Rules, check, summary
from tests.faults.processes import System
from tests.faults.programs import Zygote, zygote_in
from tests.redis_server import VALKEY, debian_redis

TRIALS = int(os.environ.get("TORPOR_FAULT_TRIALS", "12"))
"""12 in CI (0 failures say less than 25 % at 95 %): each point of a fault once or more. `make test-faults` takes 20,
its long form 200 (1.5 %).
"""

_found: list[str] = []


@pytest.fixture
def trials() -> int:
    """Of faults that cost a restart or a second each time."""
    return TRIALS


@pytest.fixture
def many() -> int:
    """Of faults where twenty side by side cost hardly more than one."""
    return max(TRIALS, 20)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with zygote_in(tmp_path_factory.mktemp("zygote")) as made:
        yield made


@pytest.fixture(params=["valkey", "redis7"])
def server_binary(request: pytest.FixtureRequest) -> Path:
    """Each server we promise to work with."""
    if request.param == "valkey":
        return VALKEY
    found = debian_redis()
    if found is None:
        pytest.skip("redis-server (Debian) is not installed")
    return found


def rounds(trials: int, size: int) -> list[range]:
    """The numbers of all trials, so many at a time as a system can have in hand at once."""
    return [range(at, min(at + size, trials)) for at in range(0, trials, size)]


Judge = Callable[..., Any]


@pytest.fixture
def judge(request: pytest.FixtureRequest, tmp_path: Path) -> Judge:
    """Checks a run, notes what was found with its n, and fails the test on any violation; all of them are in the file
    `violations` beside the history.
    """

    async def judged(
        system: System, n: int, rules: Rules | None = None, *, of: str = "faults"
    ) -> None:
        store = await system.dumped()
        violations = check(system.history, store, rules)
        found = "".join(f"{each.invariant} {each.what}\n" for each in violations)
        (tmp_path / "violations").write_text(found)
        name = request.node.name
        _found.append(f"{name}: {len(violations)} violations, n = {n} {of}")
        assert not violations, summary(violations)

    return judged


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Says at the end of the run what a test has counted."""
    return lambda text: _found.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _found:
        terminalreporter.section("faults: what was found, and in how many trials")
        for line in _found:
            terminalreporter.write_line(line)
